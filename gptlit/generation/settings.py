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
class BasicSampling:
    """The settings that sampling needs most.

    Args:
        temperature: Below 1 favours likely tokens, above 1 unlikely ones; 0 takes the likeliest.
        top_k: Draw from this many likeliest tokens; null for all.
    """

    temperature: float = 0.8
    top_k: int | None = None


@dataclass(frozen=True)
class SamplingSettings(BasicSampling):
    """How tokens are drawn and where a text ends; names and meanings are Hugging Face's.

    Args:
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
        require = self._require
        # comparisons with NaN are false
        require(
            self.temperature == 0 or 1e-6 <= self.temperature < math.inf,
            "temperature",
            "must be 0 (greedy), or 1e-6 or above; 0.8 is usual",
        )
        reason = "must be 1 or more, or left out for no limit"
        require(self.top_k is None or self.top_k >= 1, "top_k", reason)
        for name, usual in (("top_p", 0.9), ("min_p", 0.05), ("typical_p", 0.9)):
            value = getattr(self, name)
            reason = f"must be above 0 and at most 1; {usual} is usual"
            require(value is None or 0 < value <= 1, name, reason)
        reason = "must be from 1e-6 to 1e6; 1 is none and 1.1 is usual"
        require(1e-6 <= self.repetition_penalty <= 1e6, "repetition_penalty", reason)
        for name in ("frequency_penalty", "presence_penalty"):
            reason = "must be from -1e6 to 1e6; 0 is none"
            require(-1e6 <= getattr(self, name) <= 1e6, name, reason)
        for name in ("stop", "ban"):
            object.__setattr__(self, name, as_strings(getattr(self, name), name))
        most = math.inf if self.max_new_tokens is None else self.max_new_tokens
        require(most >= 0, "max_new_tokens", "must be 0 or more")
        reason = f"must be 0 or more, and not above {opt('max_new_tokens')} {self.max_new_tokens}"
        require(0 <= self.min_new_tokens <= most, "min_new_tokens", reason)
        if "" in self.stop:
            raise UsageError("is in every text; name a string", "stop", "''")
        if stops := [string for string in self.stop if string in self.force]:
            reason = f"contains {opt('stop')} {stops[0]!r}, which would end the text"
            raise UsageError(f"{reason}; leave one of them out", "force", repr(self.force))

    def _require(self, is_valid: bool, name: str, reason: str) -> None:
        if not is_valid:
            raise UsageError(reason, name, getattr(self, name))

    def used(self) -> dict[str, Any]:
        """Return the settings that apply, by name."""
        return {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}


DEFAULTS = SamplingSettings()


def documented(settings: type) -> str:
    """Return the Args in the docstrings of a settings class, indented for a function's."""
    docs = [inspect.cleandoc(each.__doc__ or "") for each in reversed(settings.__mro__)]
    fields = [textwrap.dedent(doc.partition("Args:\n")[2]).strip() for doc in docs]
    return textwrap.indent("\n".join(filter(None, fields)), " " * 8).strip()


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
        require = self._require
        if self.num_beams is None:
            for name in ("length_penalty", "early_stopping"):
                reason = f"applies to a beam search; give {opt('num_beams')} too"
                require(getattr(self, name) == getattr(BeamSettings, name), name, reason)
            return
        require(self.num_beams >= 1, "num_beams", "must be 1 (greedy) or more")
        reason = "must be from -10 to 10; 1 is usual"
        require(-10 <= self.length_penalty <= 10, "length_penalty", reason)
        reason = "must be false, true or never"
        require(self.early_stopping in (False, True, "never"), "early_stopping", reason)
        beams = f"{opt('num_beams')} {self.num_beams}"
        reason = f"must be from 1 to {beams}; lower it or raise {opt('num_beams')}"
        require(1 <= self.num_samples <= self.num_beams, "num_samples", reason)
        reason = "a beam search needs a limit; give a number of 1 or more"
        require(bool(self.max_new_tokens), "max_new_tokens", reason)
        reason = "applies to drawing, and a beam search draws nothing; leave out "
        for name in DRAW_SETTINGS:
            value = getattr(self, name)
            # greedy draws nothing either
            is_unused = value == getattr(BeamSettings, name) or (name, value) == ("temperature", 0)
            require(is_unused, name, f"{reason}{opt(name)}, or {opt('num_beams')}")

    @property
    def is_beam_search(self) -> bool:
        """Whether texts are searched for instead of drawn."""
        return self.num_beams is not None

    def used(self) -> dict[str, Any]:
        beam_settings = BeamSettings.__annotations__.keys()
        unused = DRAW_SETTINGS if self.is_beam_search else beam_settings
        return {name: value for name, value in super().used().items() if name not in unused}


GREEDY = BeamSettings(num_beams=1)
