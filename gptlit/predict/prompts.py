"""The prompts of `gptlit predict`: reading them, and the texts to write for each."""

import sys
from collections.abc import Sequence
from typing import IO, Any

from jsonargparse import Namespace

from gptlit.corpora import examples, inputs
from gptlit.generation.prompts import warn_dropped
from gptlit.messages import UsageError, is_first_process, note
from gptlit.parser import text_of
from gptlit.tokenizers.base import Tokenizer, Unknown

STANDARD_INPUT = "-"


def read(options: Namespace) -> list[str]:
    """Read the prompts given by options, a file or standard input; an empty one if there is none.

    The last line break of a file is not part of a prompt.

    Raises:
        UsageError: A file that cannot be read, has no lines, or is not UTF-8 text.
    """
    prompts = [text_of("--prompt", prompt) for prompt in options.prompt or []]
    if any("\\n" in prompt for prompt in prompts):
        note(
            "warning: --prompt: a backslash and an n stay two characters; for a line break type "
            "$'\\n' in bash, or use --prompt_file"
        )
    path = options.prompt_file
    if path is not None:
        try:
            if path == STANDARD_INPUT:
                content = _standard_input_text()
            else:
                content = inputs.read_text(path, "--prompt_file")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise UsageError(f"--prompt_file {path}: {reason}") from error
        content = content.removesuffix("\n")
        of_file = list(filter(None, content.split("\n"))) if options.lines else [content]
        if not of_file:
            raise UsageError("has no lines; write a prompt on each", "prompt_file", path)
        prompts += of_file
    elif options.lines:
        raise UsageError("--lines: needs --prompt_file, whose lines are prompts")
    prompts = prompts or [""]
    return [examples.asked([("user", each)]) for each in prompts] if options.chat else prompts


def _standard_input_text() -> str:
    if not is_first_process():
        raise UsageError(
            "--prompt_file -: a single process can read standard input; save it to a file and "
            "name that"
        )
    content = standard_input("--prompt_file -").read(inputs.MAX_TEXT_BYTES + 1)
    if len(content) > inputs.MAX_TEXT_BYTES:
        raise UsageError(
            f"--prompt_file -: is more than {inputs.MAX_TEXT_BYTES >> 20} Mi characters; give "
            "fewer prompts at once"
        )
    return content


def standard_input(option: str, errors: str = "strict") -> IO[str]:
    """Return standard input as UTF-8 in any locale, without a byte order mark.

    Args:
        option: Option that reads it, for messages.
        errors: Handling of invalid bytes, as for Python's `open`.

    Raises:
        UsageError: Standard input is a device that never ends.
    """
    inputs.refuse_endless_standard_input(option)
    stdin: Any = sys.stdin  # always a TextIOWrapper
    stdin.reconfigure(encoding="utf-8-sig", errors=errors)
    return stdin


def warn_about(
    prompts: Sequence[str], unknown: Unknown, tokenizer: Tokenizer, block_size: int
) -> None:
    """Warn of prompts with dropped characters, and of prompts longer than the context."""
    for prompt in prompts:
        warn_dropped(prompt, unknown, tokenizer)
        n_tokens = len(tokenizer.encode(prompt, "skip"))
        if n_tokens > block_size:
            note(
                f"warning: --prompt has {n_tokens} tokens; the model sees its last {block_size} "
                "at once"
            )


def seeds(options: Namespace) -> range:
    """Return the seeds of a prompt's texts; one for a beam search, which returns all texts."""
    n = options.num_samples if options.num_beams is None else 1
    return range(options.seed, options.seed + n)


def jobs(prompts: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """Return the prompt and seed of each text, in the order of the output."""
    return [(prompt, seed) for prompt in prompts for seed in seeds]
