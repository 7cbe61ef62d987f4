"""Making a study's runs one after another, each in this process, and reading their results."""

import contextlib
import functools
import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from gptlit import signals
from gptlit.checkpoints import checkpoint
from gptlit.cli import saved_options
from gptlit.cli.fit import build
from gptlit.cli.lightning_warnings import quiet
from gptlit.files import write_atomically
from gptlit.messages import (
    MEMORY_ADVICE,
    RunError,
    UsageError,
    is_out_of_memory,
    note,
    with_option_names,
)
from gptlit.runs import metrics_file, run_folder
from gptlit.runs.run_end import NothingToTrain, train
from gptlit.study.planning import (
    RESULT,
    Planned,
    clear_changed,
    is_complete,
    plan_all,
    read_result,
)
from gptlit.study.spec import METRICS, Choices, Range, Study
from gptlit.study.tables import Outcome
from gptlit.terminal import duration
from gptlit.training.divergence import NotFinite


def make_all(
    study: Study, planned: Sequence[Planned], folder: Path, command: str, remake: bool
) -> list[Outcome]:
    """Make the runs that are not complete yet; print one line for each.

    Args:
        study: Study to make.
        planned: Its runs; none if optuna proposes them.
        folder: Folder of the study.
        command: Command that resumes the study.
        remake: Replace runs that were made with other options.

    Raises:
        SystemExit: The study was stopped.
    """
    n_runs = study.search.runs * len(study.seeds) if study.search and not planned else len(planned)
    outcomes: dict[str, Outcome] = {}  # by name, as optuna may propose a setting again
    seconds: list[float] = []  # per run

    def make(plan: Planned) -> Outcome:
        name = plan.setup.name
        run = folder / name
        if name not in outcomes and is_complete(run):
            outcomes[name] = _outcome(study, plan, run)
        if name in outcomes:
            return outcomes[name]
        _make_room(run)
        print(f"[{len(outcomes) + 1}/{n_runs}] {name}: ", end="", file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            failed = _make(plan, run)
        except (SystemExit, KeyboardInterrupt, signals.Terminated) as stop:
            print("stopped", file=sys.stderr)
            n_done = len(outcomes) + is_complete(run)
            note(f"{n_done} of {n_runs} runs are done; resume by {command}")
            code = stop.code if isinstance(stop, SystemExit) else signals.exit_code(stop)
            raise SystemExit(code) from None
        seconds.append(time.perf_counter() - began)
        outcomes[name] = outcome = _outcome(study, plan, run, failed)
        line = outcome.failed or (
            f"{study.metric} {outcome.results[study.metric]:.4f}, {duration(seconds[-1])}"
        )
        if left := statistics.fmean(seconds) * (n_runs - len(outcomes)):
            line += f"; about {duration(left)} left"
        print(line, file=sys.stderr, flush=True)
        return outcome

    if n_done := sum(is_complete(folder / plan.setup.name) for plan in planned):
        note(f"{n_done} of {n_runs} runs are done already")
    for plan in planned:
        make(plan)
    if not planned and study.search:
        _search(study, folder, make, remake)
    return list(outcomes.values())


def _make_room(run: Path) -> None:
    """Rename or remove the folder of a run that has no checkpoint to resume from."""
    last = run / "checkpoints" / "last.ckpt"
    if not run.is_dir() or last.is_file() or checkpoint.newest_whole(last):
        return
    if aside := run_folder.make_room(run):
        note(f"{run}: has no checkpoint to resume from; renamed to {aside}, and is made anew")


def _make(planned: Planned, run: Path) -> str:
    """Make or resume a run, with its output in a log file; return why it failed, or "".

    Raises:
        SystemExit, KeyboardInterrupt: the user stopped the study.
    """
    last = run / "checkpoints" / "last.ckpt"
    if not last.is_file() and (saved := checkpoint.newest_whole(last)):
        last, _ = saved  # killed before the first last.ckpt
    log = run.with_name(f"{run.name}.log").open("a", encoding="utf-8")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            step, signal = _fit(planned, run, last)
        except Exception as error:
            failed = _reason(error)
            traceback.print_exc()
            if not isinstance(error.__cause__, NotFinite):
                return failed  # the same command tries it again
            step, signal = 0, 0
        else:
            failed = ""
        finally:
            _release_memory()
    run.mkdir(exist_ok=True)
    if not (run / run_folder.CONFIG).is_file():  # the run diverged before its first checkpoint
        (run / run_folder.CONFIG).write_text(yaml.safe_dump(planned.options), encoding="utf-8")
    result = {"step": step, "text": planned.text, "texts": planned.texts, "failed": failed}
    write_atomically(run / RESULT, json.dumps(result).encode())
    if signal:
        raise SystemExit(128 + signal)
    return failed


def _fit(planned: Planned, run: Path, last: Path) -> tuple[int, int]:
    """Train to the end; return the run's steps, and a signal received after its last step."""
    arguments, step = planned.setup.arguments, None
    if last.is_file():
        content, steps = checkpoint.read(last), planned.options["trainer"]["max_steps"]
        step = int(content["global_step"])
        if 0 < steps <= step:
            return step, 0  # only the result is missing
        arguments = [f"--ckpt_path={last}"]  # it holds the same options
        if saved_options.read(content[checkpoint.KEY]["run"]) == planned.options:
            arguments.append("--trust_checkpoint=true")  # the user's own study names them
    try:
        with quiet(), contextlib.ExitStack() as stack:
            stack.callback(signals.delegate, None)  # later signals stop the study
            built = stack.enter_context(build(arguments, place=run))
            train(built)
        assert built.stopping is not None
        return built.trainer.global_step, built.stopping.last_signal
    except NothingToTrain:
        if step is None:
            raise
        return step, 0  # the checkpoint is of the last epoch


def _reason(error: Exception) -> str:
    if is_out_of_memory(error):
        return with_option_names(MEMORY_ADVICE)
    if isinstance(error, UsageError):
        return str(error.without_remedy())
    if isinstance(error, RunError):
        return str(error).split("; ")[0]
    return " ".join(f"{type(error).__name__}: {error}".split())


def _release_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if "torch._dynamo" in sys.modules:
        # a function is compiled for few sizes only; beyond those it runs uncompiled
        torch._dynamo.reset()


def _outcome(study: Study, planned: Planned, run: Path, failed: str = "") -> Outcome:
    """Read the results of a run from its folder."""
    if failed := failed or read_result(run)["failed"]:
        return Outcome(planned.setup, failed=failed)
    logged = functools.partial(metrics_file.by_step, run / "metrics.csv")
    if not (curve := logged(study.metric)):
        reason = f"{study.metric} was not logged; choose another metric"
        return Outcome(planned.setup, failed=reason)
    at = max(curve) if study.at == "end" else min(curve, key=lambda step: (curve[step], step))
    metrics = {name: logged(name) for name in METRICS}
    results = {name: values[at] for name, values in metrics.items() if at in values}
    # steps after the best validation did not contribute to the metric
    step = at if study.at == "best" else read_result(run)["step"]
    tokens = step * planned.tokens_per_step
    results |= {"step": at, "parameters": planned.parameters, "tokens": tokens}
    results["flops"] = tokens * planned.flops_per_token
    if timed := logged("speed/step_ms"):
        results["seconds"] = step * statistics.fmean(timed.values()) / 1e3
    return Outcome(planned.setup, results, curve, text=planned.text)


def _search(study: Study, folder: Path, make: Callable[[Planned], Outcome], remake: bool) -> None:
    """Let optuna propose each setting from earlier results (TPE, Bergstra et al. 2011).

    Proposals follow from the seed and the results, so a resumed study repeats them.
    """
    import optuna

    assert study.search is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=study.search.seed))
    for _ in range(study.search.runs):
        trial = trials.ask()
        settings = {
            name: _suggested(trial, name, choices) for name, choices in study.search.over.items()
        }
        planned = plan_all(study, study.setups_of(settings))
        clear_changed(planned, folder, remake)
        results = [make(each).results for each in planned]
        if all(study.metric in each for each in results):
            trials.tell(trial, statistics.fmean(each[study.metric] for each in results))
        else:
            trials.tell(trial, state=optuna.trial.TrialState.FAIL)


def _suggested(trial: Any, name: str, choices: Choices) -> Any:
    if not isinstance(choices, Range):
        return choices[trial.suggest_categorical(name, list(range(len(choices))))]
    suggest = trial.suggest_int if choices.is_whole else trial.suggest_float
    return choices.rounded(suggest(name, choices.low, choices.high, log=choices.log))
