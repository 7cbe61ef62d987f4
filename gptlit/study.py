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
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from gptlit import accounting, checkpoint, plans, resuming, runs, study_tables, terminal
from gptlit.arguments import find_study, shipped_studies, take
from gptlit.assets import write_atomically
from gptlit.callbacks import duration
from gptlit.cli import GptlitCLI
from gptlit.guard import NotFinite
from gptlit.messages import MEMORY_ADVICE, RunError, UsageError, is_out_of_memory, note
from gptlit.model import GPT
from gptlit.parser import with_environment
from gptlit.plans import METRICS, Choice, Range, Setup, Study
from gptlit.quiet import quiet
from gptlit.stages import logged
from gptlit.study_tables import Outcome

RESULT = "result.json"  # in the folder of a run that came to its end
FLAGS = ("--remake", "--dry_run")
HELP = """usage: gptlit study STUDY.yaml [--name NAME] [--dry_run] [--remake] [options of fit]

Make the runs of a study file, and compare them by a table and plots. The same command again goes
on where it was stopped: what is done stays, and an interrupted run goes on at its last step.

  STUDY.yaml   a path, or one of the shipped
               {shipped}
  --name NAME  the runs lie under lightning_logs/NAME; the file's name when left out
  --dry_run    tell the runs, and make none
  --remake     make runs anew that were made with other options; without it they are refused

Options of gptlit fit, such as --trainer.max_steps 50, hold for all runs and win over the file's."""


@dataclass(frozen=True)
class Planned:
    """A run of which all is known but what it finds.

    Args:
        setup: The run.
        options: All options of it, as its config.yaml would have them.
        parameters: Of its model.
        tokens_per_step: What an optimizer step sees.
        flops_per_token: Of training, forward and backward.
        text: Which text it is validated on.
    """

    setup: Setup
    options: dict[str, Any]
    parameters: int
    tokens_per_step: int
    flops_per_token: float
    text: str


