"""`gptlit predict` through Lightning's Trainer: the same texts, on as many devices as asked for."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from gptlit.checkpoints import checkpoint
from gptlit.cli.lightning_warnings import lightning_command
from gptlit.corpora import inputs
from gptlit.generation.text_stream import Written
from gptlit.messages import UsageError, note
from gptlit.predict import command, modes, prompts
from gptlit.runs import run_end
from gptlit.training import processes
from gptlit.training.module import LitGPT

Texts = list[list[Written]]  # of each job


def in_order(by_rank: Sequence[Texts]) -> Texts:
    """The texts of all jobs, of which rank r of R had r, r + R, r + 2R, ..."""
    rounds = itertools.zip_longest(*by_rank)
    return [texts for each in rounds for texts in each if texts is not None]


class _Writer(BasePredictionWriter):
    """Puts the texts of all ranks to standard output, in the order of their jobs."""

    def __init__(self, put: Callable[[Texts], None]) -> None:
        super().__init__("epoch")
        self._put = put

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        own = [texts for batch in predictions for texts in batch]
        by_rank: list[Texts] = [own]
        if trainer.world_size > 1:
            by_rank = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(by_rank, own)
        if trainer.is_global_zero:
            self._put(in_order(by_rank))


def main(arguments: Sequence[str]) -> None:
    """`gptlit predict` with --trainer.* options: the same texts, by `LitGPT.predict_step`."""
    with lightning_command():
        _main(arguments)


def _main(arguments: Sequence[str]) -> None:
    parser = command.parser()
    parser.add_class_arguments(L.Trainer, "trainer", instantiate=False)
    options, mode = command.understood(parser, arguments)
    modes.refuse_on_devices(options, mode)
    settings = command.sampling(options)
    given = inputs.in_all_processes("prompts", lambda: prompts.given(options))
    if settings.max_new_tokens is None:
        raise UsageError("--max_new_tokens null: needs one device, without --trainer options")
    chosen = parser.instantiate(options).trainer.as_dict()
    processes.check(chosen)
    path, content = checkpoint.read_named(options.ckpt_path[0])
    model = LitGPT.load_from_checkpoint(path, map_location="cpu")
    assert model.tokenizer is not None
    if processes.on_rank_zero():
        note(checkpoint.introduction(path, content))
        block_size = model.config.block_size
        prompts.tell_about(given, options.unknown, model.tokenizer, block_size)
    work = prompts.jobs(given, prompts.seeds(options))
    options.ckpt_path = [str(path)]

    def put(found: Texts) -> None:
        header = command.header(options, settings, given)
        with command.output(options.output_file, header) as out:
            command.put(found, work, options, out)

    scored = options.format == "jsonl"
    model.predict_jobs = work
    model.predict_options = {"settings": settings, "unknown": options.unknown, "scored": scored}
    chosen["callbacks"] = [*processes.as_list(chosen["callbacks"]), _Writer(put)]
    chosen |= {"logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    chosen |= {"enable_checkpointing": False, "enable_model_summary": False}
    trainer = processes.new_trainer(**chosen)
    own = range(trainer.global_rank, len(work), trainer.world_size)
    batches: Any = torch.tensor(list(own), dtype=torch.int64).split(command.SAMPLES_AT_ONCE)
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)
    with run_end.interruptible(trainer):
        trainer.predict(model, loader, return_predictions=False)
