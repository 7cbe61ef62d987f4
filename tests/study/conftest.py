"""A study of tiny runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import TINY

OPTIONS = ["--trainer.max_steps=8", "--trainer.val_check_interval=4"]


@pytest.fixture
def mine(tmp_path: Path, text_file: Path) -> Callable[..., Path]:
    """A function that writes a study of tiny runs on a text of its own."""

    def write(**content: Any) -> Path:
        words = [*TINY[1:], *OPTIONS, f"--data.path={text_file}"]
        options = dict(word.removeprefix("--").split("=") for word in words)
        study = {"config": "tiny.yaml", "options": options, **content}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return path

    return write