def main(argv: Sequence[str]) -> None:
    """Run `gptlit study` with these arguments.

    Raises:
        UsageError: a study, an option or a folder that can't work; before any run begins.
        SystemExit: stopped (130, 143), or a run failed to be made (1).
    """
    if {"-h", "--help"} & set(argv):
        print(HELP.format(shipped=_shipped()))
        return
    if not argv or argv[0].startswith("-"):
        raise UsageError(
            "no study file; say gptlit study STUDY.yaml, a path or one of the shipped " + _shipped()
        )
    names, words = take(with_environment("study", argv[1:]), "--name")
    path = find_study(argv[0])
    study = plans.read(path, [word for word in words if word not in FLAGS])
    if study.search and study.search.by == "optuna" and not importlib.util.find_spec("optuna"):
        raise UsageError(
            f"{path}: random: by: optuna: is not installed; pip install 'gptlit[optuna]', or give "
            "by: random"
        )
    folder = checkpoint.RUNS / _checked(names[-1] if names else path.stem)
    shown = _Unseen(sys.stderr)  # what preparing the same text tells again and again
    with contextlib.redirect_stderr(shown):
        planned = [plan(study, setup) for setup in study.setups()]
    if "--dry_run" in words:
        _tell_plan(study, planned, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with runs.alone(folder, "make this one elsewhere by --name"):
        remake = "--remake" in words
        _clear_changed(planned, folder, remake)
        again = shlex.join(["gptlit", "study", *(word for word in argv if word not in FLAGS)])
        outcomes = _make_all(study, planned, folder, again, remake)
        _report(study, outcomes, folder)
    if any(each.failed and not _is_result(folder / each.setup.name) for each in outcomes):
        raise SystemExit(1)


def _shipped() -> str:
    return ", ".join(Path(name).stem for name in shipped_studies())


def _checked(name: str) -> str:
    if name != Path(name).name or name in ("", "..") or checkpoint.version_number(Path(name)) >= 0:
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


# ---------------------------------------------------------------------- before any run


def plan(study: Study, setup: Setup) -> Planned:
    """Parse the options of a run, and read its text, so that what can't work is refused.

    Raises:
        UsageError: names the run and the option.
    """
    found: list[Planned] = []

    def look(cli: GptlitCLI) -> None:
        _check(study, cli)
        cli.prepare()
        text = cli.datamodule
        config = {**vars(cli.model.config), "vocab_size": text.tokenizer.vocab_size}
        with torch.device("meta"):
            net = GPT(type(cli.model.config)(**config))
        found.append(
            Planned(
                setup,
                yaml.safe_load(cli.options_as_yaml),
                net.num_parameters(),
                text.windows_per_step * text.block_size,
                accounting.training_flops_per_token(net),
                _validated_on(text.describe_text()),
            )
        )

    try:
        with quiet(), contextlib.ExitStack() as held:
            GptlitCLI("fit", setup.words, held, look=look)
    except UsageError as error:
        raise UsageError(f"{setup.name}: {error}") from error
    return found[0]


def _check(study: Study, cli: GptlitCLI) -> None:
    trainer, options = cli.trainer, cli.options.trainer
    if trainer.world_size > 1:
        raise UsageError(
            f"--trainer.devices {options.devices}: a study's runs are of one process each; give "
            "--trainer.devices 1, or make them one by one by gptlit fit"
        )
    every, steps = options.val_check_interval, trainer.max_steps
    by_steps = isinstance(every, int) and trainer.check_val_every_n_epoch is None
    if study.at == "end" and by_steps and steps > 0:
        every //= trainer.accumulate_grad_batches  # which is counted in batches by now
        if steps > every and steps % every:
            raise UsageError(
                f"--trainer.val_check_interval {every}: the last validation would be at step "
                f"{steps // every * every} of {steps}, and ends are compared; give a divisor of "
                f"{steps}, or at: best in the study"
            )


def _validated_on(text: dict[str, Any]) -> str:
    own = text["own_texts"].get("val")
    return json.dumps(own[1] if own else [text["sha256"], text["sizes"]["val"]["bytes"]])


def _tell_plan(study: Study, planned: Sequence[Planned], folder: Path) -> None:
    if not planned and study.search:
        print(f"{study.search.runs} runs, each chosen by what those before it found")
    for each in planned:
        place = folder / each.setup.name
        last = place / "checkpoints" / "last.ckpt"
        state = "done" if _is_result(place) else "begun" if last.exists() else "to make"
        tokens = each.options["trainer"]["max_steps"] * each.tokens_per_step
        seen = f", {tokens:,} tokens" if tokens > 0 else ""
        print(f"{each.setup.name}: {each.parameters:,} parameters{seen}, {state}")


def _clear_changed(planned: Sequence[Planned], folder: Path, remake: bool) -> None:
    """Refuse, or remove, runs that were made with other options.

    Raises:
        UsageError: names the first, and what differs.
    """
    changed: dict[Path, str] = {}
    for each in planned:
        place = folder / each.setup.name
        if difference := _difference(each, place):
            changed[place] = difference
    if changed and not remake:
        place, difference = next(iter(changed.items()))
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise UsageError(
            f"{place}{others}: made with other options: {difference}; --remake makes anew what "
            "differs, --name OTHER keeps both"
        )
    for place in changed:
        shutil.rmtree(place)


def _difference(planned: Planned, place: Path) -> str:
    """What a run that is there, or was begun, was made with otherwise."""
    config = place / runs.CONFIG
    if not config.is_file():
        if place.is_dir() and any(place.iterdir()):
            raise UsageError(f"{place}: is there, and is no run; name another study by --name")
        return ""
    before = yaml.safe_load(config.read_text(encoding="utf-8")) or {}
    for name, old, new in resuming.changed(before, planned.options):
        return f"--{name} {json.dumps(old)}, now {json.dumps(new)}"
    if _is_result(place) and _result(place)["text"] != planned.text:
        return "another text"
    return ""


# ---------------------------------------------------------------------- the runs


def _is_result(place: Path) -> bool:
    return (place / RESULT).is_file()


def _result(place: Path) -> dict[str, Any]:
    return json.loads((place / RESULT).read_text(encoding="utf-8"))


def _make_all(
    study: Study, planned: Sequence[Planned], folder: Path, again: str, remake: bool
) -> list[Outcome]:
    """Make what isn't made yet; a line for each run.

    Raises:
        SystemExit: stopped, with the command that goes on.
    """
    many = study.search.runs * len(study.seeds) if study.search and not planned else len(planned)
    outcomes: list[Outcome] = []
    taken: list[float] = []  # seconds

    def make(each: Planned) -> Outcome:
        place, count = folder / each.setup.name, f"[{len(outcomes) + 1}/{many}] {each.setup.name}: "
        if _is_result(place):
            outcomes.append(_outcome(study, each, place))
            return outcomes[-1]
        print(count, end="", file=sys.stderr, flush=True)
        began = time.perf_counter()
        try:
            failed = _make(each, place)
        except (SystemExit, KeyboardInterrupt) as stop:
            print("stopped", file=sys.stderr)
            note(f"{len(outcomes)} of {many} runs are done; {again} goes on")
            raise SystemExit(stop.code if isinstance(stop, SystemExit) else 130) from None
        taken.append(time.perf_counter() - began)
        outcomes.append(outcome := _outcome(study, each, place, failed))
        value = outcome.figures.get(study.metric)
        left = statistics.fmean(taken) * (many - len(outcomes))
        told = outcome.failed or f"{study.metric} {value:.4f}, {duration(taken[-1])}"
        told += f"; about {duration(left)} to go" if left else ""
        print(told, file=sys.stderr, flush=True)
        return outcome

    if done := sum(_is_result(folder / each.setup.name) for each in planned):
        note(f"{done} of {many} runs are done already")
    for each in planned:
        make(each)
    if not planned and study.search:
        _search(study, folder, make, remake)
    return outcomes


def _make(planned: Planned, place: Path) -> str:
    """Make a run, or go on with it, quietly; returns why it failed, or "".

    Raises:
        SystemExit, KeyboardInterrupt: asked to stop.
    """
    last = place / "checkpoints" / "last.ckpt"
    if not last.is_file() and place.is_dir():
        shutil.rmtree(place)  # nothing was saved
    log = place.with_name(f"{place.name}.log").open("a", encoding="utf-8")
    with log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        try:
            step = _fit(planned, place, last)
        except Exception as error:
            failed = _told(error)
            traceback.print_exc()
            if not isinstance(error.__cause__, NotFinite):
                return failed  # it is tried again by the same command
            step = 0
        else:
            failed = ""
        finally:
            _forget()
    place.mkdir(exist_ok=True)
    if not (place / runs.CONFIG).is_file():  # of a run that diverged at once
        (place / runs.CONFIG).write_text(yaml.safe_dump(planned.options), encoding="utf-8")
    result = {"step": step, "text": planned.text, "failed": failed}
    write_atomically(place / RESULT, json.dumps(result).encode())
    return failed


def _fit(planned: Planned, place: Path, last: Path) -> int:
    """Train to the end; returns the steps of the run."""
    words = planned.setup.words
    if last.is_file():
        step, steps = checkpoint.read(last)["global_step"], planned.options["trainer"]["max_steps"]
        if 0 < steps <= step:
            return step  # all that is missing is the result
        words = [f"--ckpt_path={last}"]  # which has the same options
    with quiet(), contextlib.ExitStack() as held:
        cli = GptlitCLI("fit", words, held, place=place)
    return cli.trainer.global_step


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
    failed = failed or _result(place)["failed"]
    if failed:
        return Outcome(planned.setup, failed=failed)
    metrics, step = place / "metrics.csv", _result(place)["step"]
    curve = logged(metrics, study.metric)
    if not curve:
        return Outcome(
            planned.setup, failed=f"{study.metric} was not logged; choose another metric"
        )
    at = max(curve) if study.at == "end" else min(curve, key=lambda each: (curve[each], each))
    known = {name: logged(metrics, name) for name in METRICS}
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
        planned = [plan(study, setup) for setup in study.of(values)]
        _clear_changed(planned, folder, remake)
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
    """Print the table; write results.csv and the plots."""
    print(study_tables.table(study, outcomes, terminal.columns()), end="")
    for line in _remarks(study, outcomes):
        print("\n".join(terminal.wrapped(line, terminal.columns())))
    files = {"results.csv": study_tables.as_csv(study, outcomes)}
    files |= study_tables.plots(study, outcomes)
    for name, content in files.items():
        write_atomically(folder / name, content.encode())
    note(f"in {folder}: {', '.join(files)}, and each run's folder and log")


def _remarks(study: Study, outcomes: Sequence[Outcome]) -> Iterator[str]:
    if study.power_law is not None:
        yield from study_tables.told_of_law(study, outcomes)
    for line in study_tables.warnings(study, outcomes):
        yield f"warning: {line}"
