"""`gptlit predict --sweep`: the same prompts under all combinations of settings and checkpoints."""

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
from gptlit.generation.text_stream import Written
from gptlit.messages import UsageError, did_you_mean
from gptlit.parser import OneLineErrors
from gptlit.predict.checkpoints import Stage, find
from gptlit.predict.prompts import jobs, seeds

Settings = dict[str, Any]
# writes scored texts for prompts and seeds with one model
Writer = Callable[[Sequence[tuple[str, int]], BeamSettings], Iterable[list[Written]]]


def sweepable() -> list[str]:
    """The fields of `BeamSettings` that are numbers, and seed."""

    def is_number(hint: Any) -> bool:
        is_union = typing.get_origin(hint) in (typing.Union, UnionType)
        return set(typing.get_args(hint) if is_union else [hint]) <= {int, float, NoneType}

    hints = typing.get_type_hints(BeamSettings)
    names = [name for name in hints if is_number(hints[name]) and name != "num_samples"]
    return [*names, "seed"]


def parse_grid(words: Sequence[str], parser: OneLineErrors) -> dict[str, list[Any]]:
    """`temperature=0.5,0.8 top_k=5,none` as the values of each setting.

    Args:
        words: Each `name=value,value`, or several of them with blanks between.
        parser: That of `gptlit predict`, which knows what a value of each option is.

    Raises:
        UsageError: a name that can't be swept, a value that isn't one, or a name given twice.
    """
    grid: dict[str, list[Any]] = {}
    for name, equals, values in (each.partition("=") for word in words for each in word.split()):
        if name not in (known := sweepable()):
            raise UsageError(
                f"--sweep {name}: not a setting that is a number; choose from {', '.join(known)}."
                + did_you_mean(name, known)
            )
        if not equals or "" in values.split(","):
            raise UsageError(f"--sweep {name}{equals}{values}: say {name}=VALUE,VALUE,...")
        if name in grid:
            raise UsageError(f"--sweep {name}={values}: {name} is given twice; name it once")
        parsed = [_parse(name, value, parser) for value in values.split(",")]
        grid[name] = list(dict.fromkeys(parsed))
    return grid


def _parse(name: str, value: str, parser: OneLineErrors) -> Any:
    try:
        return parser.parse_args([f"--{name}={value}"])[name]
    except UsageError as error:
        raise _of_sweep(error) from error


def _of_sweep(error: UsageError) -> UsageError:
    return UsageError(str(error).replace("--", "--sweep ", 1))


@dataclass(frozen=True)
class Row:
    """A text, and what it was written by and with.

    Args:
        stage: The checkpoint.
        settings: Those of the combination alone.
        seed: Of the text; None of a beam search, which draws nothing.
        written: The text, scored.
    """

    stage: Stage
    settings: Settings
    seed: int | None
    written: Written

    @property
    def figures(self) -> dict[str, float | None]:
        """What helps to decide, None where there is nothing to take a mean of.

        logprob: the mean of its tokens' log probabilities, by the model itself, in nats.
        entropy: the mean of those of the model's predictions, in nats.
        distinct: the number of different words divided by that of words, between blanks.
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
    """What is compared with what.

    Args:
        stages: The checkpoints.
        combinations: The settings that differ, one dict for each combination.
        settings: All settings; those of a combination come in their place.
        prompts: What to continue.
        seeds: One for each text of a prompt.
        echo: Tell the prompt with each text.
        weights: What the models' weights are rounded to.
    """

    stages: Sequence[Stage]
    combinations: Sequence[Settings]
    settings: BeamSettings
    prompts: Sequence[str]
    seeds: Sequence[int]
    echo: bool = True
    weights: str = "float32"

    def rows(self, writer: Callable[[Path], Writer]) -> Iterator[Row]:
        """Each text, checkpoint by checkpoint; the texts of one combination are one batch.

        Raises:
            UsageError: a checkpoint doesn't know what is in a prompt; names it.
        """
        for stage in self.stages:
            write = writer(stage.path)
            for combination in self.combinations:
                settings = dataclasses.replace(self.settings, **combination)
                # a search is one job for each prompt, and gives the best texts of it
                told = self.seeds_of(combination)
                work = jobs(self.prompts, self.seeds[: len(told)])
                try:
                    texts = list(write(work, settings))
                except UsageError as error:
                    raise UsageError(f"{stage.path}: {error}") from error
                for seed, found in zip(itertools.cycle(told), texts, strict=False):
                    yield from (Row(stage, combination, seed, text) for text in found)

    def seeds_of(self, combination: Settings) -> Sequence[int | None]:
        """The seed of each job of a prompt; None stands for a beam search's only one."""
        settings = dataclasses.replace(self.settings, **combination)
        return [None] if settings.is_beam_search else self.seeds

    @property
    def is_all_search(self) -> bool:
        """Whether nothing is drawn."""
        return all(self.seeds_of(each) == [None] for each in self.combinations)

    def text(self, row: Row) -> str:
        """What is shown of a row's text."""
        return row.written.whole if self.echo else row.written.text


def plan(
    options: Namespace,
    settings: BeamSettings,
    prompts: Sequence[str],
    parser: OneLineErrors,
) -> Sweep:
    """What the options of `gptlit predict` compare.

    Raises:
        UsageError: a combination or a checkpoint that can't work.
    """
    grid = parse_grid(list(itertools.chain(*(options.sweep or []))), parser)
    if options.greedy and "temperature" in grid:
        raise UsageError("--greedy: means temperature 0, which --sweep temperature is to vary")
    if "seed" in grid and options.num_samples > 1:
        raise UsageError(
            f"--num_samples {options.num_samples}: --sweep seed names the seeds; leave one out"
        )
    is_drawn = None in grid.get("num_beams", [options.num_beams])
    if "seed" in grid and not is_drawn:
        raise UsageError("--sweep seed: has no part in a beam search, which draws nothing")
    swept_seeds = grid.pop("seed", list(seeds(options)))
    combinations = [
        dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())
    ]
    for combination in combinations:
        try:
            whole = dataclasses.replace(settings, **combination)
        except UsageError as error:
            name = str(error).removeprefix("--").split()[0]
            raise (_of_sweep(error) if name in grid else error) from error
        if whole.max_new_tokens is None:
            raise UsageError("--max_new_tokens null: texts that are compared need an end")
    if bad := [seed for seed in swept_seeds if not 0 <= seed < 2**63]:
        raise UsageError(f"--sweep seed={bad[0]}: must be 0 or more, and below 2^63")
    stages = find(options.ckpt_path)
    return Sweep(
        stages,
        combinations,
        settings,
        prompts,
        swept_seeds,
        options.echo,
        options.weights,
    )


def as_json(row: Row, sweep: Sweep) -> dict[str, Any]:
    """All of a row, as one flat object."""
    seed = {} if row.seed is None else {"seed": row.seed}
    return {
        "checkpoint": str(row.stage.path),
        "step": row.stage.step,
        "val/loss": row.stage.val_loss,
        "val/step": row.stage.val_step,
        "weights": sweep.weights,
        **seed,
        **dataclasses.replace(sweep.settings, **row.settings).used(),
        **row.figures,
        **dataclasses.asdict(row.written),
    }
