"""An installed wheel works outside the source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BUILD = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.egg-info")


def run_installed(cwd: Path, installed: Path, *arguments: str) -> str:
    """Run Python with the unpacked wheel ahead of the source tree; return its output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.timeout(120)
def test_a_wheel_has_all_it_needs(tmp_path: Path) -> None:
    source, installed, away = (tmp_path / name for name in ("source", "installed", "away"))
    for folder in ("gptlit", "configs"):
        shutil.copytree(ROOT / folder, source / folder, ignore=LEFT_OUT)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([sys.executable, "-c", BUILD], cwd=source, capture_output=True, check=True)
    (wheel,) = (source / "dist").glob("*.whl")
    zipfile.ZipFile(wheel).extractall(installed)
    assert (installed / "gptlit" / "py.typed").exists()
    files = {path.relative_to(source) for path in (source / "gptlit").rglob("*") if path.is_file()}
    assert not [path for path in files if not (installed / path).exists()]

    away.mkdir()
    text = away / "my.txt"
    text.write_text("To be, or not to be, that is the question.\n" * 40)
    fit = ["fit", "--config=tiny.yaml", f"--data.path={text}", "--trainer.max_steps=2"]
    for arguments in (["--help"], fit):
        run_installed(away, installed, "-m", "gptlit", *arguments)
    where = run_installed(away, installed, "-c", "import gptlit; print(gptlit.__file__)")
    assert where.startswith(str(installed))
    assert (away / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt").exists()
