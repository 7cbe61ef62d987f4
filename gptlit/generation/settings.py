"""The settings of sampling and of beam search: name, type, default, help and check of each."""

import dataclasses
import inspect
import math
import textwrap
from dataclasses import dataclass, field
from typing import Any, Literal

from gptlit.messages import UsageError, as_strings, opt

# settings of the draw, which a beam search doesn't make
DRAW_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "typical_p")


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn and where a text ends; names and meanings are Hugging Face's.

    Args:
        temperature: Below 1 favours likely tokens, above 1 unlikely ones; 0 takes the likeliest.
        top_k: Draw from this many likeliest tokens; null for all.
        top_p: Draw from the fewest likeliest tokens that together have this probability.
        min_p: Draw from tokens at least this many times as likely as the likeliest one.
        typical_p: Draw from the fewest most typical tokens that together have this probability.
        repetition_penalty: Above 1, makes tokens of prompt and text less likely; 1 for none.
        frequency_penalty: Subtracted from a token's logit for each time it was written.
        presence_penalty: Subtracted from the logit of each token that was written.
        max_new_tokens: Most tokens to write, also beyond block_size; null for no limit.
        min_new_tokens: Number of tokens before the end of sequence can be drawn.
        stop: Strings that end a text where they first appear; not part of it.
        ban: Strings of one token each that are never written.
        force: Text that the continuation begins with, tokenized on its own; counts as new tokens.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    max_new_tokens: int | None = 500
    min_new_tokens: int = 0
    stop: list[str] = field(default_factory=list)
    ban: list[str] = field(default_factory=list)
    force: str = ""

    def __post_init__(self) -> None:
        # `not <=` refuses NaN as well
        if self.temperature != 0 and not 1e-6 <= self.temperature < math.inf:
            reason = "must be 0 (greedy), or 1e-6 or above; 0.8 is usual"
            raise UsageError(reason, "temperature", self.temperature)
        if self.top_k is not None and self.top_k < 1:
            raise UsageError("must be 1 or more, or left out for no limit", "top_k", self.top_k)
        for name, usual in (("top_p", 0.9), ("min_p", 0.05), ("typical_p", 0.9)):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"must be above 0 and at most 1; {usual} is usual", name, value)
        if not 1e-6 <= self.repetition_penalty <= 1e6:
            reason = "must be from 1e-6 to 1e6; 1 is none and 1.1 is usual"
            raise UsageError(reason, "repetition_penalty", self.repetition_penalty)
        for name in ("frequency_penalty", "presence_penalty"):
            if not -1e6 <= (value := getattr(self, name)) <= 1e6:
                raise UsageError("must be from -1e6 to 1e6; 0 is none", name, value)
        self._check_length_and_strings()

    def _check_length_and_strings(self) -> None:
        for name in ("stop", "ban"):
            object.__setattr__(self, name, as_strings(getattr(self, name), name))
        if self.max_new_tokens is not None and self.max_new_tokens < 0:
            raise UsageError("must be 0 or more", "max_new_tokens", self.max_new_tokens)
        most = math.inf if self.max_new_tokens is None else self.max_new_tokens
        if not 0 <= self.min_new_tokens <= most:
            raise UsageError(
                f"must be 0 or more, and not above {opt('max_new_tokens')} {self.max_new_tokens}",
                "min_new_tokens",
                self.min_new_tokens,
            )
        if "" in self.stop:
            raise UsageError("is in every text; name a string", "stop", "''")
        if stops := [string for string in self.stop if string in self.force]:
            reason = (
                f"contains {opt('stop')} {stops[0]!r}, which would end the text; "
                "leave one of them out"
            )
            raise UsageError(reason, "force", repr(self.force))

    def used(self) -> dict[str, Any]:
        """The settings that apply, by name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}


DEFAULTS = SamplingSettings()


def documented(settings: type) -> str:
    """The fields and their help from the docstring of a settings class, as a function's Args."""
    _, _, fields = (inspect.getdoc(settings) or "").partition("Args:\n")
    return textwrap.indent(textwrap.dedent(fields), " " * 8).strip()


@dataclass(frozen=True)
class BeamSettings(SamplingSettings):
    """How tokens are drawn or likely texts searched for, and where a text ends.

    Args:
        num_beams: Number of texts that a beam search follows at once; 1 is greedy. null for
            drawing tokens instead.
        length_penalty: For a beam search: above 0 favours longer texts, below 0 shorter ones; 0
            compares sums of log probabilities.
        early_stopping: For a beam search, when to stop once as many texts have ended as there are
            beams. true: at once, as a single beam always does. false: when the likeliest unfinished
            text, scored at its current length, is no better than the worst ended one. never: when
            no unfinished text can score above the worst ended one (if no penalty is negative).
        num_samples: Number of best texts to return, fewer if there are no more.
    """

    num_beams: int | None = None
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_samples: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_beams is None:
            for name in ("length_penalty", "early_stopping"):
                if (value := getattr(self, name)) != getattr(BeamSettings, name):
                    reason = f"applies to a beam search; give {opt('num_beams')} too"
                    raise UsageError(reason, name, value)
            return
        if self.num_beams < 1:
            raise UsageError("must be 1 (greedy) or more", "num_beams", self.num_beams)
        if not -10 <= self.length_penalty <= 10:
            reason = "must be from -10 to 10; 1 is usual"
            raise UsageError(reason, "length_penalty", self.length_penalty)
        if self.early_stopping not in (False, True, "never"):
            reason = "must be false, true or never"
            raise UsageError(reason, "early_stopping", self.early_stopping)
        if not 1 <= self.num_samples <= self.num_beams:
            beams = f"{opt('num_beams')} {self.num_beams}"
            reason = f"must be from 1 to {beams}; lower it or raise {opt('num_beams')}"
            raise UsageError(reason, "num_samples", self.num_samples)
        if not self.max_new_tokens:
            reason = "a beam search needs a limit; give a number of 1 or more"
            raise UsageError(reason, "max_new_tokens", self.max_new_tokens)
        for name in DRAW_SETTINGS:
            value = getattr(self, name)
            # greedy draws nothing either
            if value != getattr(BeamSettings, name) and (name, value) != ("temperature", 0):
                reason = "applies to drawing, and a beam search draws nothing; leave out "
                raise UsageError(f"{reason}{opt(name)}, or {opt('num_beams')}", name, value)

    @property
    def is_beam_search(self) -> bool:
        """Whether texts are searched for instead of drawn."""
        return self.num_beams is not None

    def used(self) -> dict[str, Any]:
        own = {each.name for each in dataclasses.fields(BeamSettings)}
        own -= {each.name for each in dataclasses.fields(SamplingSettings)}
        unused = DRAW_SETTINGS if self.is_beam_search else own
        return {name: value for name, value in super().used().items() if name not in unused}


GREEDY = BeamSettings(num_beams=1)
