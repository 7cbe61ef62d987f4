"""The examples and the notebook run, on tiny sizes."""

import csv
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import nbclient
import nbformat
import pytest

import gptlit as package
from tests.conftest import TINY, Result, Run

Call = Callable[..., Result]
EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(cwd: Path, name: str, *arguments: object) -> str:
    """Run a script in a process of its own and return its standard output."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_training_from_python(run: Run, tmp_path: Path) -> None:
    printed = run_example(tmp_path, "train_from_python.py", run.text, 2)
    assert re.search(r"^val/loss \d+\.\d{3}$", printed, flags=re.MULTILINE)
    model, tokenizer = package.load(tmp_path / "mine.ckpt")
    assert len(package.generate(model, tokenizer, "the", max_new_tokens=4)) == 7


def test_generating(run: Run) -> None:
    assert run_example(run.cwd, "generate.py").startswith("ROMEO:")


def test_a_sampler_of_ones_own(run: Run) -> None:
    printed = run_example(run.cwd, "own_sampler.py", "the")
    assert printed.startswith("the")
    assert len(printed.rstrip("\n")) > 150


def test_a_callback_of_ones_own(gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    callback = "--trainer.callbacks+=own_callback.TokensPerSecond"
    result = gptlit("fit", *TINY, f"--data.path={run.text}", "--max_steps=2", callback)
    assert result.code == 0
    assert re.search(r"^step 2: [\d,]+ tokens/s$", result.out + result.err, flags=re.MULTILINE)


def test_prompts_from_a_csv(run: Run, tmp_path: Path) -> None:
    (tmp_path / "lightning_logs").symlink_to(run.folder.parent)
    (tmp_path / "prompts.csv").write_text("id,prompt\n1,the\n2,FOOL:\n")
    assert run_example(tmp_path, "prompts_from_csv.py", "prompts.csv", "texts.csv").startswith("2 ")
    with (tmp_path / "texts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["1", "2"]
    assert all(row["text"].startswith(row["prompt"]) for row in rows)


def test_plotting_a_run(run: Run, tmp_path: Path) -> None:
    run_example(tmp_path, "plot_run.py", run.folder, "run.svg")
    text = "".join(ElementTree.parse(tmp_path / "run.svg").getroot().itertext())
    assert "val/loss" in text
    assert "step 40, val/loss" in text


@pytest.mark.timeout(120)
def test_the_notebook_runs_from_top_to_bottom(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    settings = next(cell for cell in notebook.cells if cell.source.startswith("path = "))
    settings.source = f"path = {str(run.text)!r}\nmax_steps = 20"
    client = nbclient.NotebookClient(
        notebook, timeout=100, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs)
    printed = "".join(output.get("text", "") for output in outputs)
    assert "nats per token" in printed


def test_every_example_is_listed_and_tested() -> None:
    listed = re.findall(
        r"^\| \[`(.+?)`\]", (EXAMPLES / "README.md").read_text(), flags=re.MULTILINE
    )
    found = [path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")]
    assert sorted(listed) == sorted(found)
    tests = Path(__file__).read_text()
    assert all(name.removesuffix(".py") in tests for name in found)
