import pytest
import torch

from gptlit.devices import instructions


def machine(monkeypatch: pytest.MonkeyPatch, *, amx: bool, vnni: bool, dot: bool) -> None:
    """Simulate a CPU with some of the instructions."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"dot": dot}, raising=False)


@pytest.mark.parametrize(
    ("amx", "vnni", "dot", "name"),
    [
        (True, True, False, "AMX"),
        (False, True, False, "VNNI"),
        (False, False, True, "dot product"),
        (False, False, False, ""),
    ],
)
def test_the_fastest_instructions_for_8_bit_integers_are_named(
    monkeypatch: pytest.MonkeyPatch, amx: bool, vnni: bool, dot: bool, name: str
) -> None:
    machine(monkeypatch, amx=amx, vnni=vnni, dot=dot)
    assert instructions.for_int8() == name


def test_earlier_versions_of_torch_do_not_know_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, amx=False, vnni=False, dot=True)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert instructions.for_int8() == ""


def test_this_machine_has_an_answer() -> None:
    assert instructions.for_int8() in ("AMX", "VNNI", "dot product", "")
