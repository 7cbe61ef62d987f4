"""The options of `TextDataModule`: which text, how it is split, tokenized and cut into windows."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from gptlit.corpora.cleaning import CleaningOptions
from gptlit.corpora.reading import TextOptions
from gptlit.data.splits import Splitting
from gptlit.data.token_file import DATA_DIR
from gptlit.data.window_order import Windows
from gptlit.messages import UsageError, opt
from gptlit.tokenizers.base import TokenizerOptions, parse_options


@dataclass(frozen=True)
class DataOptions(Splitting, TextOptions):
    """The options of `TextDataModule`.

    Args:
        tokenizer: Kind of token: char, word, word:reversible, tiktoken:gpt2, bpe:1024, or these
            with options of their own.
        batch_size: Windows in a batch of each process.
        block_size: Tokens in a window; given as --model.block_size.
        windows: Windows of an epoch: pass, one shuffled pass with a random shift; side_by_side,
            without the shift; every_offset, from every token; random, with replacement;
            documents, each document side by side from its start, so that none crosses a boundary.
        eos: Close each document by an end-of-sequence token, at which `gptlit predict` stops.
        train_fraction: Share of the training split, from its beginning, that is trained on; the
            held-out splits and the tokenizer stay the same.
        val_path: Separate validation text; then all of the other text is trained on.
        test_path: Separate test text.
        seed: Seed of the windows' order; by default that of seed_everything.
        data_dir: Folder for fetched texts and token files.
        on_device: Keep the token ids in a GPU's memory and cut windows there. auto does so where
            they take at most a quarter of its free memory, and otherwise copies each batch ahead;
            false copies each batch when it is used. The windows are the same.
    """

    tokenizer: TokenizerOptions | str = "char"
    batch_size: int = 12
    block_size: int = 64
    windows: Windows = "pass"
    eos: bool = False
    train_fraction: float = 1.0
    val_path: str | None = None
    test_path: str | None = None
    seed: int | None = None
    data_dir: str = DATA_DIR
    on_device: bool | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        given: Any = self.tokenizer
        # a checkpoint holds the options of tokenizer and cleaning as plain data
        tokenizer = TokenizerOptions(**given) if isinstance(given, dict) else parse_options(given)
        tokenizer = dataclasses.replace(tokenizer, eos=self.eos or tokenizer.eos)
        object.__setattr__(self, "tokenizer", tokenizer)
        if isinstance(self.cleaning, dict):
            object.__setattr__(self, "cleaning", CleaningOptions(**self.cleaning))
        if self.format != "text":
            self._take_examples()
        if self.batch_size < 1:
            raise UsageError("must be 1 or more", "data.batch_size", self.batch_size)
        if not 0 < self.train_fraction <= 1:
            reason = "must be above 0 and at most 1"
            raise UsageError(reason, "data.train_fraction", self.train_fraction)
        TextOptions.__post_init__(self)
        _ = self.splitting  # checks its options

    def _take_examples(self) -> None:
        """Set the options that examples need: windows and splits are of whole ones."""
        for name, needed, default in (
            ("windows", "documents", "pass"),
            ("split_by", "documents", "characters"),
        ):
            if getattr(self, name) not in (needed, default):
                reason = f"needs {opt('data.format')} text; examples have {needed}"
                raise UsageError(reason, f"data.{name}", getattr(self, name))
            object.__setattr__(self, name, needed)
        for name, unused in (("eos", False), ("val_spans", 1), ("train_fraction", 1.0)):
            if getattr(self, name) != unused:
                reason = f"does not apply to {opt('data.format')} {self.format}; leave it out"
                raise UsageError(reason, f"data.{name}", getattr(self, name))
        if self.format == "pairs" and self.batch_size % 2:
            reason = "must be even: a pair has two windows"
            raise UsageError(reason, "data.batch_size", self.batch_size)

    @property
    def splitting(self) -> Splitting:
        """How the main text is split; a separate text leaves nothing to hold out for it."""
        return Splitting(
            0.0 if self.val_path else self.val_fraction,
            0.0 if self.test_path else self.test_fraction,
            self.val_spans if not self.val_path and self.val_fraction else 1,
            self.split_by,
        )
