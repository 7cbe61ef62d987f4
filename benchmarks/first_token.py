"""Time until `gptlit predict` writes its first token, compared with `import torch` alone.

    python benchmarks/first_token.py [--ckpt_path best] [--rounds 9]

Each round starts every command once, in turn, so that a slow minute of the machine affects all.
Prints medians and ratios of medians. The first token is timed until it arrives through a pipe, the
other commands until they exit.
"""

import argparse
import statistics
import subprocess
import sys
import time

IMPORT_TORCH = [sys.executable, "-c", "import torch"]
GPTLIT = [sys.executable, "-m", "gptlit"]


def seconds_to_exit(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def seconds_to_first_byte(command: list[str]) -> float:
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        if not process.stdout.read(1):
            raise RuntimeError(f"{command} wrote nothing")
        seconds = time.perf_counter() - began
        process.stdout.read()
    if process.returncode:
        raise RuntimeError(f"{command} failed")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt_path", default="best")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    # one new token and no prompt: the first byte is the first token
    predict = [*GPTLIT, "predict", f"--ckpt_path={options.ckpt_path}", "--max_new_tokens=1"]
    timed = {
        "import torch": lambda: seconds_to_exit(IMPORT_TORCH),
        "gptlit predict, first token": lambda: seconds_to_first_byte(predict),
        "gptlit --help": lambda: seconds_to_exit([*GPTLIT, "--help"]),
        "gptlit fit --help": lambda: seconds_to_exit([*GPTLIT, "fit", "--help"]),
    }
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for measure in timed.values():
        measure()  # warms up the file cache
    for _ in range(options.rounds):
        for name, measure in timed.items():
            seconds[name].append(measure())
    base = statistics.median(seconds["import torch"])
    for name, values in seconds.items():
        median = statistics.median(values)
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"{name:<28}{median:6.2f} s  ({spread})  {median / base:5.2f} x import torch")


if __name__ == "__main__":
    main()
