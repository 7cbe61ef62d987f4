"""gptlit.generation's functions with settings as keywords, for tests that vary a few of them."""

from collections.abc import Iterator, Sequence
from typing import Any

from gptlit.generation import beam_search
from gptlit.generation import generate as plain
from gptlit.generation.beam_search import ScoredText
from gptlit.generation.settings import BeamSettings, SamplingSettings
from gptlit.generation.text_stream import GeneratedText
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer

OTHERS = ("seed", "unknown", "use_cache", "scored")


def _parted(keywords: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    others = {name: value for name, value in keywords.items() if name in OTHERS}
    return {name: value for name, value in keywords.items() if name not in OTHERS}, others


def search(model: GPT, tokenizer: Tokenizer, prompt: str = "", **keywords: Any) -> list[ScoredText]:
    settings, others = _parted({"num_beams": 1, **keywords})
    return beam_search.search(model, tokenizer, prompt, BeamSettings(**settings), **others)


def generate_many(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], seeds: Sequence[int], **keywords: Any
) -> list[GeneratedText]:
    settings, others = _parted(keywords)
    given = SamplingSettings(**settings)
    return plain.generate_many(model, tokenizer, prompts, seeds, given, **others)


def generate_samples(
    model: GPT, tokenizer: Tokenizer, prompt: str, *, seeds: Sequence[int], **keywords: Any
) -> list[str]:
    """A text for each seed, prompt and continuation, drawn as one batch."""
    texts = generate_many(model, tokenizer, [prompt] * len(seeds), seeds, **keywords)
    return [text.whole for text in texts]


def stream_generate(
    model: GPT, tokenizer: Tokenizer, prompt: str, **keywords: Any
) -> Iterator[str]:
    settings, others = _parted(keywords)
    given = SamplingSettings(**settings)
    return plain.stream_generate(model, tokenizer, prompt, given, **others)
