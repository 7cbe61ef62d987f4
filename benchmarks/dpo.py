"""Teaches a model to write shorter lines by preferences, and measures whether its text follows.

    python benchmarks/dpo.py CHECKPOINT [--n_pairs 1000] [--steps 200]

Pairs are made of the training text of the checkpoint's run: after the beginning of a speech, the
shorter of two lines of the text is chosen, the longer one rejected. Reported are the figures of the
validation split, and the mean length of the first line that base and result write after 100 names.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gptlit
from gptlit.checkpoints import checkpoint
from gptlit.data.datamodule import TextDataModule

SPEECH = re.compile(r"^([A-Z][A-Za-z .]+:)\n(.+)$", re.MULTILINE)
N_TEXTS = 100


def speeches(path: Path) -> list[tuple[str, str]]:
    """Return (name, first line) of each speech of the text that a checkpoint was trained on."""
    data = TextDataModule.load_from_checkpoint(path)
    data.prepare_data()
    text = data.tokenizer.decode(data.tokens.split("train"))
    return SPEECH.findall(text)


def write_pairs(found: list[tuple[str, str]], n_pairs: int, context: int, path: Path) -> None:
    """Write pairs of lines that differ by a third of their length or more."""
    pick = random.Random(0)
    lines: list[str] = []
    while len(lines) < n_pairs:
        (name, one), (_, other) = pick.choice(found), pick.choice(found)
        chosen, rejected = sorted((one, other), key=len)
        if len(chosen) < 2 / 3 * len(rejected) and len(name) + len(rejected) + 2 <= context:
            pair = {"prompt": f"{name}\n", "chosen": f"{chosen}\n", "rejected": f"{rejected}\n"}
            lines.append(json.dumps(pair))
    path.write_text("\n".join(lines), encoding="utf-8")


def first_lines(path: Path, names: list[str]) -> list[str]:
    """Return the first line that a model writes after each name."""
    model, tokenizer = gptlit.load(path)
    lines = []
    for seed, name in enumerate(names):
        text = gptlit.generate(model, tokenizer, f"{name}\n", max_new_tokens=120, seed=seed)
        lines.append(text.removeprefix(f"{name}\n").partition("\n")[0])
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--n_pairs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    base = options.checkpoint.absolute()
    context = checkpoint.load(base)[0].config.block_size
    found = speeches(base)
    names = [name for name, _ in random.Random(1).sample(found, N_TEXTS)]
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        write_pairs(found, options.n_pairs, context, pairs)
        command = [
            *("fit", "--config", "dpo.yaml", f"--data.path={pairs}", f"--model.init_from={base}"),
            *(f"--trainer.default_root_dir={folder}", f"--trainer.max_steps={options.steps}"),
        ]
        done = subprocess.run([sys.executable, "-m", "gptlit", *command], check=True, text=True,
                              stdout=subprocess.PIPE)  # fmt: skip
        print("\n".join(line for line in done.stdout.splitlines() if line.startswith("step ")))
        after = Path(folder) / "lightning_logs/version_0/checkpoints/last.ckpt"
        for label, path in (("base", base), ("after", after)):
            lines = first_lines(path, names)
            length = sum(map(len, lines)) / len(lines)
            print(f"{label:<6} {length:5.1f} characters in the first line, such as {lines[:3]}")


if __name__ == "__main__":
    main()
