"""The number of threads, chosen by times of a fake clock: none depends on the machine."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptlit.devices import cpus
from gptlit.training import threads
from gptlit.training.threads import Threads


@pytest.fixture(autouse=True)
def machine_of_16_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would take 8 threads, for instance one for each physical core."""
    for variable in threads.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cpus, "usable", lambda: 16)
    torch.set_num_threads(8)


def test_as_many_as_pytorch_takes() -> None:
    with threads.using() as found:
        assert found == Threads(8)
        assert torch.get_num_threads() == 8


def test_no_more_than_the_usable_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "usable", lambda: 3)
    with threads.using() as found:
        assert found == Threads(3, "the CPUs that this process may use")
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 8


def test_the_option_wins_over_a_variable_and_both_over_the_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cpus, "usable", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")  # PyTorch has read it
    with threads.using() as found:
        assert found == Threads(8, "by OMP_NUM_THREADS", is_given=True)
    with threads.using(2) as found:
        assert found == Threads(2, "as given", is_given=True)
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("variable", [None, "8"])
def test_processes_share_the_cpus(monkeypatch: pytest.MonkeyPatch, variable: str | None) -> None:
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    expected = 8 if variable else 4
    with threads.using(n_processes=4) as found:
        assert found.n == expected
        assert os.environ["OMP_NUM_THREADS"] == str(expected)  # of processes that are started
    assert os.environ.get("OMP_NUM_THREADS") == variable


def test_every_variable_chooses_the_number_and_is_documented(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
    for variable in threads.VARIABLES:
        with monkeypatch.context() as patch:
            patch.setenv(variable, "8")
            with threads.using() as found:
                assert found == Threads(8, f"by {variable}", is_given=True)
        assert variable in cpus.THREADS_HELP
        assert f"`{variable}`" in page


def test_an_error_restores_the_number() -> None:
    with pytest.raises(KeyError), threads.using(2):
        raise KeyError
    assert torch.get_num_threads() == 8


# ---------------------------------------------------------------------- comparison


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [1]), (2, [2, 1]), (6, [6, 3, 1]), (16, [16, 8, 4, 2, 1])]
)
def test_candidates(most: int, expected: list[int]) -> None:
    assert threads.candidates(most) == expected


def compare(
    seconds: Callable[[int, int], float], numbers: list[int]
) -> tuple[dict[int, float], int]:
    """Times of a fake machine on which pass i takes seconds(i, n); and the number of passes."""
    now, used, done = 0.0, 0, 0

    def use(n: int) -> None:
        nonlocal used
        used = n

    def work() -> None:
        nonlocal now, done
        now += seconds(done // len(numbers), used)
        done += 1

    return threads.compare(work, numbers, clock=lambda: now, use=use), done


def test_medians_without_the_first_round() -> None:
    def seconds(index: int, n: int) -> float:
        return 0.25 if index == 0 else 0.5 if index == 7 else 0.01 / n

    found, done = compare(seconds, [2, 1])
    assert found == pytest.approx({2: 0.005, 1: 0.01})
    assert done < 2 * threads.MOST_ROUNDS  # the time was over


def test_the_comparison_of_a_small_model_ends_after_its_rounds() -> None:
    found, done = compare(lambda index, n: 0.001, [4, 2, 1])
    assert found.keys() == {4, 2, 1}
    assert done == 3 * threads.MOST_ROUNDS


def test_the_comparison_of_a_large_model_ends_after_one_round() -> None:
    found, done = compare(lambda index, n: 3.463 if n == 2 else 0.212, [2, 1])
    assert found == pytest.approx({2: 3.463, 1: 0.212})
    assert done == 2


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ({2: 3.463, 1: 0.212}, 1),  # measured on two CPUs that others used as well
        ({2: 0.11, 1: 0.21}, 2),
        ({2: 0.21, 1: 0.21}, 2),
        ({2: 0.24, 1: 0.20}, 2),  # not by a clear margin
        ({8: 0.5, 4: 0.1, 2: 0.2, 1: 0.4}, 4),
    ],
)
def test_fewer_threads_are_chosen_where_they_are_clearly_faster(
    seconds: dict[int, float], expected: int
) -> None:
    assert threads.fastest(seconds, max(seconds)) == expected


def test_more_threads_are_the_fastest_for_a_run_that_has_had_one() -> None:
    assert threads.fastest({2: 0.1, 1: 0.2}, preferred=1) == 2
