"""gptlit: train a small GPT on a text and generate text with it.

>>> import gptlit                                                   # doctest: +SKIP
>>> model, tokenizer = gptlit.load("lightning_logs/version_0/checkpoints/best.ckpt")
>>> print(gptlit.generate(model, tokenizer, "ROMEO:"))
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["__version__", "generate", "load"]

if TYPE_CHECKING:
    from gptlit.checkpoints.checkpoint import load
    from gptlit.generation.generate import generate


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # torch takes seconds to import, which `gptlit --version` does without
    modules = {"generate": "generation.generate", "load": "checkpoints.checkpoint"}
    if name not in modules:
        raise AttributeError(f"module 'gptlit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"gptlit.{modules[name]}"), name)
