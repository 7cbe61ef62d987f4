"""Threads of a run and their exact resume; TF32 on a simulated GPU."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptlit.checkpoints import checkpoint
from gptlit.cli import fit as fit_verb
from gptlit.devices import cpus
from gptlit.runs import computing
from gptlit.runs.computing import KEY, ThreadChoice
from gptlit.training import threads
from gptlit.training.threads import Threads
from tests.conftest import TINY, Result, assert_equal

Call = Callable[..., Result]
SLOW_WITH_TWO, FAST_WITH_TWO = {2: 3.463, 1: 0.212}, {2: 0.11, 1: 0.21}
STEPS = ["--trainer.max_steps=4", "--snapshot_every=2"]


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """A machine with two CPUs; the function sets the seconds of a pass with 1 and 2 threads.

    The number is only recorded: two real threads can collapse on a machine that others use.
    """
    n_threads = 2

    def set_num_threads(n: int) -> None:
        nonlocal n_threads
        n_threads = n

    monkeypatch.setattr(torch, "set_num_threads", set_num_threads)
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    for variable in threads.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(cpus, "usable", lambda: 2)

    def take(seconds: dict[int, float]) -> None:
        monkeypatch.setattr(threads, "compare", lambda work, numbers: (work(), seconds)[1])

    take(FAST_WITH_TWO)
    return take


def fit(gptlit: Call, text: Path, *more: object) -> Result:
    done = gptlit("fit", *TINY, f"--data.path={text}", *STEPS, *more)
    assert done.code == 0, done.err
    return done


def saved(version: int = 0, name: str = "last") -> dict[str, Any]:
    return checkpoint.read(Path(f"lightning_logs/version_{version}/checkpoints/{name}.ckpt"))


def test_both_cpus_are_used_where_that_is_faster(
    gptlit: Call, text_file: Path, two_cpus: Any
) -> None:
    done = fit(gptlit, text_file)
    assert "1 x cpu, threads: 2\n" in done.out
    assert "threads" not in done.err
    assert saved()[KEY] == 2
    assert torch.get_num_threads() == 2


def test_a_loaded_machine_gets_fewer_threads_and_a_line(
    gptlit: Call, text_file: Path, two_cpus: Any
) -> None:
    two_cpus(SLOW_WITH_TWO)
    done = fit(gptlit, text_file)
    assert "threads: 1 (a step takes about 16.3 times as long with 2)\n" in done.out
    line = "a step takes about 16.3 times as long with 2 threads as with 1; --threads 1 is used"
    assert f"gptlit: {line}\n" in done.err
    assert saved()[KEY] == 1
    assert torch.get_num_threads() == 2  # as before the run


def test_option_variable_and_determinism_leave_out_the_comparison(
    gptlit: Call, text_file: Path, two_cpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_cpus(SLOW_WITH_TWO)
    assert "threads: 2 (as given)" in fit(gptlit, text_file, "--threads=2").out
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert "threads: 2 (by OMP_NUM_THREADS)" in fit(gptlit, text_file).out
    monkeypatch.delenv("OMP_NUM_THREADS")
    try:
        deterministic = fit(gptlit, text_file, "--trainer.deterministic=true")
    finally:
        torch.use_deterministic_algorithms(False)
    assert "threads: 2\n" in deterministic.out


def test_the_comparison_changes_nothing(gptlit: Call, text_file: Path, two_cpus: Any) -> None:
    """A run with one thread given equals one for which the comparison chooses one."""
    fit(gptlit, text_file, "--threads=1", "--model.dropout=0.1")
    two_cpus(SLOW_WITH_TWO)
    fit(gptlit, text_file, "--model.dropout=0.1")
    given, chosen = saved(0), saved(1)
    for part in ("state_dict", "optimizer_states", "loops"):
        assert_equal(chosen[part], given[part], part)


@pytest.mark.parametrize(
    ("first", "later", "n", "advice"),
    [
        (SLOW_WITH_TWO, FAST_WITH_TWO, 1, "--threads 2 is faster"),
        (FAST_WITH_TWO, SLOW_WITH_TWO, 2, "--threads 1 is faster"),
        (FAST_WITH_TWO, FAST_WITH_TWO, 2, ""),
    ],
)
def test_a_resumed_run_computes_with_as_many_as_before(
    gptlit: Call,
    text_file: Path,
    two_cpus: Any,
    first: dict[int, float],
    later: dict[int, float],
    n: int,
    advice: str,
) -> None:
    two_cpus(first)
    fit(gptlit, text_file)
    whole = saved()
    two_cpus(later)
    middle = "lightning_logs/version_0/checkpoints/step_2.ckpt"
    resumed = gptlit("fit", "--ckpt_path", middle)
    assert resumed.code == 0, resumed.err
    assert f"threads: {n} (as before the resume)" in resumed.out
    assert advice in resumed.err
    assert ("threads" in resumed.err) is bool(advice)
    assert saved()[KEY] == n
    for part in ("state_dict", "optimizer_states", "loops"):
        assert_equal(saved()[part], whole[part], part)


@pytest.mark.parametrize("before", [None, 0, -2, 3, "2", 1.0])
def test_a_number_that_does_not_apply_is_ignored(before: Any) -> None:
    assert ThreadChoice(Threads(2), before).before is None


def test_other_verbs_use_the_option(
    gptlit: Call, text_file: Path, two_cpus: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(gptlit, text_file)
    used: list[int] = []
    using = threads.using

    @contextlib.contextmanager
    def recorded(*arguments: int) -> Iterator[Threads]:
        with using(*arguments) as found:
            used.append(torch.get_num_threads())
            yield found

    monkeypatch.setattr(threads, "using", recorded)
    assert gptlit("validate", "--threads=1").code == 0
    assert gptlit("predict", "--max_new_tokens=2", "--threads=1").code == 0
    assert gptlit("predict", "--max_new_tokens=2").code == 0
    assert used == [1, 1, 2]
    refused = gptlit("predict", "--threads=2000")
    assert refused.code == 2
    assert "--threads 2000: must be from 0 to 1024" in refused.err


# ---------------------------------------------------------------------- stand-in


@pytest.mark.parametrize(
    ("pass_seconds", "shape"),
    [
        (1e-6, (4, 8)),  # the run's batch
        (0.025, (2, 8)),
        (60.0, (1, 8)),  # at least FIRST_TOKENS, or a whole window
    ],
)
def test_a_slow_model_is_compared_on_fewer_windows(
    text_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pass_seconds: float,
    shape: tuple[int, int],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gptlit"])
    shapes: list[tuple[int, ...]] = []
    with fit_verb.build([*TINY, f"--data.path={text_file}"], trains=False) as run:
        fit_verb.prepare(run)
        run.model.net.register_forward_pre_hook(
            lambda net, inputs: shapes.append(tuple(inputs[0].shape))
        )
        times = iter([0.0, pass_seconds])
        work = computing.stand_in(run.trainer, run.model, lambda: next(times))
        before = torch.get_rng_state()
        work()
        assert torch.equal(torch.get_rng_state(), before)
        assert all(each.grad is None for each in run.model.parameters())
    assert shapes == [(1, 8), (1, 8), shape]


# ---------------------------------------------------------------------- TF32


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_a_gpu_multiplies_float32_in_tf32(gpu: None) -> None:
    with contextlib.ExitStack() as held:
        assert computing.use_tf32("auto", held) == "; products of float32 in TF32"
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("chosen", ["high", "medium"])
def test_the_precision_of_products_that_the_user_has_set_is_kept(gpu: None, chosen: str) -> None:
    torch.set_float32_matmul_precision(chosen)
    with contextlib.ExitStack() as held:
        assert computing.use_tf32("gpu", held) == ""
        assert torch.get_float32_matmul_precision() == chosen


def test_other_devices_multiply_as_ever(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as held:
        assert computing.use_tf32("cpu", held) == ""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert computing.use_tf32("auto", held) == ""
        assert torch.get_float32_matmul_precision() == "highest"
