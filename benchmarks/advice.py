"""How far the config that `gptlit data --advise` suggests is from the best of a small search.

    OMP_NUM_THREADS=1 python benchmarks/advice.py --results advice.jsonl

Five texts of 50 KB to 5 MB. Each run has the steps that take the same CPU time on one thread, by a
formula fitted to measured steps, or fewer where the rule limits the passes.
A run trains on all but two parts of the text. The lowest loss on the first of them chooses the best
of the search. That checkpoint's loss on the other, the end of the text, is computed once and gives
the regret. Results are appended to a file, and a run that is already in it is not repeated.
"""

import argparse
import contextlib
import csv
import dataclasses
import io
import json
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from gptlit.__main__ import main as gptlit
from gptlit.cli import advising
from gptlit.cli.fit import build
from gptlit.corpora import catalog
from gptlit.corpora.reading import TextOptions
from gptlit.data.advice import (
    FLOPS_PER_SECOND,
    MOST_PASSES,
    REGULARISATION,
    SIZES,
    Advice,
    TextSize,
    advise,
)

SHARE, MOST = 0.1, 50_000  # of the text for each held-out part, and characters at most
VALIDATIONS = 5
# the CPU time of a step on one thread of an Intel Xeon with AMX, within a tenth: fitted to steps of
# 768 tokens of five nets from 0.2M to 4.8M parameters in windows of 64 to 256
PER_LAYER, FLOPS = 2.45e-3, 6.2e10
DROPPING = 1.15  # times as long with dropout
SPEED = 5.5e10  # operations in a second of the whole run, as the rule counts them


def python_sources(n_chars: int) -> str:
    """Return the first ASCII characters of the standard library's modules, by name."""
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "".join(path.read_text(encoding="utf-8") for path in paths)
    return text.encode("ascii", "ignore").decode()[:n_chars]


def write_texts(folder: Path, data_dir: Path) -> dict[str, Path]:
    """Write the five texts; return their paths by name."""

    def corpus(name: str) -> str:
        (file,) = catalog.load(TextOptions(name), data_dir).files
        return file.read_text(encoding="utf-8")

    texts = {
        "Tiny Shakespeare, beginning": corpus("tinyshakespeare")[:50_000],
        "Inferno, beginning": corpus("dante")[:150_000],
        "Python's standard library": python_sources(500_000),
        "Tiny Shakespeare": corpus("tinyshakespeare"),
        "38 plays": corpus("shakespeare"),
    }
    paths = {name: folder / f"{index}.txt" for index, name in enumerate(texts)}
    for name, path in paths.items():
        path.write_text(texts[name], encoding="utf-8")
    return paths


def alternatives(advised: Advice) -> Iterator[tuple[str, Advice]]:
    """Yield the advised options and the neighbours of each, with their names."""
    change, per_step = dataclasses.replace, advised.block_size * advised.batch_size
    yield "advised", advised
    at = SIZES.index(advised.size)
    for name, index in (("half the parameters", at - 1), ("twice the parameters", at + 1)):
        if 0 <= index < len(SIZES):
            yield name, change(advised, size=SIZES[index])
    halved, doubled = advised.block_size // 2, 2 * advised.block_size
    for name, block in (("half the block", halved), ("twice the block", doubled)):
        batch = max(1, round(per_step / block))
        yield name, change(advised, block_size=block, batch_size=batch)
    levels = [*REGULARISATION.values()]
    at = levels.index(advised.regularisation)
    for name, index in (("less regularisation", at - 1), ("more regularisation", at + 1)):
        if 0 <= index < len(levels):
            yield name, change(advised, regularisation=levels[index])


def step_seconds(chosen: Advice, vocab_size: int) -> float:
    """Return the time of a step on one thread, by the formula of this machine."""
    tokens = chosen.block_size * chosen.batch_size
    operations = chosen.size.flops_per_token(chosen.block_size, vocab_size) * tokens
    seconds = PER_LAYER * chosen.size.n_layer + operations / FLOPS
    return seconds * (DROPPING if chosen.regularisation.dropout else 1)


