"""Arrows point down only: each module imports nothing of a floor above its own."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gptlit
from tests.conftest import Run

PACKAGE = Path(gptlit.__file__).parent
GROUND = {
    "messages",
    "plain",
    "torch_files",
    "signals",
    "assets",
    "unpacking",
    "rows",
    "text_encodings",
    "foreign",
    "cleaning",
    "config",
    "splits",
    "streams",
    "startup",
    "union_errors",
    "terminal",
    "attention",
    "sampling",
    "muon",
    "averaging",
    "metrics",
    "charts",
    "scaling",
    "small_texts",
    "packing",
    "order",
    "compiling",
    "yaml_keys",
    "own_modules",
    "plain_values",
    "readable",
}
FIRST = {
    "metrics_file",
    "corpora",
    "inputs",
    "markup",
    "reading",
    "encodings",
    "tokenizer",
    "tokens",
    "spool",
    "passes",
    "journal",
    "preparing",
    "loaders",
    "losses",
    "optim",
    "model",
    "decoding",
    "drafts",
    "beams",
    "weights",
    "states",
    "interchange",
    "weight_files",
    "tokenizer_files",
    "nanogpt",
    "origins",
    "exchange",
    "generation",
    "checkpoint",
    "accounting",
    "preflight",
    "resuming",
    "parser",
    "arguments",
    "shorthand",
    "plans",
    "prompts",
    "modes",
    "stages",
    "sweep",
    "sweep_tables",
    "explain",
    "interactive",
    "predict",
    "survey",
}
SECOND = {
    "data",
    "figures",
    "adapting",
    "overfitting",
    "sharding",
    "training",
    "progress",
    "own_batches",
    "progress_bar",
    "callbacks",
    "guard",
    "stopping",
    "event_files",
    "records",
    "saving",
    "runs",
    "launching",
    "trainer_parts",
    "trusted_options",
    "endings",
    "quiet",
    "summary",
    "study_tables",
    "rates",
}
TOP = {"cli", "planning", "study", "predict_devices", "__main__", "__init__"}
FLOORS = [GROUND, FIRST, SECOND, TOP]


def imports(module: str) -> set[str]:
    """Dotted names that a module imports anywhere, functions included."""
    tree = ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor(module: str) -> int:
    return next(index for index, names in enumerate(FLOORS) if module in names)


def of_gptlit(module: str) -> set[str]:
    parts = [name.split(".") for name in imports(module)]
    names = {part[1] for part in parts if part[0] == "gptlit" and len(part) > 1}
    return {name for name in names if (PACKAGE / f"{name}.py").exists()}


MODULES = sorted(path.stem for path in PACKAGE.glob("*.py"))


def test_every_module_has_a_floor() -> None:
    assert set(MODULES) == set().union(*FLOORS)


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_points_up(module: str) -> None:
    above = {name for name in of_gptlit(module) if floor(name) > floor(module)}
    assert not above


@pytest.mark.parametrize("module", sorted(GROUND - {"messages"}))
def test_the_ground_floor_knows_only_how_to_speak(module: str) -> None:
    assert of_gptlit(module) <= {"messages", "plain"}


def test_no_circles() -> None:
    below = {module: of_gptlit(module) for module in MODULES}
    TopologicalSorter(below).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", sorted(GROUND | FIRST))
def test_below_the_second_floor_there_is_no_lightning(module: str) -> None:
    assert not [name for name in imports(module) if name.split(".")[0] == "lightning"]


@pytest.mark.parametrize(
    ("statements", "absent"),
    [
        ("main(['--help']); main(['--version'])", "torch"),
        ("import gptlit", "torch"),
        ("assert main(['data', 'list']) == 0", "torch"),
        ("assert main(['predict', '--ckpt_path', CKPT, '--num_samples=2']) == 0", "lightning"),
        ("gptlit.generate(*gptlit.load(CKPT), 'the')", "lightning"),
        ("assert main(['predict', '--ckpt_path', CKPT, '--greedy']) == 0", "tiktoken"),
    ],
)
def test_what_is_not_needed_is_not_imported(run: Run, statements: str, absent: str) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    found = f"any(module.split('.')[0] == {absent!r} for module in sys.modules)"
    code = f"""
import sys, gptlit
from gptlit.__main__ import main
CKPT = {str(path)!r}
{statements}
sys.exit(7 if {found} else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
