"""The folders in one order: a file imports from its own folder and from those before it."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gptlit
from tests.conftest import Run

PACKAGE = Path(gptlit.__file__).parent
GROUND, ENTRY = "", "__main__"  # the files beside the folders; the entry is above them all
FOLDERS = [
    GROUND,
    "charts",
    "devices",
    "tokenizers",
    "optim",
    "model",
    "corpora",
    "checkpoints",
    "data",
    "generation",
    "insight",
    "exports",
    "steps",
    "training",
    "runs",
    "cli",
    "predict",
    "serve",
    "study",
    "reports",
    "look",
    ENTRY,
]
WITHOUT_LIGHTNING = FOLDERS[: FOLDERS.index("exports") + 1]
# what a notebook or the command line needs of these is loaded late
LIGHTNING_ALLOWED = {"data.datamodule"}
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)


def path_of(module: str) -> Path:
    return PACKAGE / f"{module.replace('.', '/')}.py"


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def of_gptlit(module: str) -> set[str]:
    """The modules of gptlit that a module imports."""
    own = {name.removeprefix("gptlit.") for name in imports(path_of(module)) if "gptlit" in name}
    return {each for each in MODULES if any(f"{name}.".startswith(f"{each}.") for name in own)}


def floor(module: str) -> int:
    folder, dot, _ = module.partition(".")
    return FOLDERS.index(folder if dot or module == ENTRY else GROUND)


def test_every_folder_has_its_place() -> None:
    assert {module.partition(".")[0] for module in MODULES if "." in module} == {*FOLDERS} - {
        GROUND,
        ENTRY,
    }


@pytest.mark.parametrize("module", MODULES)
def test_a_file_imports_from_its_own_folder_and_from_those_before_it(module: str) -> None:
    assert not {name for name in of_gptlit(module) if floor(name) > floor(module)}


def test_no_cycles() -> None:
    # raises CycleError, which names the modules
    TopologicalSorter({module: of_gptlit(module) for module in MODULES}).prepare()


@pytest.mark.parametrize("folder", sorted({*FOLDERS} - {GROUND, ENTRY}))
def test_a_folder_says_what_belongs_there_and_imports_nothing(folder: str) -> None:
    path = PACKAGE / folder / "__init__.py"
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert not imports(path)
    assert 2 <= len([each for each in MODULES if each.startswith(f"{folder}.")]) <= 16


def test_all_folders_are_installed() -> None:
    root = PACKAGE.parent
    options = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    folders = {f"gptlit.{folder}" for folder in {*FOLDERS} - {GROUND, ENTRY}}
    assert {*options["tool"]["setuptools"]["packages"]} == {"gptlit", "gptlit.configs", *folders}


@pytest.mark.parametrize(
    "module",
    [each for each in MODULES if FOLDERS[floor(each)] in WITHOUT_LIGHTNING],
)
def test_plain_torch_below(module: str) -> None:
    if module not in LIGHTNING_ALLOWED:
        assert not [name for name in imports(path_of(module)) if name.startswith("lightning")]


@pytest.mark.parametrize(
    ("statements", "absent"),
    [
        ("main(['--help']); main(['--version'])", "torch"),
        ("import gptlit", "torch"),
        ("assert main(['data', 'list']) == 0", "torch"),
        ("assert main(['predict', '--ckpt_path', CKPT, '--num_samples=2']) == 0", "lightning"),
        ("from gptlit.study import study_file, tables", "torch"),
        ("from gptlit.study import study_file, tables", "lightning"),
        ("assert main(['runs']) == 0", "torch"),
        ("from gptlit.reports import compare, plot, runs", "torch"),
        ("from gptlit.reports import compare, plot, runs", "lightning"),
        ("from gptlit.cli import advising, data", "torch"),
        ("from gptlit.cli import run_options", "torch"),
        ("from gptlit.cli import run_options", "lightning"),
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