def train(path: Path, share: float, chosen: Advice, n_steps: int) -> dict[str, Any]:
    """Train for a number of steps on one thread.

    Returns:
        The steps, the validation losses, and the test loss of the best checkpoint.
    """
    data = {"path": str(path), "val_fraction": share, "test_fraction": share}
    options = advising.config(chosen, data, "")
    options["samples"]["prompts"] = []
    output = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        config = Path(folder, "config.yaml")
        config.write_text(yaml.safe_dump(options), encoding="utf-8")
        words = [f"--config={config}", "--threads=1", "--trainer.accelerator=cpu"]
        every = max(1, n_steps // VALIDATIONS)
        words += [f"--trainer.max_steps={VALIDATIONS * every}"]
        words += [f"--trainer.val_check_interval={every}", f"--trainer.default_root_dir={folder}"]
        if gptlit(["fit", *words]):
            raise SystemExit(output.getvalue())
        (run,) = Path(folder, "lightning_logs").iterdir()
        with (run / "metrics.csv").open(newline="") as file:
            losses = [float(row["val/loss"]) for row in csv.DictReader(file) if row["val/loss"]]
        best = f"{run}/checkpoints/best.ckpt"
        tested = build([f"--ckpt_path={best}", "--trainer.logger=false"], verb="test")
        settings: dict[str, Any] = {"datamodule": tested.data, "ckpt_path": best}
        (metrics,) = tested.trainer.test(tested.model, verbose=False, **settings)
    return {
        "steps": VALIDATIONS * every,
        "val": losses,
        "test": metrics["test/loss"],
    }


def described(chosen: Advice) -> str:
    """Describe options in a few words."""
    size, (dropout, token_dropout, decay, _) = chosen.size, chosen.regularisation
    words = f"{size.n_layer} x {size.n_embd}, {chosen.batch_size} of {chosen.block_size}"
    return f"{words}, dropout {dropout}, token_dropout {token_dropout}, decay {decay}"


def row(name: str, n_chars: int, runs: dict[str, tuple[Advice, dict[str, Any]]]) -> str:
    """Return a text's row of the table."""
    advised, at_advised = runs["advised"]
    best = min(runs, key=lambda label: min(runs[label][1]["val"]))
    at_best = runs[best][1]
    losses = [f"{min(each['val']):.4f} | {each['test']:.4f}" for each in (at_advised, at_best)]
    regret = at_advised["test"] - at_best["test"]
    cells = [name, f"{n_chars:,}", described(advised), f"{at_advised['passes']:.1f}", losses[0]]
    return f"| {' | '.join([*cells, best, losses[1]])} | {regret:+.4f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40, help="CPU time of a run's steps")
    parser.add_argument("--results", type=Path, default=Path("advice.jsonl"))
    parser.add_argument("--data_dir", type=Path, default=Path("data"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    minutes = args.seconds * SPEED / FLOPS_PER_SECOND / 60
    lines = args.results.read_text().splitlines() if args.results.exists() else []
    known = {json.dumps(each["key"]): each for each in map(json.loads, lines)}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, path in write_texts(Path(folder), args.data_dir).items():
            text = path.read_text(encoding="utf-8")
            share = min(SHARE, MOST / len(text))
            n_train = int((1 - 2 * share) * len(text))
            size = TextSize((n_train,), int(share * len(text)), len(set(text)))
            runs = {}
            for label, chosen in alternatives(advise(size, minutes)):
                per_step = chosen.block_size * chosen.batch_size
                key = [name, args.seconds, MOST_PASSES, described(chosen)]
                result = known.get(json.dumps(key))
                if result is None:
                    began = time.process_time()
                    n_steps = args.seconds / step_seconds(chosen, size.vocab_size)
                    n_steps = int(min(n_steps, MOST_PASSES * n_train / per_step))
                    result = {"key": key} | train(path, share, chosen, n_steps)
                    result["cpu_s"] = time.process_time() - began
                    result["passes"] = result["steps"] * per_step / n_train
                    with args.results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(result) + "\n")
                runs[label] = chosen, result
                print(
                    f"{name}: {label}: {described(chosen)}: {result['passes']:.1f} passes, "
                    f"val {min(result['val']):.4f}, test {result['test']:.4f}",
                    flush=True,
                )
            rows.append(row(name, len(text), runs))
    head = "text | characters | advised | passes | val | test | best | val | test | regret"
    print(f"| {head} |", "|" + " --- |" * (head.count("|") + 1), *rows, sep="\n")


if __name__ == "__main__":
    main()
