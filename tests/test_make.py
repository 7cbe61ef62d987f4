"""`make` installs once, and the hooks and the workflow run the same checks."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def planned(folder: Path, goal: str) -> str:
    # if make runs the tests, it passes its flags in these variables
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    done = subprocess.run(
        ["make", "--dry-run", goal, "ARGS=--some flag"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    return done.stdout


@pytest.mark.parametrize("goal", ["train", "test"])
def test_a_clone_is_set_up_once(tmp_path: Path, goal: str) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    first = planned(tmp_path, goal)
    assert "-m venv .venv" in first
    assert "--constraint constraints.txt --editable ." in first
    assert ("[dev]" in first) == (goal == "test")
    assert "--some flag" in first
    (tmp_path / ".venv").mkdir()
    for stamp in (".made", ".installed", ".installed-dev"):
        (tmp_path / ".venv" / stamp).touch()
    second = planned(tmp_path, goal)
    assert "pip" not in second
    assert "venv .venv" not in second
    assert "--some flag" in second


def test_the_commit_hooks_run_what_make_check_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    entries = [hook["entry"] for repo in hooks["repos"] for hook in repo["hooks"]]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = makefile.partition("\ncheck:")[2].partition("\n\n")[0]
    commands = [line.strip() for line in recipe.splitlines() if line.startswith("\t")]
    assert [command.replace("$(BIN)", ".venv/bin") for command in commands] == entries


def test_continuous_integration_runs_the_repositorys_script() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    steps = yaml.safe_load(workflow)["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
