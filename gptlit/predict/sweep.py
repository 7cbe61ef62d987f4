"""`gptlit predict --sweep`: the same prompts with all combinations of settings and checkpoints."""

import dataclasses
import itertools
import statistics
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from jsonargparse import Namespace

from gptlit.generation.settings import BeamSettings
from gptlit.generation.text_stream import GeneratedText
from gptlit.messages import UsageError, did_you_mean, errors_about
from gptlit.parser import OneLineErrors
from gptlit.predict.checkpoints import ComparedCheckpoint, find
from gptlit.predict.prompts import jobs, seeds

Settings = dict[str, Any]
# writes scored texts of jobs (prompt and seed) with one model
Writer = Callable[[Sequence[tuple[str, int]], BeamSettings], Iterable[list[GeneratedText]]]


def sweepable() -> list[str]:
    """Return the fields of `BeamSettings` that are numbers, and seed."""

    def is_number(hint: Any) -> bool:
        is_union = typing.get_origin(hint) in (typing.Union, UnionType)
        return set(typing.get_args(hint) if is_union else [hint]) <= {int, float, NoneType}

    hints = typing.get_type_hints(BeamSettings)
    names = [name for name in hints if is_number(hints[name]) and name != "num_samples"]
    return [*names, "seed"]


def parse_grid(words: Sequence[str], parser: OneLineErrors) -> dict[str, list[Any]]:
    """Parse `temperature=0.5,0.8 top_k=5,none` to the values of each setting.

    Args:
        words: Strings `name=value,value`, or several of them separated by spaces.
        parser: Parser of `gptlit predict`, for the values.

    Raises:
        UsageError: A name that cannot be swept, an invalid value, or a name given twice.
    """
    grid: dict[str, list[Any]] = {}
    for name, equals, values in (each.partition("=") for word in words for each in word.split()):
        if name not in (known := sweepable()):
            raise UsageError(
                f"--sweep {name}: not a numeric setting; choose from {', '.join(known)}."
                + did_you_mean(name, known)
            )
        if not equals or "" in values.split(","):
            raise UsageError(f"--sweep {name}{equals}{values}: write {name}=VALUE,VALUE,...")
        if name in grid:
            raise UsageError(f"--sweep {name}={values}: {name} is given twice; name it once")
        parsed = [parser.parse_one(name, each, f"--sweep {name}") for each in values.split(",")]
        grid[name] = list(dict.fromkeys(each[name] for each in parsed))
    return grid


@dataclass(frozen=True)
class Row:
    """A text of a sweep.

    Args:
        checkpoint: The checkpoint that wrote it.
        settings: The settings that differ within the sweep.
        seed: Seed of the text; None for a beam search.
        written: The text, scored.
    """

    checkpoint: ComparedCheckpoint
    settings: Settings
    seed: int | None
    written: GeneratedText

    @property
    def metrics(self) -> dict[str, float | None]:
        """Metrics of the text; None where there is nothing to average.

        logprob: mean log probability of its tokens by the model itself, in nats.
        entropy: mean entropy of the model's predictions, in nats.
        distinct: number of distinct words divided by the number of words.
        """
        words = self.written.text.split()
        logprobs, entropies = self.written.logprobs, self.written.entropies
        return {
            "logprob": statistics.fmean(logprobs) if logprobs else None,
            "entropy": statistics.fmean(entropies) if entropies else None,
            "distinct": len(set(words)) / len(words) if words else None,
        }


@dataclass(frozen=True)
class Sweep:
    """The checkpoints, settings, prompts and seeds of a sweep.

    Args:
        checkpoints: Checkpoints that write.
        combinations: Settings that differ, a dict for each combination.
        settings: All settings, of which a combination replaces some.
        prompts: Texts to continue.
        seeds: Seed of each text of a prompt.
        echo: Show the prompt with each text.
        weights: Data type of the weights: float32 or int8.
    """

    checkpoints: Sequence[ComparedCheckpoint]
    combinations: Sequence[Settings]
    settings: BeamSettings
    prompts: Sequence[str]
    seeds: Sequence[int]
    echo: bool = True
    weights: str = "float32"

    def rows(self, writer: Callable[[Path], Writer]) -> Iterator[Row]:
        """Write the texts, checkpoint by checkpoint, those of a combination as a batch.

        Raises:
            UsageError: A prompt has characters outside a checkpoint's vocabulary.
        """
        for checkpoint in self.checkpoints:
            write = writer(checkpoint.path)
            for combination in self.combinations:
                settings = dataclasses.replace(self.settings, **combination)
                # a beam search is one job for each prompt, and returns its best texts
                job_seeds = self.seeds_of(combination)
                work = jobs(self.prompts, self.seeds[: len(job_seeds)])
                with errors_about(str(checkpoint.path)):
                    texts_by_job = list(write(work, settings))
                for seed, texts in zip(itertools.cycle(job_seeds), texts_by_job, strict=False):
                    yield from (Row(checkpoint, combination, seed, text) for text in texts)

    def seeds_of(self, combination: Settings) -> Sequence[int | None]:
        """Return the seeds of a prompt's jobs; [None] for a beam search, which is one job."""
        settings = dataclasses.replace(self.settings, **combination)
        return [None] if settings.is_beam_search else self.seeds

    @property
    def is_all_search(self) -> bool:
        """Whether all combinations are beam searches, which draw nothing."""
        return all(self.seeds_of(each) == [None] for each in self.combinations)

    def text(self, row: Row) -> str:
        """Return the text of a row, with its prompt if `echo`."""
        return row.written.whole if self.echo else row.written.text


def plan(
    options: Namespace,
    settings: BeamSettings,
    prompts: Sequence[str],
    parser: OneLineErrors,
) -> Sweep:
    """Plan a sweep from the options of `gptlit predict`.

    Raises:
        UsageError: An invalid combination or checkpoint.
    """
    grid = parse_grid(list(itertools.chain(*(options.sweep or []))), parser)
    if options.greedy and "temperature" in grid:
        raise UsageError("--greedy: sets temperature 0, which --sweep temperature varies")
    if "seed" in grid and options.num_samples > 1:
        reason = "--sweep seed gives one text for each seed; leave one out"
        raise UsageError(reason, "num_samples", options.num_samples)
    if "seed" in grid and None not in grid.get("num_beams", [options.num_beams]):
        raise UsageError("--sweep seed: does not apply to a beam search, which draws nothing")
    swept_seeds = grid.pop("seed", list(seeds(options)))
    for seed in swept_seeds:
        if not 0 <= seed < 2**63:
            raise UsageError(f"--sweep seed={seed}: must be 0 or more, and below 2^63")
    combinations = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    for combination in combinations:
        try:
            checked = dataclasses.replace(settings, **combination)
        except UsageError as error:
            if error.option not in grid:
                raise
            raise error.renamed(error.option, f"sweep {error.option}") from error
        if checked.max_new_tokens is None:
            raise UsageError("texts of a table need a limit; give a number", "max_new_tokens", None)
    checkpoints = find(options.ckpt_path)
    return Sweep(
        checkpoints, combinations, settings, prompts, swept_seeds, options.echo, options.weights
    )
