"""Texts of prompts and seeds, by whichever method the settings choose."""

from collections.abc import Sequence

from gptlit.generation.beam_search import search
from gptlit.generation.generate import generate_many
from gptlit.generation.settings import DEFAULTS, BeamSettings, SamplingSettings
from gptlit.generation.text_stream import GeneratedText
from gptlit.model.gpt import GPT
from gptlit.tokenizers.base import Tokenizer, Unknown


def write_jobs(
    model: GPT,
    tokenizer: Tokenizer,
    jobs: Sequence[tuple[str, int]],
    settings: SamplingSettings = DEFAULTS,
    *,
    unknown: Unknown = "error",
    scored: bool = False,
) -> list[list[GeneratedText]]:
    """Write the texts of each job: those that a beam search finds, or the one that is drawn.

    Other arguments, and errors, are those of `search` and `generate_many`.

    Args:
        jobs: A prompt and a seed each; drawn texts are one batch.
        settings: `BeamSettings` with num_beams for a beam search, which doesn't use the seeds.
    """
    if isinstance(settings, BeamSettings) and settings.is_beam_search:
        return [
            [*search(model, tokenizer, prompt, settings, unknown=unknown, scored=scored)]
            for prompt, _ in jobs
        ]
    prompts, seeds = zip(*jobs, strict=True)
    texts = generate_many(
        model, tokenizer, prompts, seeds, settings, unknown=unknown, scored=scored
    )
    return [[text] for text in texts]
