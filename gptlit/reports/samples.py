"""Texts that several runs write after the same prompts, for `gptlit compare`; imports torch."""

import re
from collections.abc import Sequence
from pathlib import Path

from gptlit.checkpoints import checkpoint, run_paths
from gptlit.generation.generate import generate_many
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError, note
from gptlit.reports.comparison import Compared, Sample

SAMPLES = "samples.txt"  # in a run's folder
LONGEST_EXCERPT = 1000  # characters
Text = tuple[str, str]  # without its prompt, and where it comes from


def write(
    runs: Sequence[Compared], prompts: Sequence[str], settings: SamplingSettings, seed: int
) -> list[Sample]:
    """Write a text after each prompt with each run's best checkpoint, or else its last one.

    The texts of a run without a checkpoint come from its samples.txt, if it has such a prompt.

    Args:
        runs: The runs.
        prompts: The prompts; characters outside a run's vocabulary are left out.
        settings: How tokens are drawn, and how many.
        seed: Seed of each text.

    Raises:
        UsageError: A setting is invalid.
    """
    by_run = [_of_run(run, prompts, settings, seed) for run in runs]
    samples = []
    for prompt, pairs in zip(prompts, zip(*by_run, strict=True), strict=True):
        texts, sources = zip(*pairs, strict=True)
        samples.append(Sample(prompt, texts, sources))
    return samples


def _of_run(
    run: Compared, prompts: Sequence[str], settings: SamplingSettings, seed: int
) -> list[Text]:
    folder = run.folder / run_paths.CHECKPOINTS
    paths = [folder / f"{name}.ckpt" for name in run_paths.ALIASES]
    problem = "no checkpoint"
    for path in filter(Path.is_file, paths):
        try:
            content = checkpoint.read(path)
            model, tokenizer = checkpoint.build(content)
        except UsageError as error:
            problem = f"{path.name}: {error.reason}"
            continue
        source = f"{path.name}, step {content['global_step']:,}"
        note(f"{run.name}: writing sample texts ({source})")
        seeds = [seed] * len(prompts)
        found = generate_many(model, tokenizer, prompts, seeds, settings, unknown="skip")
        return [(each.text, source) for each in found]
    return [_excerpt(run.folder / SAMPLES, prompt, problem) for prompt in prompts]


def _excerpt(path: Path, prompt: str, problem: str) -> Text:
    """Return the last text after a prompt in samples.txt."""
    content = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    heads = [*re.finditer(r"^=== step (\d+), .*\n", content, re.MULTILINE)]
    end = len(content)
    for head in reversed(heads):
        text = content[head.end() : end].removesuffix("\n").removesuffix("\n")
        end = head.start()
        if text.startswith(prompt):
            step = f"{int(head[1]):,}"
            return text[len(prompt) :][:LONGEST_EXCERPT], f"{SAMPLES}, step {step}"
    return "", problem if not content else f"{problem}, and {SAMPLES} has no such prompt"
