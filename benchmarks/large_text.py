"""Speed and memory of preparing and training on a large text.

    python benchmarks/large_text.py [--gigabytes 2] [--tokenizers char word ...] [--folder /tmp/x]

A text of random words with the frequencies of a natural language (Zipf's law) is generated once.
Each tokenizer prepares it in a process of its own, in turn; tiktoken's own encode runs on one
thread on the first hundred megabytes in the same run. Memory is RssAnon (without the pages of
memory maps, which the system can reclaim), sampled every 20 ms, of the process and of all its
children together; its peak is printed, less that of the same process after its imports. Finally a
tiny model trains for some steps on the last token file and on a small text.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

MEGABYTE = 1 << 20
PREPARE = """
import json, sys, time
from pathlib import Path
from gptlit.corpora import catalog
from gptlit.data import prepare
from gptlit.data.splits import Splitting
from gptlit.tokenizers.base import parse_options
import tqdm, filelock, concurrent.futures.process
path, folder, short = sys.argv[1:]
options = parse_options(short)
if options.kind == "tiktoken":
    from gptlit.tokenizers import published
    published.published(options.encoding, Path(folder))
print("imported", flush=True)
sys.stdin.readline()
began = time.perf_counter()
text = catalog.load(catalog.TextOptions(path=path), Path(folder))
encode = prepare._Preparation._encode
def timed(*given):
    began = time.perf_counter()
    done = encode(*given)
    global encoding
    encoding = time.perf_counter() - began
    return done
prepare._Preparation._encode = timed
made = prepare.prepare(text, Path(folder) / "tokens", tokenizer=options,
                         splitting=Splitting(), own_texts={})
print(json.dumps({"seconds": time.perf_counter() - began, "encoding": encoding,
                  "tokens": len(made.ids)}), flush=True)
"""
TIKTOKEN = """
import json, sys, time
from pathlib import Path
from gptlit.tokenizers import published
path, folder, n_bytes = sys.argv[1:]
encoding = published.published("gpt2", Path(folder))
with open(path, encoding="utf-8") as file:
    blocks = [file.read(1 << 20) for _ in range(int(n_bytes) >> 20)]
began = time.perf_counter()
for block in blocks:
    encoding.encode_ordinary(block)
print(json.dumps({"seconds": time.perf_counter() - began}))
"""
FIT = ["--config=tiny.yaml", "--trainer.max_steps=50", "--trainer.limit_val_batches=2"]
FIT += ["--samples.max_new_tokens=8"]


def generate(path: Path, n_bytes: int) -> None:
    """Write lines of words drawn by Zipf's law from 50,000, some with letters beyond ASCII."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxzàèé"))
    often = np.array([1 / 26] * 26 + [0.003] * 3)  # accents as often as in Italian
    lengths = draw.integers(1, 11, 50_000)
    words = ["".join(draw.choice(letters, n, p=often / often.sum())) for n in lengths]
    shares = 1 / np.arange(1, len(words) + 1)
    limits = np.cumsum(shares / shares.sum())
    ends = np.array([" "] * 11 + ["\n"])
    written = 0
    with path.open("wb") as file:
        while written < n_bytes:
            drawn = np.minimum(np.searchsorted(limits, draw.random(200_000)), len(words) - 1)
            after = ends[draw.integers(0, len(ends), len(drawn))]
            pairs = zip(drawn.tolist(), after.tolist(), strict=True)
            block = "".join([words[word] + end for word, end in pairs]).encode()
            written += file.write(block)


def rss_anon(pid: int) -> int:
    """Bytes of anonymous memory of a process, 0 if it has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) * 1024
    return 0


def family(pid: int) -> list[int]:
    """List a process and its descendants."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += family(int(child))
    return found


class Watch(threading.Thread):
    """Samples the memory of a process and of all its descendants together."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._ended = threading.Event()
        self.own = self.all = 0

    def run(self) -> None:
        while not self._ended.wait(0.02):
            sizes = [rss_anon(pid) for pid in family(self._pid)]
            self.own, self.all = max(self.own, sizes[0]), max(self.all, sum(sizes))

    def stop(self) -> None:
        self._ended.set()
        self.join()


def prepare(path: Path, folder: Path, short: str) -> dict[str, float]:
    command = [sys.executable, "-c", PREPARE, str(path), str(folder), short]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        base = rss_anon(process.pid)
        watch = Watch(process.pid)
        watch.start()
        process.stdin.write("\n")
        process.stdin.flush()
        result = json.loads(process.stdout.readline())
        watch.stop()
    return result | {"base": base, "own": watch.own - base, "all": watch.all - base}


def train(folder: Path, *options: str) -> int:
    """Make a short run; returns its peak memory in bytes."""
    command = [sys.executable, "-m", "gptlit", "fit", *FIT, f"--data.data_dir={folder}", *options]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, cwd=folder, stdout=quiet, stderr=quiet) as process:
        watch = Watch(process.pid)
        watch.start()
        process.wait()
        watch.stop()
    if process.returncode:
        raise RuntimeError(f"{command} failed")
    return watch.own


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=2.0)
    kinds = ["word", "word:reversible", "bpe:1024", "tiktoken:gpt2", "char"]
    parser.add_argument("--tokenizers", nargs="+", default=kinds)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "large_text")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    path, n_bytes = folder / "large.txt", int(options.gigabytes * 1e9)
    if not path.is_file() or path.stat().st_size < n_bytes:
        generate(path, n_bytes)
    n_bytes = path.stat().st_size
    n_sampled = min(100 * MEGABYTE, n_bytes)
    command = [sys.executable, "-c", TIKTOKEN, str(path), str(folder), str(n_sampled)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    speed = n_sampled / json.loads(done.stdout)["seconds"] / 1e6
    print(f"{n_bytes / 1e9:.2f} GB; tiktoken's own encode, one thread: {speed:.1f} MB/s")
    print("MB/s: of the whole preparation, and of its last step, encoding")
    print(
        "tokenizer              tokens    seconds    MB/s  encoding  x tiktoken  peak MB: own, all"
    )
    for short in options.tokenizers:
        shutil.rmtree(folder / "tokens", ignore_errors=True)
        result = prepare(path, folder, short)
        rate, encoding = (n_bytes / result[name] / 1e6 for name in ("seconds", "encoding"))
        print(
            f"{short:<15}{result['tokens']:>14,}{result['seconds']:>11.1f}"
            f"{rate:>8.1f}{encoding:>10.1f}"
            f"{encoding / speed:>12.2f}{result['own'] / 1e6:>14.0f}{result['all'] / 1e6:>5.0f}",
            flush=True,
        )
    small = folder / "small.txt"
    small.write_bytes(_head(path))
    short = options.tokenizers[-1]
    sizes = [
        train(folder, f"--data.path={each}", f"--data.tokenizer={short}") for each in (small, path)
    ]
    print(
        f"training under {short}: peak {sizes[0] / 1e6:.0f} MB on a megabyte, "
        f"{sizes[1] / 1e6:.0f} MB on the large text"
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MEGABYTE).rsplit(b"\n", 1)[0]


if __name__ == "__main__":
    main()
