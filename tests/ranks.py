"""Runs `gptlit` on several ranks, which are forked to save the seconds of imports."""

import multiprocessing
import os
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only

from gptlit.__main__ import main
from tests.conftest import Result

LIMIT = 50  # seconds


def ranks(folder: Path, *arguments: object, n_nodes: int = 1) -> list[Result]:
    """Run `gptlit` in `folder` on two ranks, on one node or two; return each rank's result.

    No rank outlives the call.
    """
    # the store listens on a free port; otherwise the ranks would have to try ports
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    words = [str(word) for word in arguments]
    words += ["--trainer.accelerator=cpu", f"--trainer.devices={2 // n_nodes}"]
    words += [f"--trainer.num_nodes={n_nodes}"]
    context = multiprocessing.get_context("fork")
    children = []
    for rank in range(2):
        node, local = divmod(rank, 2 // n_nodes)
        variables = {
            "RANK": rank, "NODE_RANK": node, "LOCAL_RANK": local, "WORLD_SIZE": 2,
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": store.port,
            "TORCHELASTIC_USE_AGENT_STORE": True, "TORCHELASTIC_RESTART_COUNT": 0,
            # with more threads OpenMP hangs in a fork of a process that used several
            "OMP_NUM_THREADS": 1,
        }  # fmt: skip
        environment = {name: str(value) for name, value in variables.items()}
        child = context.Process(target=_rank, args=(rank, folder, words, environment))
        children.append(child)
    end = time.monotonic() + LIMIT
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # about forking next to the store's thread
            for child in children:
                child.start()
        for child in children:
            child.join(max(0, end - time.monotonic()))
        alive = [rank for rank, child in enumerate(children) if child.exitcode is None]
    finally:
        for child in children:
            child.kill()
            child.join()
    results = []
    for rank, child in enumerate(children):
        out, err = ((folder / f"rank_{rank}.{name}").read_text() for name in ("out", "err"))
        assert not alive, f"ranks {alive} hang; rank {rank}: {out}{err}"
        results.append(Result(child.exitcode or 0, out, err))
    return results


def _rank(rank: int, folder: Path, words: Sequence[str], environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    rank_zero_only.rank = rank
    with (
        Path(f"rank_{rank}.out").open("w", encoding="utf-8") as sys.stdout,
        Path(f"rank_{rank}.err").open("w", encoding="utf-8") as sys.stderr,
    ):
        try:
            code = main(words)
        except BaseException:
            traceback.print_exc()
            code = 1
    os._exit(code)  # without pytest's exit handlers
