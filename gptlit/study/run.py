"""`gptlit study`: the runs of a study file, one after the other, and what they show.

lightning_logs/NAME/
    RUN/  RUN.log  results.csv  plot.svg  curves.svg
"""

import contextlib
import gc
import importlib.util
import io
import json
import shlex
import statistics
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from gptlit import signals, terminal
from gptlit.checkpoints import checkpoint
from gptlit.cli import saved_options
from gptlit.cli.arguments import find_study, shipped_studies, take
from gptlit.cli.fit import GptlitCLI, NothingToTrain
from gptlit.cli.lightning_warnings import quiet
from gptlit.download import write_atomically
from gptlit.messages import MEMORY_ADVICE, RunError, UsageError, is_out_of_memory, note
from gptlit.parser import with_environment
from gptlit.predict.checkpoints import logged
from gptlit.runs import run_folder
from gptlit.study import spec, tables
from gptlit.study.planning import RESULT, Planned, clear_changed, is_result, plan_all, result
from gptlit.study.spec import METRICS, Choice, Range, Study
from gptlit.study.tables import Outcome
from gptlit.terminal import duration
from gptlit.training.divergence import NotFinite

FLAGS = ("--remake", "--dry_run")
HELP = """usage: gptlit study STUDY.yaml [--name NAME] [--dry_run] [--remake] [options]

Make the runs of a study file, and compare them by a table and plots. The same
command again goes on where it was stopped: what is done stays, and an
interrupted run goes on at its last step.

  STUDY.yaml   a path, or a shipped one:
{shipped}
  --name NAME  the runs lie under lightning_logs/NAME; else the file's name
  --dry_run    tell the runs, and make none
  --remake     make runs anew that were made with other options; without it
               they are refused

Options of gptlit fit, such as --trainer.max_steps 50, hold for all runs and win
over the file's. The README tells what stands in a study file."""


