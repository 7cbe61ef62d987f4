"""`gptlit predict` through Lightning's Trainer: the same texts, on as many devices as asked for."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from gptlit import checkpoint, predict, runs
from gptlit.drafts import Written
from gptlit.messages import UsageError
from gptlit.parser import from_environment
from gptlit.training import LitGPT


class _Writer(BasePredictionWriter):
    """Puts the texts of all ranks to standard output, in the order of their samples."""

    def __init__(self, put: Callable[[list[Written]], None]) -> None:
        super().__init__("epoch")
        self._put = put

    def write_on_epoch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        own = [text for batch in predictions for text in batch]
        by_rank: list[list[Written]] = [own]
        if trainer.world_size > 1:
            by_rank = [[] for _ in range(trainer.world_size)]
            torch.distributed.all_gather_object(by_rank, own)
        if trainer.is_global_zero:
            # rank r had samples r, r + R, r + 2R, ...
            longest = max(map(len, by_rank))
            texts = [
                texts[index] for index in range(longest) for texts in by_rank if index < len(texts)
            ]
            self._put(texts)


def main(arguments: Sequence[str]) -> None:
    """`gptlit predict` with --trainer.* options: the same texts, by `LitGPT.predict_step`."""
    parser = predict.parser()
    parser.add_class_arguments(L.Trainer, "trainer", instantiate=False)
    options = parser.parse_args([*from_environment("predict"), *arguments])
    settings, given = predict.sampling(options), predict.prompts(options)
    if settings["max_new_tokens"] is None:
        raise UsageError("--max_new_tokens null: needs one device, without --trainer options")
    path, _ = checkpoint.read_named(options.ckpt_path)
    model = LitGPT.load_from_checkpoint(path, map_location="cpu")
    assert model.tokenizer is not None
    if runs.on_rank_zero():
        block_size = model.config.block_size
        predict.tell_about_prompts(given, options.unknown, model.tokenizer, block_size)
    work = predict.jobs(given, options.seed, options.num_samples)
    options.ckpt_path = str(path)

    def put(texts: list[Written]) -> None:
        with predict.output(options, settings, given) as out:
            predict.put(texts, (seed for _, seed in work), options, out)

    scored = options.format == "jsonl"
    model.predict_jobs = work
    model.predict_options = {"unknown": options.unknown, "scored": scored, **settings}
    chosen = parser.instantiate(options).trainer.as_dict()
    chosen["callbacks"] = [*runs.as_list(chosen["callbacks"]), _Writer(put)]
    chosen |= {"logger": False, "enable_progress_bar": False, "use_distributed_sampler": False}
    chosen |= {"enable_checkpointing": False, "enable_model_summary": False}
    trainer = runs.refusing(L.Trainer, **chosen)
    own = range(trainer.global_rank, len(work), trainer.world_size)
    batches: Any = torch.tensor(list(own), dtype=torch.int64).split(predict.SAMPLES_AT_ONCE)
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)
    trainer.predict(model, loader, return_predictions=False)
