"""Weights, gradients and optimizer state in shards, one for each process: FSDP2."""

from typing import Any

import torch
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    Strategy,
    StrategyRegistry,
)
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from gptlit.messages import UsageError, opt
from gptlit.model.gpt import GPT
from gptlit.training import loop_state

# strategies under which a process has only parts of the weights
SHARDING = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)


class FSDP2(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with data parallelism only, and checkpoints in one file.

    Its name on the command line is fsdp2. ModelParallelStrategy itself uses tensor parallelism
    within a node, which `LitGPT` doesn't support, and saves a folder of shards.

    Args:
        **options: `process_group_backend` and `timeout` of ModelParallelStrategy.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **options)

    def setup_environment(self) -> None:
        loop_state.use_all_processes_for_data(self)
        super().setup_environment()

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        # `load_checkpoint` has restored the moments, and `resuming.take_recipe` has put the run's
        # options into the checkpoint's groups
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            for group, options in zip(optimizer.param_groups, saved["param_groups"], strict=True):
                group |= {name: options[name] for name in options if name != "params"}


StrategyRegistry.register("fsdp2", FSDP2, description=FSDP2.__doc__)


def check(strategy: Strategy) -> None:
    """Refuse Lightning's sharding strategies, which would train silently wrong or wait forever.

    Raises:
        UsageError: The message names a strategy that works.
    """
    is_ours = isinstance(strategy, FSDP2)
    if isinstance(strategy, ModelParallelStrategy | FSDPStrategy) and not is_ours:
        raise UsageError(
            f"isn't supported; use {opt('trainer.strategy')} fsdp2 to shard the weights",
            "trainer.strategy",
            type(strategy).__name__,
        )


def check_user_loaders(strategy: Strategy) -> None:
    """Refuse to shard the weights of a model that is trained on the user's own loaders.

    Raises:
        UsageError: The message names a strategy that works.
    """
    if isinstance(strategy, SHARDING):
        raise UsageError(
            "shards the weights, which needs a TextDataModule; loaders of your own train under "
            f"{opt('trainer.strategy')} ddp",
            "trainer.strategy",
            type(strategy).__name__,
        )


def check_whole(strategy: Strategy, optimizer: str, ema: float) -> None:
    """Refuse options that need all weights in each process where a strategy shards them.

    Raises:
        UsageError: The message names the option and a strategy that works.
    """
    reason = f"needs each process to have all weights; use {opt('trainer.strategy')} ddp"
    if isinstance(strategy, SHARDING):
        if optimizer == "muon":
            raise UsageError(reason, "model.optimizer", optimizer)
        if ema:
            raise UsageError(reason, "model.ema", ema)


def shard(net: GPT, mesh: DeviceMesh) -> None:
    """Shard a net's parameters over the processes of a mesh, in place, block by block.

    All processes must have the same weights. A tied head is sharded with the embedding.
    """
    for block in net.h:
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)


def whole(net: GPT) -> GPT | None:
    """Return the net, gathered into a copy if it is sharded; None on ranks other than 0.

    All ranks must call it.
    """
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if not isinstance(net, FSDPModule):
        return net if first else None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(net, options=options)
    if not first:
        return None
    copy = GPT(net.config)
    copy.load_state_dict(weights)
    return copy.to(next(net.parameters()).device)
