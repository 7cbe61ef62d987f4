"""Bare training loops of shipped configs' nets and of GPT-2, which gpu_all.py times."""

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
import yaml
from train_step import wait_for

from gptlit.files import configs_folder
from gptlit.model.config import GPTConfig
from gptlit.model.gpt import GPT
from gptlit.optim import optimizers
from gptlit.optim.optimizers import Recipe
from gptlit.steps.losses import objective, of_batch

N_CHARACTERS = 1_115_394
LossOf = Callable[[GPT, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Sizes:
    """Sizes of all parts, on a GPU or for a dry run."""

    device: str = "cuda"
    n_characters: int = N_CHARACTERS
    fit_steps: int = 400
    fit_options: tuple[str, ...] = ()
    bare_steps: int = 100
    small: tuple[int, int, int, int, int] = (6, 6, 384, 256, 64)  # layers, heads, width, T, B
    gpt2: tuple[int, int, int, int, int] = (12, 12, 768, 1024, 16)
    gpt2_vocab: int = 50304  # 50,257, padded to a multiple of 64
    gpt2_steps: int = 20
    batches: tuple[int, ...] = (1, 8, 64, 512)
    n_tokens: int = 240
    nanogpt_steps: int = 500


DRY = Sizes(
    device="cpu",
    n_characters=5000,
    fit_steps=12,
    fit_options=(
        "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=16", "--model.block_size=8",
        "--data.batch_size=4", "--samples.max_new_tokens=4",
    ),
    bare_steps=4,
    small=(1, 2, 16, 8, 4),
    gpt2=(1, 2, 16, 64, 64),
    gpt2_vocab=600,
    gpt2_steps=3,
    batches=(1, 8),
    n_tokens=6,
    nanogpt_steps=20,
)  # fmt: skip


def shape_of(numbers: tuple[int, int, int, int, int]) -> tuple[dict[str, Any], int, int]:
    """Return options of GPTConfig, the block size and the batch size."""
    n_layer, n_head, n_embd, block, batch = numbers
    shape = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "block_size": block}
    return shape, block, batch


def config_of(name: str, sizes: Sizes, vocab_size: int = 65) -> tuple[GPTConfig, Recipe]:
    """Return the net and the recipe of a shipped config, at the part's sizes."""
    options = yaml.safe_load((configs_folder() / name).read_text(encoding="utf-8"))["model"]
    parts, recipe = (
        {each.name: options[each.name] for each in fields(kind) if each.name in options}
        for kind in (GPTConfig, Recipe)
    )
    parts |= shape_of(sizes.small)[0] | {"vocab_size": vocab_size}
    return GPTConfig(**parts), Recipe(**recipe)


def median_of(step: Callable[[], object], n_steps: int, device: torch.device) -> float:
    """Return the median seconds of a step over 5 stretches of steps, after a warmup."""
    for _ in range(max(3, n_steps // 10)):
        step()
    seconds = []
    for _ in range(5):
        wait_for(device)
        began = time.perf_counter()
        for _ in range(max(1, n_steps // 5)):
            step()
        wait_for(device)
        seconds.append((time.perf_counter() - began) / max(1, n_steps // 5))
    return statistics.median(seconds)


def at_once(net: GPT, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean loss of (B, T) inputs and targets, from all logits at once."""
    return objective(net(inputs), targets)[0]


def in_chunks(net: GPT, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the same as gptlit computes it: in chunks, where the logits are large."""
    return of_batch(net, inputs, targets)[0]


class Loop:
    """A bare training loop: batch, forward, backward, clipping and optimizer.

    Args:
        net: Net in training mode, on the device.
        optimizer: Its optimizer.
        ids: Token ids on the device, from which a step cuts its batch.
        batch: Number of windows.
        mode: Mode of torch.compile for the net with its loss, or None for eager steps.
        loss_of: Function that computes the loss.
    """

    def __init__(
        self, net: GPT, optimizer: torch.optim.Optimizer, ids: torch.Tensor, batch: int,
        mode: str | None = None, loss_of: LossOf = at_once,
    ) -> None:  # fmt: skip
        self.net = net
        self.optimizer = optimizer
        self.ids = ids
        self.batch = batch
        loss = functools.partial(loss_of, net)
        self.loss = loss if mode is None else torch.compile(loss, mode=mode)
        self.offsets = torch.arange(net.config.block_size, device=ids.device)

    def step(self) -> None:
        """Make a step; may be captured as a CUDA graph after some steps."""
        device = self.ids.device
        size = (self.batch, 1)
        starts = torch.randint(len(self.ids) - len(self.offsets) - 1, size, device=device)
        at = starts + self.offsets
        on_gpu = device.type == "cuda"
        # a cache of cast weights would outlive the captured step
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu, cache_enabled=False):
            loss = self.loss(self.ids[at], self.ids[at + 1])
        loss.backward()
        parameters = list(self.net.parameters())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def captured(step: Callable[[], None]) -> Callable[[], None]:
    """Capture a step as a CUDA graph, and return the function that replays it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(5):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def random_ids(n_ids: int, vocab_size: int, device: torch.device) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (n_ids,), generator=generator).to(device)


class Bare:
    """Makes bare loops of a config's net.

    Args:
        sizes: Sizes of the net and its batches.
        name: Name of the config.
        optimizer: Optimizer, with the config's options.
    """

    def __init__(self, sizes: Sizes, name: str, optimizer: Literal["adamw", "muon"]) -> None:
        self.device = torch.device(sizes.device)
        self._config, recipe = config_of(name, sizes)
        self._recipe = replace(recipe, optimizer=optimizer)
        self._ids = random_ids(sizes.n_characters, 65, self.device)
        self._batch = sizes.small[-1]
        self.tokens = self._batch * self._config.block_size  # of a step

    def made(self, mode: str | None = None) -> Loop:
        net = GPT(self._config).to(self.device).train()
        optimizer = optimizers.build(net, self._recipe, fused=True)
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True  # AdamW refuses to be captured without it
        return Loop(net, optimizer, self._ids, self._batch, mode)

    def captured(self, mode: str | None = None) -> Callable[[], None]:
        return captured(self.made(mode).step)
