"""`gptlit predict --interactive`: a prompt loop, whose settings change on the fly."""

import contextlib
import itertools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

from jsonargparse import Namespace

from gptlit import signals
from gptlit.generation.generate import rules_by_id, stream_generate
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError, did_you_mean, note
from gptlit.model.gpt import GPT
from gptlit.parser import OneLineErrors, text_of
from gptlit.predict import prompts
from gptlit.terminal import SEPARATOR, write_stream
from gptlit.tokenizers.base import Tokenizer

HELP = """\
A line is a prompt, which the model continues; an empty one starts from the end
  of sequence, else a newline, else the first token, whichever the model has.
  /temperature 0.7   changes a setting; /temperature tells it, /top_k none takes a limit away
  /stop TEXT         one more text to stop at, as /ban TOKEN; /stop none forgets them
  /force TEXT        what each text begins with; /force none forgets it
  /seed 7            another text for the same prompt
  /again             the last prompt with the next seeds
  /settings          tells all settings
  //TEXT             a prompt that begins with /TEXT
  /help, /quit       Ctrl-C stops a text, Ctrl-D leaves"""
PROMPT = "> "
COMMANDS = ("again", "settings", "help", "quit", "exit")
LISTS = ("stop", "ban")
SETTINGS = (*SamplingSettings.__dataclass_fields__, "seed", "num_samples", "unknown", "echo")


@dataclass
class Session:
    """What a loop keeps between lines.

    Args:
        model: The model that writes.
        tokenizer: The one it was trained with.
        options: Those of `gptlit predict`, as they are by now.
        parser: Gave the options, and so knows what a value of each is.
        check: Makes the settings of options, or raises UsageError.
        prompt: The last one.
        n_texts: How many were begun.
    """

    model: GPT
    tokenizer: Tokenizer
    options: Namespace
    parser: OneLineErrors
    check: Callable[[Namespace], SamplingSettings]
    prompt: str = ""
    n_texts: int = 0


def talk(session: Session) -> None:
    """Answer line after line of standard input, until its end or `/quit`.

    In a terminal Ctrl-C stops the text that is being written; what comes from a file or a pipe
    it ends altogether. Lines that can't work are told on stderr, and go by.
    """
    _check(session, session.options)
    by_hand = sys.stdin.isatty()
    # undecodable bytes are kept, so that a line is refused, and goes by
    prompts.standard_input("--interactive", errors="surrogateescape")
    if by_hand:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives input() a history and keys to edit by
        note("a line is a prompt; /help tells more, Ctrl-D leaves")
    while True:
        try:
            line = _read_line(by_hand)
            if line is None or not _answer(session, line, by_hand):
                return
        except UsageError as error:
            note(f"error: {_in_slashes(str(error))}")
        except KeyboardInterrupt:
            if not by_hand:
                raise
            signals.forget()
            print(flush=True)


def _read_line(by_hand: bool) -> str | None:
    """The next line without its end; None where there is no more."""
    if by_hand and sys.stdout.isatty():
        try:
            return input(PROMPT)
        except EOFError:
            print()
            return None
    if by_hand:
        print(PROMPT, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _answer(session: Session, line: str, by_hand: bool) -> bool:
    """Do what a line asks for; whether to go on.

    Raises:
        UsageError: it can't be done.
    """
    text_of("standard input", line)
    if line.startswith("//") or not line.startswith("/"):
        session.prompt = line.removeprefix("/")
        _write(session, by_hand)
        return True
    name, _, value = line[1:].partition(" ")
    if name in ("quit", "exit"):
        return False
    if name == "again":
        session.options.seed += session.options.num_samples
        _write(session, by_hand)
    elif name == "help":
        print(HELP, file=sys.stderr)
    elif name == "settings":
        for each in SETTINGS:
            print(f"  {each:<20}{_told(session, each)}", file=sys.stderr)
    elif name not in SETTINGS:
        near = did_you_mean(name, [*COMMANDS, *SETTINGS]).replace("mean ", "mean /")
        raise UsageError(f"/{name}: no such command or setting; /help tells them.{near}")
    else:
        if value.strip():
            session.options = _changed(session, name, value.strip())
        if by_hand or not value.strip():
            print(f"  {name} {_told(session, name)}", file=sys.stderr)
    return True


def _told(session: Session, name: str) -> str:
    value = session.check(session.options).used().get(name, session.options[name])
    return "none" if value in (None, [], "") else str(value)


def _changed(session: Session, name: str, value: str) -> Namespace:
    """The options with another value for one of them, all checked."""
    changed = session.options.clone()
    given = session.parser.parse_args([f"--{name}={value}"])[name]
    if name in LISTS:
        given = [] if value == "none" else [*(changed[name] or []), *given]
    if name == "force" and value == "none":
        given = ""
    if name == "temperature":
        changed.greedy = False
    changed[name] = given
    _check(session, changed)
    return changed


def _check(session: Session, options: Namespace) -> None:
    """Refuse settings that can't work, or not with this model's tokenizer."""
    rules_by_id(session.tokenizer, session.check(options))


def _in_slashes(message: str) -> str:
    """A message that names options of the command line, naming commands instead."""
    message = re.sub(rf"--(?=({'|'.join(SETTINGS)})\b)", "/", message)
    return message.replace("--prompt", "prompt")


def _write(session: Session, by_hand: bool) -> None:
    """The texts of the last prompt, as `gptlit predict` writes them, each as it comes."""
    options, settings = session.options, session.check(session.options)
    size = session.model.config.block_size
    prompts.tell_about([session.prompt], options.unknown, session.tokenizer, size)
    for index in range(options.num_samples):
        if index or (session.n_texts and not by_hand):
            print(SEPARATOR, end="")
        pieces = stream_generate(
            session.model,
            session.tokenizer,
            session.prompt,
            settings,
            seed=options.seed + index,
            unknown=options.unknown,
        )
        first = next(pieces)
        session.n_texts += 1
        write_stream(itertools.chain([first] if options.echo else [], pieces), at_once=True)
