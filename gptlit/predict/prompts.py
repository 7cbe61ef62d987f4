"""The prompts of `gptlit predict`: where they come from, and what becomes of them."""

import re
import sys
from collections.abc import Collection, Sequence
from typing import IO, Any

from jsonargparse import Namespace

from gptlit.corpora import inputs
from gptlit.generation.generate import tell_dropped
from gptlit.messages import UsageError, is_first_process, note
from gptlit.parser import text_of
from gptlit.tokenizers.base import Tokenizer, Unknown

STANDARD_INPUT = "-"
ESCAPES = {"n": "\n", "t": "\t", "\\": "\\"}


def given(options: Namespace) -> list[str]:
    """The prompts given by options, a file or standard input; an empty one if there is none.

    A file's last line end is not part of a prompt.

    Raises:
        UsageError: a file that can't be read, nothing in it, or bytes that are no text.
    """
    given = [text_of("--prompt", prompt) for prompt in options.prompt or []]
    if any("\\n" in prompt for prompt in given):
        note(
            "warning: --prompt: a backslash and an n stay two characters; for a line end type "
            "$'\\n' in bash, or use --prompt_file"
        )
    if options.prompt_file is not None:
        try:
            if options.prompt_file == STANDARD_INPUT:
                if not is_first_process():
                    raise UsageError(
                        "--prompt_file -: standard input can be read by one process alone; save "
                        "what comes through it to a file and name that"
                    )
                content = standard_input("--prompt_file -").read(inputs.TEXT_BYTES + 1)
                if len(content) > inputs.TEXT_BYTES:
                    raise UsageError(
                        f"--prompt_file -: more than {inputs.TEXT_BYTES >> 20} Mi characters came; "
                        "give fewer prompts at once"
                    )
            else:
                content = inputs.read_text(options.prompt_file, "--prompt_file")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise UsageError(f"--prompt_file {options.prompt_file}: {reason}") from error
        content = content.removesuffix("\n")
        more = [line for line in content.split("\n") if line] if options.lines else [content]
        if not more:
            raise UsageError(f"--prompt_file {options.prompt_file}: no line in it")
        given += more
    elif options.lines:
        raise UsageError("--lines: needs --prompt_file, whose lines are prompts")
    return given or [""]


def standard_input(option: str, errors: str = "strict") -> IO[str]:
    """Standard input as UTF-8 whatever the locale is, less a mark of byte order, as of a file.

    Args:
        option: What reads it.
        errors: As Python's `open` takes it.

    Raises:
        UsageError: it has no end.
    """
    inputs.refuse_endless_standard_input(option)
    stdin: Any = sys.stdin  # always a TextIOWrapper
    stdin.reconfigure(encoding="utf-8-sig", errors=errors)
    return stdin


def unescaped(text: str) -> str:
    r"""A text as typed in a shell, with \n, \t and \\ as the characters that they stand for."""
    return re.sub(r"\\([nt\\])", lambda match: ESCAPES[match[1]], text)


def with_unescaped(words: Sequence[str], names: Collection[str]) -> list[str]:
    """The same arguments, with the values of these options unescaped."""
    found: list[str] = []
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if equals and name in names:
            found.append(f"{name}={unescaped(value)}")
        elif index and words[index - 1] in names and not word.startswith("--"):
            found.append(unescaped(word))
        else:
            found.append(word)
    return found


def tell_about(
    prompts: Sequence[str], unknown: Unknown, tokenizer: Tokenizer, block_size: int
) -> None:
    """Warn of what becomes of prompts: pieces dropped, or more than the context."""
    for prompt in prompts:
        tell_dropped(prompt, unknown, tokenizer)
        n_tokens = len(tokenizer.encode(prompt, "skip"))
        if n_tokens > block_size:
            note(
                f"warning: --prompt has {n_tokens} tokens; the model sees its last {block_size} "
                "at once"
            )


def seeds(options: Namespace) -> range:
    """The seed of each text of a prompt; a beam search gives all of a prompt's at once."""
    n = options.num_samples if options.num_beams is None else 1
    return range(options.seed, options.seed + n)


def jobs(prompts: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, int]]:
    """The prompt and seed of each text, in the order in which they are told."""
    return [(prompt, seed) for prompt in prompts for seed in seeds]
