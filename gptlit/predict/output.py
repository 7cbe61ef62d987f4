"""Where `gptlit predict` writes: standard output or a file, as text or as .jsonl."""

import contextlib
import dataclasses
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from jsonargparse import Namespace

from gptlit.data.novelty import TrainingText
from gptlit.files import write_atomically, writing
from gptlit.generation.beam_search import ScoredText
from gptlit.generation.settings import BeamSettings
from gptlit.generation.text_stream import GeneratedText
from gptlit.messages import UsageError, note
from gptlit.terminal import SEPARATOR, columns, columns_of, wrap_words

FILE_COLUMNS = 100


def check_output_file(path: str) -> None:
    """Refuse a file that cannot be written, before texts are generated for hours.

    Raises:
        UsageError: The path is not a file, or its folder is missing or read-only.
    """
    folder = Path(path).parent
    if Path(path).is_dir():
        reason = "is a folder; name a file"
    elif Path(path).exists() and not Path(path).is_file():
        reason = "is not a file; without --output_file texts go to standard output"
    elif not folder.is_dir():
        reason = f"there is no folder {folder}; make it first"
    elif not os.access(folder, os.W_OK):
        reason = f"no permission to write to {folder.absolute()}; name another folder"
    else:
        return
    raise UsageError(reason, "output_file", path)


@contextlib.contextmanager
def opened(path: str | None, header: str = "") -> Iterator[IO[str]]:
    """Open standard output, or a file that is written atomically when all texts are complete.

    After an error or Ctrl-C, the texts so far are kept in PATH.partial.

    Args:
        path: Path of the file; None for standard output.
        header: First lines of the file.
    """
    if path is None:
        yield sys.stdout
        return
    content = io.StringIO()
    content.write(header)
    try:
        yield content
    except BaseException:
        if len(content.getvalue()) > len(header):
            partial = Path(f"{path}.partial")
            write_atomically(partial, content.getvalue().encode())
            note(f"{partial} has the texts written so far")
        raise
    with writing("--output_file", path):
        write_atomically(Path(path), content.getvalue().encode())


def header(options: Namespace, settings: BeamSettings, prompts: Sequence[str]) -> str:
    """Format the settings and prompts as the header of a file of texts; empty for .jsonl."""
    if options.format != "text":
        return ""
    rows = {"checkpoint": options.ckpt_path[0], "weights": options.weights}
    if options.num_beams is None:
        rows |= {"seed": options.seed, "num_samples": options.num_samples}
    rows |= {**settings.used(), "unknown": options.unknown}
    rows |= {"prompt": prompts[0] if len(prompts) == 1 else list(prompts)}
    return "".join(f"# {name}: {value!r}\n" for name, value in rows.items()) + "\n"


def write_texts(
    texts_by_job: Iterable[Sequence[GeneratedText]],
    jobs: Sequence[tuple[str, int]],
    options: Namespace,
    out: IO[str],
    training_text: TrainingText | None = None,
) -> None:
    """Write the texts of each job, separated by lines `---`, or as .jsonl.

    Args:
        texts_by_job: The texts of each job.
        jobs: Prompt and seed of each job.
        options: Options of `gptlit predict`.
        out: Stream to write to.
        training_text: Text to compare them with; its copies are marked or counted.
    """
    width = columns_of(out) if options.format == "text" else None
    pairs = zip(texts_by_job, jobs, strict=True)
    texts = ((text, seed) for job, (_, seed) in pairs for text in job)
    scores = []
    for index, (text, seed) in enumerate(texts):
        if isinstance(text, ScoredText):
            scores.append(f"{text.score:.4f}")
        if options.format == "jsonl":
            row = {"checkpoint": options.ckpt_path[0]}
            row |= {"seed": seed} if options.num_beams is None else {}
            row |= dataclasses.asdict(text)
            if training_text is not None:
                row |= training_text.copied(text.whole, len(text.prompt)).as_row()
            line = json.dumps(row) + "\n"
        else:
            shown = text.whole if options.echo else text.text
            if training_text is not None:
                copied = training_text.copied(shown, len(text.prompt) if options.echo else 0)
                shown = copied.mark(shown)
                note(f"text {index + 1}: {copied}")
            line = (SEPARATOR if index else "") + shown + ("" if shown.endswith("\n") else "\n")
        write_parts([line if width is None else wrap_words(line, width)], out)
    if scores and options.format == "text" and len(jobs) == 1:
        note(f"scores, the best first: {', '.join(scores)}")


def write_parts(parts: Iterable[str], out: IO[str]) -> None:
    """Write each part as soon as it is there."""
    for part in parts:
        out.write(part)
        out.flush()


def table_width(options: Namespace) -> int:
    """Return the columns of a table: the terminal's, or a fixed number in a file."""
    return columns() if options.output_file is None else FILE_COLUMNS
