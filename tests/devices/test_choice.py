"""Where texts are written: a rule of sizes, without a GPU, and the option that decides."""

import pytest
import torch

from gptlit.devices import accelerators, choice
from gptlit.messages import UsageError

SMALL, MEDIUM, GPT2 = 800_000, 10_700_000, 124_000_000


def never() -> str:
    raise AssertionError("looked for a GPU")


@pytest.mark.parametrize(
    ("n_parameters", "n_texts", "n_tokens"), [(SMALL, 1, 500), (MEDIUM, 1, 500), (GPT2, 1, 20)]
)
def test_short_work_stays_on_the_cpu_without_a_look_for_a_gpu(
    n_parameters: int, n_texts: int, n_tokens: int
) -> None:
    assert choice.soonest(n_parameters, n_texts, n_tokens, never) == "cpu"


@pytest.mark.parametrize(
    ("n_parameters", "n_texts", "n_tokens"), [(GPT2, 1, 500), (MEDIUM, 64, 500)]
)
@pytest.mark.parametrize("fastest", ["cuda", "mps", "cpu"])
def test_large_models_and_many_texts_go_to_the_fastest_device(
    n_parameters: int, n_texts: int, n_tokens: int, fastest: str
) -> None:
    found = choice.soonest(n_parameters, n_texts, n_tokens, lambda: fastest)
    assert found == fastest


def test_a_slower_accelerator_is_left_alone() -> None:
    """Long work of a small model, for which a GPU's steps are no faster."""
    assert choice.seconds("cuda", SMALL, 1, 10**5) < choice.seconds("cpu", SMALL, 1, 10**5)
    assert choice.soonest(SMALL, 1, 10**5, lambda: "mps") == "cpu"
    assert choice.soonest(SMALL, 5000, 500, lambda: "cuda") == "cuda"


def test_the_estimate_in_plain_numbers() -> None:
    speed = choice.SPEEDS["cpu"]
    full, rest = 2 * GPT2 * 64 / speed.flops, 4 * GPT2 / speed.bytes_per_s
    wanted = speed.start + 10 * (2 * (speed.step + full) + speed.step + rest)
    assert choice.seconds("cpu", GPT2, 2 * 64 + 1, 10) == pytest.approx(wanted)
    assert choice.seconds("cpu", GPT2, 0, 10) == 0


def test_named_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(accelerators, "mps_is_available", lambda: True)
    assert choice.named("auto") is None
    for name in ("cpu", "mps", "cuda", "cuda:0", "cuda:1"):
        assert choice.named(name) == torch.device(name)
    with pytest.raises(UsageError, match="^device cuda:2: PyTorch finds 2, .* cuda:1"):
        choice.named("cuda:2")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "meta"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^device {name}: must be auto, cpu, cuda"):
        choice.named(name)


def test_devices_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(accelerators, "mps_is_available", lambda: False)
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(UsageError, match=f"^device {name}: .* no GPU .*; use cpu or auto"):
            choice.named(name)
