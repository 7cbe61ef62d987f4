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
        options: dict[str, Any] = dict(word.removeprefix("--").split("=") for word in words)
        options |= {"model.lr": 3e-3, "model.min_lr": 3e-4, "model.warmup_steps": 20}
        options["model.betas"] = [0.9, 0.95]
        study = {"config": "gpt2_small.yaml", "options": options, **content}
        path = tmp_path / "mine.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False))
        return path

    return write