def main(argv: Sequence[str]) -> None:
    """Run `gptlit study` with these arguments.

    Raises:
        UsageError: a study, an option or a folder that can't work; before any run begins.
        SystemExit: stopped (130, 143), or a run failed to be made (1).
    """
    if {"-h", "--help"} & set(argv):
        print(HELP.format(shipped=textwrap.indent(textwrap.fill(_shipped(), 64), " " * 15)))
        return
    if not argv or argv[0].startswith("-"):
        raise UsageError(
            "no study file; say gptlit study STUDY.yaml, a path or one of the shipped " + _shipped()
        )
    names, words = take(with_environment("study", argv[1:]), "--name")
    path = find_study(argv[0])
    study = spec.read(path, [word for word in words if word not in FLAGS])
    if study.search and study.search.by == "optuna" and not importlib.util.find_spec("optuna"):
        raise UsageError(
            f"{path}: random: by: optuna: is not installed; pip install 'gptlit[optuna]', or give "
            "by: random"
        )
    folder = checkpoint.RUNS / _checked(names[-1] if names else path.stem)
    shown = _Unseen(sys.stderr)  # what preparing the same text tells again and again
    with contextlib.redirect_stderr(shown):
        planned = plan_all(study, study.setups())
    if "--dry_run" in words:
        _tell_plan(study, planned, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with run_folder.alone(folder, "make this one elsewhere by --name"):
        remake = "--remake" in words
        clear_changed(planned, folder, remake)
        again = shlex.join(["gptlit", "study", *(word for word in argv if word not in FLAGS)])
        outcomes = _make_all(study, planned, folder, again, remake)
        _report(study, outcomes, folder)
    if any(each.failed and not is_result(folder / each.setup.name) for each in outcomes):
        raise SystemExit(1)


def _shipped() -> str:
    return ", ".join(Path(name).stem for name in shipped_studies())


def _checked(name: str) -> str:
    is_run = checkpoint.version_number(Path(name)) >= 0 or checkpoint.is_run(checkpoint.RUNS / name)
    if name != Path(name).name or name in ("", "..") or is_run:
        raise UsageError(f"--name {name}: must be a folder's name, and not that of a run")
    return name


class _Unseen(io.TextIOBase):
    """Passes lines on, each once."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.seen: set[str] = set()
        self.line = ""

    def write(self, text: str) -> int:
        *lines, self.line = (self.line + text).split("\n")
        for line in lines:
            if line not in self.seen:
                self.seen.add(line)
                self.stream.write(line + "\n")
                self.stream.flush()
        return len(text)


def _tell_plan(study: Study, planned: Sequence[Planned], folder: Path) -> None:
    if not planned and study.search:
        print(f"{study.search.runs} runs, each chosen by what those before it found")
    for each in planned:
        place = folder / each.setup.name
        last = place / "checkpoints" / "last.ckpt"
        state = "done" if is_result(place) else "begun" if last.exists() else "to make"
        tokens = each.options["trainer"]["max_steps"] * each.tokens_per_step
        seen = f", {tokens:,} tokens" if tokens > 0 else ""
        print(f"{each.setup.name}: {each.parameters:,} parameters{seen}, {state}")


# ---------------------------------------------------------------------- the runs


def _make_all(
    study: Study, planned: Sequence[Planned], folder: Path, again: str, remake: bool
) -> list[Outcome]:
    """Make what isn't made yet; a line for each run.

    Raises:
        SystemExit: stopped, with the command that goes on.
    """
    many = study.search.runs * len(study.seeds) if study.search and not planned else len(planned)
    outcomes: dict[str, Outcome] = {}  # by name: a search may propose a setting again
    taken: list[float] = []  # seconds

    def make(each: Planned) -> Outcome:
        name = each.setup.name
        place = folder / name
        if name not in outcomes and is_result(place):
            outcomes[name] = _outcome(study, each, place)
        if name in outcomes:
            return outcomes[name]
        _make_room(place)
        print(f"[{len(outcomes) + 1}/{many}] {name}: ", end="", file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            failed = _make(each, place)
        except (SystemExit, KeyboardInterrupt, signals.Terminated) as stop:
            print("stopped", file=sys.stderr)
            note(f"{len(outcomes) + is_result(place)} of {many} runs are done; {again} goes on")
            code = stop.code if isinstance(stop, SystemExit) else signals.exit_code(stop)
            raise SystemExit(code) from None
        taken.append(time.perf_counter() - began)
        outcomes[name] = outcome = _outcome(study, each, place, failed)
        value = outcome.figures.get(study.metric)
        left = statistics.fmean(taken) * (many - len(outcomes))
        told = outcome.failed or f"{study.metric} {value:.4f}, {duration(taken[-1])}"
        told += f"; about {duration(left)} to go" if left else ""
        print(told, file=sys.stderr, flush=True)
        return outcome

    if done := sum(is_result(folder / each.setup.name) for each in planned):
        note(f"{done} of {many} runs are done already")
    for each in planned:
        make(each)
    if not planned and study.search:
        _search(study, folder, make, remake)
    return list(outcomes.values())


def _make_room(place: Path) -> None:
    """Let a run that left nothing to resume from be made anew."""
    last = place / "checkpoints" / "last.ckpt"
    if not place.is_dir() or last.is_file() or checkpoint.newest_whole(last):
        return
    if aside := run_folder.make_room(place):
        note(f"{place}: has no checkpoint to resume from; it is now {aside}, and is made anew")


def _make(planned: Planned, place: Path) -> str:
    """Make a run, or go on with it, quietly; returns why it failed, or "".

    Raises:
        SystemExit, KeyboardInterrupt: asked to stop.
    """
    last = place / "checkpoints" / "last.ckpt"
    if not last.is_file() and (saved := checkpoint.newest_whole(last)):
        last, _ = saved  # killed before the first last.ckpt
    log = place.with_name(f"{place.name}.log").open("a", encoding="utf-8")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            step, asked = _fit(planned, place, last)
        except Exception as error:
            failed = _told(error)
            traceback.print_exc()
            if not isinstance(error.__cause__, NotFinite):
                return failed  # it is tried again by the same command
            step, asked = 0, 0
        else:
            failed = ""
        finally:
            _forget()
    place.mkdir(exist_ok=True)
    if not (place / run_folder.CONFIG).is_file():  # of a run that diverged at once
        (place / run_folder.CONFIG).write_text(yaml.safe_dump(planned.options), encoding="utf-8")
    found = {"step": step, "text": planned.text, "texts": planned.texts, "failed": failed}
    write_atomically(place / RESULT, json.dumps(found).encode())
    if asked:
        raise SystemExit(128 + asked)
    return failed


def _fit(planned: Planned, place: Path, last: Path) -> tuple[int, int]:
    """Train to the end; returns the steps of the run, and a signal that came when it was over."""
    words, step = planned.setup.words, None
    if last.is_file():
        content, steps = checkpoint.read(last), planned.options["trainer"]["max_steps"]
        step = int(content["global_step"])
        if 0 < steps <= step:
            return step, 0  # all that is missing is the result
        words = [f"--ckpt_path={last}"]  # which has the same options
        if saved_options.read(content[checkpoint.KEY]["run"]) == planned.options:
            words.append("--trust_checkpoint=true")  # the user's own study names them
    try:
        with quiet(), contextlib.ExitStack() as held:
            held.callback(signals.take, None)  # what comes from then on stops the study
            cli = GptlitCLI("fit", words, held, place=place)
        return cli.trainer.global_step, cli.stopping.asked
    except NothingToTrain:
        if step is None:
            raise
        return step, 0  # that was the last of its epochs


def _told(error: Exception) -> str:
    if is_out_of_memory(error):
        return MEMORY_ADVICE
    if isinstance(error, UsageError | RunError):
        return str(error).split("; ")[0]
    return " ".join(f"{type(error).__name__}: {error}".split())


def _forget() -> None:
    """Leave nothing of a run to the next one."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if "torch._dynamo" in sys.modules:
        # of one function it compiles a few sizes only, and then computes all others uncompiled
        torch._dynamo.reset()


def _outcome(study: Study, planned: Planned, place: Path, failed: str = "") -> Outcome:
    """What a run found, from its folder."""
    failed = failed or result(place)["failed"]
    if failed:
        return Outcome(planned.setup, failed=failed)
    metrics = place / "metrics.csv"
    curve = logged(metrics, study.metric)
    if not curve:
        return Outcome(
            planned.setup, failed=f"{study.metric} was not logged; choose another metric"
        )
    at = max(curve) if study.at == "end" else min(curve, key=lambda each: (curve[each], each))
    known = {name: logged(metrics, name) for name in METRICS}
    # what the metric took; steps after the best validation have no part in it
    step = at if study.at == "best" else result(place)["step"]
    tokens = step * planned.tokens_per_step
    figures: dict[str, float] = {name: values[at] for name, values in known.items() if at in values}
    figures |= {"step": at, "parameters": planned.parameters, "tokens": tokens}
    figures["flops"] = tokens * planned.flops_per_token
    if timed := logged(metrics, "speed/step_ms"):
        figures["seconds"] = step * statistics.fmean(timed.values()) / 1e3
    return Outcome(planned.setup, figures, curve, text=planned.text)


def _search(study: Study, folder: Path, make: Callable[[Planned], Outcome], remake: bool) -> None:
    """Let optuna choose each setting by what those before it found (TPE, Bergstra et al. 2011).

    Its choices follow from its seed and the results, so that going on is making them again.
    """
    import optuna

    assert study.search is not None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=study.search.seed))
    for _ in range(study.search.runs):
        trial = trials.ask()
        values = {name: _suggested(trial, name, c) for name, c in study.search.over.items()}
        planned = plan_all(study, study.of(values))
        clear_changed(planned, folder, remake)
        found = [make(each).figures.get(study.metric) for each in planned]
        known = [value for value in found if value is not None]
        if len(known) == len(found):
            trials.tell(trial, statistics.fmean(known))
        else:
            trials.tell(trial, state=optuna.trial.TrialState.FAIL)


def _suggested(trial: Any, name: str, choice: Choice) -> Any:
    if not isinstance(choice, Range):
        return choice[trial.suggest_categorical(name, list(range(len(choice))))]
    suggest = trial.suggest_int if choice.is_whole else trial.suggest_float
    return choice.rounded(suggest(name, choice.low, choice.high, log=choice.log))


# ---------------------------------------------------------------------- what they show


def _report(study: Study, outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write results.csv and the plots; print the table."""
    files = {"results.csv": tables.as_csv(study, outcomes)}
    files |= tables.plots(study, outcomes)
    for name, content in files.items():
        write_atomically(folder / name, content.encode())
    print(tables.table(study, outcomes, terminal.columns()), end="")
    for line in _remarks(study, outcomes):
        print("\n".join(terminal.wrapped(line, terminal.columns())))
    note(f"in {folder}: {', '.join(files)}, and each run's folder and log")


def _remarks(study: Study, outcomes: Sequence[Outcome]) -> Iterator[str]:
    if study.power_law is not None:
        yield from tables.told_of_law(study, outcomes)
    for line in tables.warnings(study, outcomes):
        yield f"warning: {line}"
