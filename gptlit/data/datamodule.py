"""TextDataModule: the windows of a text in batches, in a computed order."""

import dataclasses
import functools
import inspect
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from gptlit.checkpoints import checkpoint
from gptlit.corpora import catalog
from gptlit.data import prepare, token_file
from gptlit.data.decoded_text import DecodedText
from gptlit.data.device_windows import EvalAhead, Placement, TrainAhead, keeps
from gptlit.data.loaders import EvalLoader, Scored, TrainLoader
from gptlit.data.novelty import TrainingText
from gptlit.data.options import DataOptions
from gptlit.data.splits import SPLITS
from gptlit.data.token_file import TokenFile
from gptlit.data.window_order import SideBySide, Sliding, WindowOrder
from gptlit.messages import UsageError, note, opt
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions, parse_options
from gptlit.tokenizers.state import from_state

EVAL_TOKENS_AT_ONCE = 8192
SLICE_TOKENS = 65_536
# a checkpoint may name an object under this private key of Lightning's, which would call it
WITHOUT_INSTANTIATOR = {"_instantiator": None}


class TextDataModule(L.LightningDataModule):
    """A text, tokenized once, split, and cut into windows.

    Takes the options of `DataOptions` as keyword arguments.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = DataOptions(**options)
        # plain data: a checkpoint with an object of gptlit would not load with weights_only
        hyperparameters = asdict(self.options)
        for name in ("path", "val_path", "test_path"):
            # absolute: the checkpoint may be loaded from another folder
            if path := hyperparameters[name]:
                hyperparameters[name] = str(Path(path).expanduser().absolute())
        self.save_hyperparameters(hyperparameters)
        self.tokenizer_or_options: TokenizerOptions | Tokenizer = parse_options(
            self.options.tokenizer
        )
        self.batch_size = self.options.batch_size
        self.block_size = self.options.block_size
        self.stride = 0  # of the windows that validate and test slide; 0 for side by side
        self.seed = self.options.seed or 0
        self.folder = Path(self.options.data_dir).expanduser()
        # hashes of texts that must not have changed, by "" for the main one, "val" and "test"
        self.expected_sha256: dict[str, str] = {}
        self._tokens: TokenFile | None = None
        self._placement: Placement | None = None

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's is a custom descriptor
        cls, checkpoint_path: Any, *arguments: Any, weights_only: bool = True, **options: Any
    ) -> "TextDataModule":
        """Load as Lightning does, but by default plain data only, and without calling any object
        that the checkpoint names.

        The text is read by the checkpoint's tokenizer, and refused if it has changed since,
        unless options name others.

        Raises:
            UsageError: The checkpoint names a folder for texts that is not one of gptlit's.
        """
        options |= {"weights_only": weights_only, **WITHOUT_INSTANTIATOR}
        module = super().load_from_checkpoint(checkpoint_path, *arguments, **options)
        if "data_dir" not in options:
            token_file.check_data_dir(checkpoint_path, module.folder)
        described = checkpoint.read(checkpoint_path)[checkpoint.KEY]
        if not {"tokenizer", "eos"} & options.keys():
            size = described["config"]["vocab_size"]
            module.use_tokenizer(from_state(described["tokenizer"], size))
        texts = {"": (None, described["text"]["sha256"]), **described["text"]["own_texts"]}
        options_of = {"": {"corpus", "path"}, "val": {"val_path"}, "test": {"test_path"}}
        module.expected_sha256 = {
            name: sha256
            for name, (_, sha256) in texts.items()
            if sha256 and not options_of[name] & options.keys()  # imported weights have no text
        }
        return module

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Read texts by a finished tokenizer, that of a checkpoint, instead of making one."""
        self.tokenizer_or_options = tokenizer

    @property
    def tokens(self) -> TokenFile:
        """The token file, which `setup` makes or opens."""
        if self._tokens is None:
            raise RuntimeError("the text is read by TextDataModule.setup()")
        return self._tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; available after `setup`."""
        return self.tokens.tokenizer

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split; available before the text is read."""
        return bool(self.options.splitting.val_fraction or self.options.val_path)

    def prepare_data(self) -> None:
        # called in one process of a machine; the others open the token file in setup
        self._tokens, self._placement = self._prepare(), None
        for line in self._tokens.provenance["report"]:
            note(line)
        for split in SPLITS:
            if reason := self._tokens.incomparable(split):
                note(
                    f"{split} split: {reason}, so that its bits_per_byte compares with no other "
                    "tokenizer's"
                )

    def setup(self, stage: str) -> None:
        if self._tokens is None:
            self._tokens = self._prepare()
        if stage == "fit":
            self._check_size()

    def load_text(self) -> catalog.Text:
        """Find or fetch the text that is trained on and split."""
        return catalog.load(self.options, self.folder)

    def _prepare(self) -> TokenFile:
        texts = {"": self.load_text()}
        for name, path in {"val": self.options.val_path, "test": self.options.test_path}.items():
            if path:
                options = dataclasses.replace(self.options, path=path)
                option = opt(f"data.{name}_path")
                texts[name] = catalog.load(options, self.folder, path_option=option)
        for name, text in texts.items():
            if self.expected_sha256.get(name, text.sha256) != text.sha256:
                option = f"data.{name}_path" if name else "data.path"
                raise UsageError(
                    f"the text has changed since it was trained on; give {opt(option)} to continue "
                    "with its present content",
                    option,
                    text.name,
                )
        return prepare.prepare(
            texts.pop(""),
            self.folder / "tokens",
            tokenizer=self.tokenizer_or_options,
            splitting=self.options.splitting,
            own_texts=texts,
        )

    @property
    def has_pairs(self) -> bool:
        """Whether consecutive windows are the chosen and the rejected answer to a prompt."""
        return self.options.format == "pairs"

    @property
    def _scored(self) -> Scored | None:
        return None if self.tokens.part_ends is None else self.tokens.is_scored

    @functools.cached_property
    def order(self) -> WindowOrder:
        """The order of the training windows."""
        return self.order_of(self.block_size)

    def order_of(self, block_size: int) -> WindowOrder:
        """Return the order of the training windows of a block size."""
        pieces, together = self._scored_pieces(block_size), 2 if self.has_pairs else 1
        return WindowOrder(pieces, block_size, self.seed, self.options.windows, together)

    @property
    def _by_document(self) -> bool:
        return self.options.windows == "documents"

    @property
    def scores_all_targets(self) -> bool:
        """Whether training windows are whole, so that no target is IGNORED."""
        return not self._by_document

    def _inputs_before(self, positions: np.ndarray) -> np.ndarray:
        return self.tokens.inputs_before(positions, self._by_document)

    def _pieces(self, split: str) -> np.ndarray:
        pieces = self.tokens.pieces(split, self._by_document)
        if split != "train" or self.options.train_fraction == 1:
            return pieces
        lengths = np.diff(pieces, axis=1)[:, 0]
        n_trained_on = int(self.options.train_fraction * lengths.sum())
        n_left = n_trained_on - (lengths.cumsum() - lengths)  # before each piece
        ends = pieces[:, 0] + np.clip(n_left, 0, lengths)
        return np.stack([pieces[:, 0], ends], axis=1)[n_left > 0]

    def _scored_pieces(self, block_size: int) -> np.ndarray:
        """Return the training split's pieces without the windows before an example's answer.

        A batch of these alone would have nothing to learn, and no mean loss.
        """
        pieces = self._pieces("train")
        if (ends := self.tokens.part_ends) is None:
            return pieces
        answers = ends[np.searchsorted(ends, pieces[:, 0], "right")]  # the prompts' ends
        skipped = (answers - pieces[:, 0]) // block_size * block_size
        return np.stack([pieces[:, 0] + skipped, pieces[:, 1]], axis=1)

    @functools.cached_property
    def training_text(self) -> TrainingText:
        """An index of the text that is trained on, which finds what samples copied from it."""
        decoded = DecodedText(self.tokens.ids, self._pieces("train"), self.tokenizer)
        return TrainingText(decoded, self.folder / "tokens")

    @property
    def n_train_tokens(self) -> int:
        """Number of tokens that are trained on."""
        return int(np.diff(self._pieces("train"), axis=1).sum())

    def _check_size(self) -> None:
        n_train, n_val = self.n_train_tokens, self.tokens.size("val")
        if self.has_pairs:
            self._check_pairs()
        if self.order.n_windows < 1:
            longest = np.diff(self._pieces("train"), axis=1).max(initial=0)
            largest = f"the largest block that fits is {longest // 2}"
            raise UsageError(
                f"{self.tokens.provenance['name']} is too short: {n_train} tokens to train on and "
                f"{n_val} for validation; "
                + (largest if n_train >= 2 else "a longer text is needed"),
                "model.block_size",
                self.block_size,
            )
        if self.has_validation:
            self._check_window("val")

    def _check_pairs(self) -> None:
        lengths = self.tokens.document_lengths()
        if (longest := int(lengths.max())) > self.block_size:
            example = int(lengths.argmax()) // 2 + 1
            raise UsageError(
                f"example {example} has {longest} tokens, and a prompt with its answer must fit in "
                f"one window; use {longest} or more",
                "model.block_size",
                self.block_size,
            )

    def _check_window(self, split: str) -> None:
        if self.tokens.part_ends is not None and self.tokens.size(split):
            return  # windows are as long as examples
        size, fraction = self.tokens.size(split), opt("data.val_fraction")
        if size < self.block_size:
            raise UsageError(
                f"the {split} split has {size} tokens, fewer than one window of "
                f"{opt('model.block_size')} {self.block_size}; raise the fraction, give a longer "
                f"{opt(f'data.{split}_path')}, or lower the block size"
                + (f"; or train without validation by {fraction} 0" * (split == "val")),
                f"data.{split}_fraction",
            )

    def _ranks(self) -> dict[str, Any]:
        strategy = self.trainer.strategy if self.trainer else None
        # only a strategy of several processes has them
        ranks = getattr(strategy, "distributed_sampler_kwargs", None) or {}
        return {"rank": ranks.get("rank", 0), "n_ranks": ranks.get("num_replicas", 1)}

    @property
    def _n_accumulated(self) -> int:
        return self.trainer.accumulate_grad_batches if self.trainer else 1

    @property
    def windows_per_step(self) -> int:
        """Number of windows of an optimizer step, over all ranks."""
        return self.batch_size * self._ranks()["n_ranks"] * self._n_accumulated

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a pass over the text; windows that don't fill a step are left out."""
        return self.order.n_windows // self.windows_per_step

    def _place(self) -> Placement:
        """Return where windows are cut, which is decided once for a device."""
        trainer = self.trainer
        device = (
            trainer.strategy.root_device if trainer and trainer.state.fn else torch.device("cpu")
        )
        if self._placement is None or self._placement.device != device:
            self._placement = Placement(self.tokens.ids, device, self.options.on_device)
        return self._placement

    @property
    def origin_of_batches(self) -> str:
        """Where batches are cut, and when they are copied to the device, in words."""
        return str(self._place())

    def bytes_on(self, device: torch.device) -> int:
        """Return the bytes of token ids that training would keep in a GPU's memory."""
        is_kept = device.type != "cpu" and keeps(
            self.tokens.ids.nbytes, device, self.options.on_device
        )
        return self.tokens.ids.nbytes if is_kept else 0

    def train_dataloader(self) -> TrainLoader | TrainAhead:
        if self.steps_per_epoch < 1:
            raise UsageError(
                f"a step takes {self.windows_per_step} windows of {self.block_size} tokens, and "
                f"the text has {self.order.n_windows}; lower batch_size, accumulate_grad_batches "
                f"or {opt('model.block_size')}",
                "data.batch_size",
                self.batch_size,
            )
        n_batches = self.steps_per_epoch * self._n_accumulated
        # as LitGPT has made it, so that the loader ends with the epoch, also after a resume
        if self.trainer and isinstance(limit := self.trainer.limit_train_batches, int):
            n_batches = min(n_batches, limit)
        place = self._place()
        loader = TrainLoader(
            place.cutter,
            self.order,
            self.batch_size,
            before=self._inputs_before,
            scored=self._scored,
            n_batches=n_batches,
            frozen=bool(self.trainer and self.trainer.overfit_batches),
            **self._ranks(),
        )
        return place.train(loader)

    def _eval_loader(self, windows: SideBySide | Sliding | np.ndarray) -> EvalLoader | EvalAhead:
        batch_size = max(1, min(len(windows), EVAL_TOKENS_AT_ONCE // self.block_size))
        batch_size += batch_size % 2 if self.has_pairs else 0
        place = self._place()
        loader = EvalLoader(
            place.cutter,
            windows,
            self._inputs_before,
            self.block_size,
            batch_size,
            scored=self._scored,
            **self._ranks(),
        )
        return place.evaluate(loader)

    def _whole_split(self, split: str) -> EvalLoader | EvalAhead:
        pieces = self._pieces(split)
        if self.stride:
            return self._eval_loader(Sliding(pieces, self.block_size, self.stride))
        return self._eval_loader(SideBySide(pieces, self.block_size))

    def train_slice(self) -> EvalLoader | EvalAhead:
        """Return a fixed, evenly spaced sample of the training split's windows: as many as the
        validation split has, but at most SLICE_TOKENS tokens."""
        n_tokens = min(self.tokens.size("val") or SLICE_TOKENS, SLICE_TOKENS)
        windows = SideBySide(self._scored_pieces(self.block_size), self.block_size)
        n_windows = min(len(windows), max(1, n_tokens // self.block_size))
        if not self.has_pairs:
            return self._eval_loader(windows[np.arange(n_windows) * len(windows) // n_windows])
        n_pairs = max(1, n_windows // 2)
        firsts = 2 * (np.arange(n_pairs) * (len(windows) // 2) // n_pairs)
        return self._eval_loader(windows[np.stack([firsts, firsts + 1], axis=1).flatten()])

    def val_dataloader(self) -> list[EvalLoader | EvalAhead]:
        """Return the validation split, if there is one, and the slice of the training split."""
        if self.trainer and self.trainer.state.fn == "validate":
            self._require("val")
            return [self._whole_split("val")]
        validation = [self._whole_split("val")] if self.has_validation else []
        return [*validation, self.train_slice()]

    def test_dataloader(self) -> EvalLoader | EvalAhead:
        self._require("test")
        return self._whole_split("test")

    def _require(self, split: str) -> None:
        if not self.tokens.size(split):
            option = f"data.{split}_fraction"
            raise UsageError(
                f"the text has no {split} split; give {opt(option)} above 0, or "
                f"{opt(f'data.{split}_path')} a text of its own",
                option,
                0,
            )
        self._check_window(split)

    def describe_text(self) -> dict[str, Any]:
        """Return where the text came from and how it was split, for the checkpoint."""
        return {**self.tokens.provenance, "spans": dict(self.tokens.spans)}


# notebooks and the checks of a checkpoint's options read the names, types and defaults here
TextDataModule.__signature__ = inspect.signature(DataOptions)
