"""The Modelfile with which ollama takes a GGUF file, and the commands to type."""

import re
import shlex
from pathlib import Path

from gptlit.generation.settings import DEFAULTS

FILENAME = "Modelfile"


def content(gguf: str, block_size: int) -> str:
    """Return a Modelfile whose settings are those of `gptlit predict`.

    Args:
        gguf: Name of the GGUF file beside it.
        block_size: Context length of the model.
    """
    parameters = {
        "num_ctx": block_size,
        "temperature": DEFAULTS.temperature,
        # ollama's own defaults draw from the 40 likeliest tokens and penalise repetitions
        "top_k": 0 if DEFAULTS.top_k is None else DEFAULTS.top_k,
        "top_p": 1.0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
    }
    lines = [f"FROM ./{gguf}", 'TEMPLATE "{{ .Prompt }}"']
    return "\n".join(lines + [f"PARAMETER {name} {v}" for name, v in parameters.items()]) + "\n"


def commands(folder: Path, prompt: str) -> list[str]:
    """Return the commands that make a model of ollama of a folder, and write with it."""
    name = re.sub(r"[^a-z0-9._-]+", "-", folder.resolve().name.lower()).strip("-._") or "gptlit"
    return [
        f"ollama create {name} -f {shlex.quote(str(folder / FILENAME))}",
        f"ollama run {name} {shlex.quote(prompt)}",
    ]
