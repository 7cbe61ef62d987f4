"""`gptlit compare`: runs side by side, in the terminal, as an HTML page or as Markdown."""

import dataclasses
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from gptlit.charts.text import Signs, signs_of
from gptlit.charts.themes import Theme
from gptlit.files import write_atomically, writing
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError, note, opt
from gptlit.parser import OneLineErrors, text_of, with_environment
from gptlit.reports import comparison, comparison_text
from gptlit.reports.comparison import Compared, Comparison
from gptlit.reports.curves import XAxis
from gptlit.terminal import columns_of

SUFFIXES = (".html", ".md")
MOST_PROMPTS = 3  # of the runs' own


def parser() -> OneLineErrors:
    """Return the parser of `gptlit compare`."""
    parser = OneLineErrors(prog="gptlit compare", allow_abbrev=False)
    add = parser.add_argument
    add("runs", nargs="*", type=str, default=None, help="Folders of runs, two or more, or a folder "
        "of runs or of a study; of a folder in lightning_logs the name is enough.")  # fmt: skip
    add("--output", type=str, default=None, help="Report to write: an .html, which is one "
        "self-contained page, or an .md. Left out, it is printed.")  # fmt: skip
    add("--x", type=XAxis | None, default=None, help="Unit of the curves' x axis; left out, the "
        "first that all runs have.")  # fmt: skip
    add("--prompt", action="append", type=str, default=None, help="Prompt of the sample texts; may "
        f"be repeated. Left out, those of the runs, {MOST_PROMPTS} at most.")  # fmt: skip
    add("--max_new_tokens", type=int, default=200, help="Length of a sample text; 0 writes none, "
        "and loads no checkpoint.")  # fmt: skip
    add("--temperature", type=float, default=SamplingSettings.temperature, help="Temperature of "
        "the sample texts.")  # fmt: skip
    add("--seed", type=int, default=1337, help="Seed of each sample text.")
    add("--theme", type=Theme, default="auto", help="Colours of a page; auto is what the viewer "
        "prefers.")  # fmt: skip
    return parser


def main(argv: Sequence[str]) -> None:
    """Run `gptlit compare` with these arguments.

    Raises:
        UsageError: An argument is invalid, or the runs can't be compared.
        RunError: The report can't be written.
    """
    asked = parser().parse_args(with_environment("compare", argv))
    output = Path(asked.output).expanduser() if asked.output else None
    if output and output.suffix.lower() not in SUFFIXES:
        reason = f"must end in {' or '.join(SUFFIXES)}; leave it out to print the report"
        raise UsageError(reason, "output", asked.output)
    if not 0 <= asked.seed < 2**63:
        raise UsageError("must be 0 or more, and below 2^63", "seed", asked.seed)
    length = asked.max_new_tokens
    settings = SamplingSettings(max_new_tokens=max(length, 1), temperature=asked.temperature)
    if length < 0:
        raise UsageError("must be 0 or more", "max_new_tokens", length)
    prompts = [text_of("--prompt", prompt) for prompt in asked.prompt or []]
    runs = comparison.find(asked.runs or [])
    compared = comparison.compare(runs, asked.x)
    if length:
        from gptlit.reports import samples  # imports torch

        written = samples.write(runs, prompts or _own_prompts(runs), settings, asked.seed)
        compared = dataclasses.replace(compared, samples=written)
    if output is None:
        width = columns_of(sys.stdout)
        # some terminals wrap a line that fills the last column
        lines = comparison_text.plain(compared, width and width - 1, signs_of(sys.stdout))
        print("\n".join(lines))
        return
    with writing(opt("output"), output):
        write_atomically(output, _encoded(compared, output.suffix.lower(), asked.theme))
    note(f"{compared.title} in {output}")


def _own_prompts(runs: Sequence[Compared]) -> list[str]:
    """Return the prompts of the runs' own samples."""
    given = [run.options.get("samples.prompts") for run in runs]
    lists = (each if isinstance(each, list) else [each] for each in given if each is not None)
    distinct = dict.fromkeys(str(prompt) for prompt in itertools.chain.from_iterable(lists))
    return [*distinct][:MOST_PROMPTS] or [""]


def _encoded(compared: Comparison, suffix: str, theme: Theme) -> bytes:
    if suffix == ".md":
        return "\n".join(comparison_text.markdown(compared, Signs())).encode()
    from gptlit.reports import comparison_page

    return comparison_page.html(compared, theme).encode()
