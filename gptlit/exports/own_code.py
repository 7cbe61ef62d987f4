"""Writes gptlit's GPT and its frame for transformers as one file, for models that no class holds.

The file is made of gptlit's own source, so that there is one text of every part. What only
training or checks need is left out.
"""

import ast
import dataclasses
import inspect
import itertools
import re
from collections.abc import Sequence
from typing import Any

from gptlit.checkpoints.weight_files import OWN_TYPE
from gptlit.model import activations, attention, config, gpt, input_noise, positions
from gptlit.model.config import GPTConfig

FILENAME = "modeling_gptlit.py"
ARCHITECTURE = "GPTLitForCausalLM"
MODULE = FILENAME.removesuffix(".py")
# what the file does without: definitions, and methods by class
_LEFT_OUT = ("__all__", "SIZES_BELOW", "LARGEST_BLOCK", "SMALLEST")
_METHODS_LEFT_OUT: dict[str, tuple[str, ...]] = {
    "GPTConfig": ("__post_init__", "_require", "_check_sizes", "_check_combinations"),
    "GPT": ("num_parameters",),
    "KVCache": ("resized",),
}
# exported weights have LoRA's changes added to them
_LORA = re.compile(r"^ +if config\.lora_r:\n +lora\.adapt\(self, config\)\n", re.MULTILINE)
_HEAD = '''"""A GPT that gptlit trained, as a model of transformers, in plain PyTorch.

Load it by AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True). The file was made
by `gptlit export` of gptlit's source, without what only training needs.

Shapes: B batch, T time, V vocabulary, C channels (`n_embd`).
"""'''


def source() -> str:
    """Return the content of `modeling_gptlit.py`."""
    modules = (config, activations, positions, input_noise, attention, gpt)
    texts = [*map(inspect.getsource, modules), _frame()]
    parts = [part for text in texts for part in _definitions(text)]
    body = parts[0]
    for before, part in itertools.pairwise(parts):
        # two blank lines around a class or function, as in gptlit
        blank = "" if _is_line(before) and _is_line(part) else "\n\n"
        body += f"\n{blank}{part}"
    body = _LORA.sub("", body)
    body = re.sub(r"  # (type: ignore|noqa).*", "", body).replace("attention.BACK", "BACK")
    return f"{_HEAD}\n\n{_imports(texts, body)}\n\n{body}\n"


def _is_line(part: str) -> bool:
    return "\n" not in part


def _imports(texts: Sequence[str], body: str) -> str:
    """Return the imports of modules outside gptlit, without names that the body doesn't use."""
    plain: set[str] = set()
    named: dict[str, set[str]] = {}
    for node in itertools.chain.from_iterable(ast.parse(text).body for text in texts):
        if isinstance(node, ast.Import):
            name = node.names[0].asname or node.names[0].name
            plain |= {ast.unparse(node)} if re.search(rf"\b{name}\.", body) else set()
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("gptlit"):
            used = {each.name for each in node.names if re.search(rf"\b{each.name}\b", body)}
            named.setdefault(node.module or "", set()).update(used)
    lines = [f"from {name} import {', '.join(sorted(names))}" for name, names in named.items()]
    return "\n".join(sorted(plain) + sorted(lines))


def options(config: GPTConfig) -> dict[str, Any]:
    """Return the content of config.json for the file's classes."""
    described = dataclasses.asdict(dataclasses.replace(config, token_noise=0.0, token_dropout=0.0))
    return {
        "architectures": [ARCHITECTURE],
        "model_type": OWN_TYPE,
        "auto_map": {
            "AutoConfig": f"{MODULE}.GPTLitConfig",
            "AutoModelForCausalLM": f"{MODULE}.{ARCHITECTURE}",
        },
        **described,
        "dropout_at": list(config.dropout_at),
        "lora_on": list(config.lora_on),
        "tie_word_embeddings": config.tie_weights,
    }


def _frame() -> str:
    """Return the source of `modeling`, which can't be imported without transformers."""
    from importlib import resources

    return resources.files("gptlit.exports").joinpath("modeling.py").read_text(encoding="utf-8")


def _definitions(text: str) -> list[str]:
    """Return the source of a module's definitions, with their comments, but what is left out."""
    lines, parts = text.splitlines(), []
    body = ast.parse(text).body
    for before, node in zip([None, *body], body, strict=False):
        if isinstance(node, (ast.Import, ast.ImportFrom)) or _is_docstring(node):
            continue
        if _name(node) in _LEFT_OUT:
            continue
        start = _first_line(node)
        # comments above a definition belong to it
        floor = before.end_lineno or 0 if before is not None else 0
        while start > floor and lines[start - 1].startswith("#"):
            start -= 1
        skipped = {
            line
            for child in getattr(node, "body", ())
            if _name(child) in _METHODS_LEFT_OUT.get(_name(node), ())
            for line in range(_first_line(child), (child.end_lineno or 0) + 1)
        }
        numbers = range(start, node.end_lineno or 0)
        parts.append("\n".join(lines[n] for n in numbers if n not in skipped).rstrip())
    return parts


def _first_line(node: ast.stmt) -> int:
    """Return the index of a definition's first line, decorators included."""
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)]) - 1


def _name(node: ast.stmt) -> str:
    """Return the name that a statement defines, the first of several; "" for none."""
    target = node.targets[0] if isinstance(node, ast.Assign) else node
    target = target.elts[0] if isinstance(target, ast.Tuple) else target
    return target.id if isinstance(target, ast.Name) else getattr(target, "name", "")


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
