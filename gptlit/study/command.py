"""`gptlit study`: makes the runs of a study file, then writes a table and plots of the results.

lightning_logs/NAME/
    RUN/  RUN.log  results.csv  plot.svg  curves.svg
"""

import contextlib
import importlib.util
import io
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptlit import terminal
from gptlit.checkpoints import run_paths
from gptlit.cli.arguments import take
from gptlit.cli.configs import find_study, shipped_studies
from gptlit.files import write_atomically
from gptlit.messages import UsageError, note
from gptlit.parser import with_environment
from gptlit.runs import run_folder
from gptlit.study import plots, study_file, tables
from gptlit.study.planning import Planned, clear_changed, is_complete, plan_all
from gptlit.study.run import make_all
from gptlit.study.spec import Study
from gptlit.study.tables import Outcome

FLAGS = ("--remake", "--dry_run")


def main(argv: Sequence[str]) -> None:
    """Run `gptlit study` with these arguments.

    Raises:
        UsageError: An invalid study, option or folder; raised before any run begins.
        SystemExit: The study was stopped (130, 143), or a run failed (1).
    """
    if not argv or argv[0].startswith("-"):
        raise UsageError(
            "no study file; run gptlit study STUDY.yaml with a path or one of the shipped "
            + ", ".join(Path(name).stem for name in shipped_studies())
        )
    names, words = take(with_environment("study", argv[1:]), "--name")
    path = find_study(argv[0])
    folder = _folder(names[-1] if names else path.stem)
    study = study_file.read(path, [word for word in words if word not in FLAGS], folder)
    if study.search and study.search.by == "optuna" and not importlib.util.find_spec("optuna"):
        raise UsageError(
            f"{path}: random: by: optuna: is not installed; pip install 'gptlit[optuna]', or give "
            "by: random"
        )
    # planning several runs on the same text repeats its messages
    with contextlib.redirect_stderr(_DistinctLines(sys.stderr)):
        planned = plan_all(study, study.setups())
    if "--dry_run" in words:
        _print_plan(study, planned, folder)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with run_folder.lock(folder, "make this one elsewhere by --name"):
        remake = "--remake" in words
        clear_changed(planned, folder, remake)
        command = shlex.join(["gptlit", "study", *(word for word in argv if word not in FLAGS)])
        outcomes = make_all(study, planned, folder, command, remake)
        _report(study, outcomes, folder)
    if any(each.failed and not is_complete(folder / each.setup.name) for each in outcomes):
        raise SystemExit(1)


def _folder(name: str) -> Path:
    folder = run_paths.RUNS / name
    is_run = run_paths.version_number(Path(name)) >= 0 or run_paths.is_run(folder)
    if name != Path(name).name or name in ("", "..") or is_run:
        raise UsageError(f"--name {name}: must be a folder's name, and not that of a run")
    return folder


class _DistinctLines(io.TextIOBase):
    """Passes each distinct line to a stream once."""

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


def _print_plan(study: Study, planned: Sequence[Planned], folder: Path) -> None:
    if not planned and study.search:
        print(f"{study.search.runs} runs, each proposed by optuna from earlier results")
    for plan in planned:
        run = folder / plan.setup.name
        last = run / "checkpoints" / "last.ckpt"
        state = "done" if is_complete(run) else "begun" if last.exists() else "to make"
        tokens = plan.options["trainer"]["max_steps"] * plan.tokens_per_step
        size = f"{plan.parameters:,} parameters" + (f", {tokens:,} tokens" if tokens > 0 else "")
        print(f"{plan.setup.name}: {size}, {state}")


def _report(study: Study, outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write results.csv and the plots; print the table and remarks."""
    files = {"results.csv": tables.as_csv(study, outcomes)}
    files |= plots.draw(study, outcomes)
    for name, content in files.items():
        write_atomically(folder / name, content.encode())
    print(tables.table(study, outcomes, terminal.columns()), end="")
    remarks = list(tables.describe_law(study, outcomes)) if study.power_law else []
    remarks += [f"warning: {line}" for line in tables.warnings(study, outcomes)]
    for line in remarks:
        print("\n".join(terminal.wrapped(line, terminal.columns())))
    note(f"in {folder}: {', '.join(files)}, and each run's folder and log")
