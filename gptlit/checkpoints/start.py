"""Start: the checkpoint that a command resumes, evaluates or writes with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptlit.checkpoints import checkpoint


@dataclass(frozen=True)
class Start:
    """A checkpoint that a command starts from.

    Args:
        path: Path of the checkpoint.
        content: Everything in it.
    """

    path: Path
    content: dict[str, Any]

    @property
    def described(self) -> dict[str, Any]:
        """gptlit's own entry: config, tokenizer, text, run, seed."""
        return self.content[checkpoint.KEY]

    @property
    def step(self) -> int:
        """Number of optimizer steps before it was saved."""
        return int(self.content["global_step"])
