"""`gptlit predict` through Lightning's Trainer: the same texts, on one or more devices."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from gptlit.checkpoints import adapters, checkpoint
from gptlit.cli.lightning_warnings import lightning_command
from gptlit.corpora import inputs
from gptlit.generation.generate import SAMPLES_AT_ONCE
from gptlit.generation.text_stream import GeneratedText
from gptlit.messages import UsageError, note
from gptlit.predict import modes, output, prompts
from gptlit.predict.options import parse, parser, sampling_settings
from gptlit.runs import run_end
from gptlit.training import processes, threads
from gptlit.training.module import LitGPT

WrittenTexts = list[list[GeneratedText]]  # of each job


def in_order(by_rank: Sequence[WrittenTexts]) -> WrittenTexts:
    """Merge the texts of all ranks by job; rank r of R wrote jobs r, r + R, r + 2R, ..."""
    in_order_of_jobs = itertools.chain(*itertools.zip_longest(*by_rank))
    return [texts for texts in in_order_of_jobs if texts is not None]


class _Writer(BasePredictionWriter):
    """Gathers the texts of all ranks, and writes them on rank 0 in the order of their jobs."""

    def __init__(self, write: Callable[[WrittenTexts], None]) -> None:
        super().__init__("epoch")
        self._write = write

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        texts = list(itertools.chain(*predictions))
        by_rank: list[WrittenTexts] = [texts]
        if trainer.world_size > 1:
            by_rank = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(by_rank, texts)
        if trainer.is_global_zero:
            self._write(in_order(by_rank))


@lightning_command()
def main(arguments: Sequence[str]) -> None:
    """Run `gptlit predict` with --trainer.* options."""
    option_parser = parser()
    option_parser.add_class_arguments(L.Trainer, "trainer", instantiate=False)
    options, mode = parse(option_parser, arguments)
    modes.refuse_on_devices(options, mode)
    options.weights = "float32"
    settings = sampling_settings(options)
    texts = inputs.in_all_processes("prompts", lambda: prompts.read(options))
    if settings.max_new_tokens is None:
        reason = "needs one device, without --trainer options"
        raise UsageError(reason, "max_new_tokens", None)
    trainer_options = option_parser.instantiate(options).trainer.as_dict()
    processes.check(trainer_options)
    path, content = checkpoint.read_named(options.ckpt_path[0])
    model = LitGPT.load_from_checkpoint(path, map_location="cpu")
    assert model.tokenizer is not None
    if options.adapter is not None:
        adapters.apply(model.net, Path(options.adapter).expanduser())
    if processes.on_rank_zero():
        note(checkpoint.introduction(path, content))
        block_size = model.config.block_size
        prompts.warn_about(texts, options.unknown, model.tokenizer, block_size)
    jobs = prompts.jobs(texts, prompts.seeds(options))
    options.ckpt_path = [str(path)]

    def write(written: WrittenTexts) -> None:
        header = output.header(options, settings, texts)
        with output.opened(options.output_file, header) as out:
            output.write_texts(written, jobs, options, out)

    scored = options.format == "jsonl"
    model.predict_jobs = jobs
    model.predict_options = {"settings": settings, "unknown": options.unknown, "scored": scored}
    callbacks = [*processes.as_list(trainer_options["callbacks"]), _Writer(write)]
    switched_off = ("logger", "enable_progress_bar", "enable_checkpointing", "enable_model_summary")
    # each rank takes its own jobs
    trainer_options |= dict.fromkeys([*switched_off, "use_distributed_sampler"], False)
    trainer = processes.new_trainer(**trainer_options | {"callbacks": callbacks})
    jobs_of_rank = list(range(trainer.global_rank, len(jobs), trainer.world_size))
    batches: Any = torch.tensor(jobs_of_rank, dtype=torch.int64).split(SAMPLES_AT_ONCE)
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)
    n_threads = threads.using(options.threads, trainer.num_devices)
    with n_threads, run_end.interruptible(trainer):
        trainer.predict(model, loader, return_predictions=False)
