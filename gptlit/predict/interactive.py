"""`gptlit predict --interactive`: a prompt loop with commands that change settings."""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from jsonargparse import Namespace

from gptlit import signals
from gptlit.corpora import examples
from gptlit.generation.generate import stream_generate
from gptlit.generation.prompts import rule_ids
from gptlit.generation.settings import SamplingSettings
from gptlit.messages import UsageError, closest, naming_flags, note
from gptlit.model.gpt import GPT
from gptlit.parser import OneLineErrors, text_of
from gptlit.predict import prompts
from gptlit.predict.options import sampling_settings, unescape
from gptlit.terminal import SEPARATOR, write_stream
from gptlit.tokenizers.base import Tokenizer

HELP = """\
Each line is a prompt, which the model continues; an empty one starts from the
end of sequence, else a newline, else the first token, whichever the model has.
  /temperature 0.7   change a setting; /temperature shows it, /top_k none
                     removes a limit
  /stop TEXT         add a text to stop at; /stop none removes all
  /ban TOKEN         add a token that is never written; /ban none removes all
  /force TEXT        begin each text with TEXT; /force none ends that
  /seed 7            another text for the same prompt
  /again             the last prompt with the next seeds
  /new               with --chat: begin a new conversation
  /settings          show all settings
  //TEXT             a prompt that begins with /TEXT
  /help              show this help
  /quit              quit; Ctrl-C stops a text, Ctrl-D quits as well"""
PROMPT = "> "
COMMANDS = ("again", "new", "settings", "help", "quit", "exit")
LISTS = ("stop", "ban")
SETTINGS = (*SamplingSettings.__dataclass_fields__, "seed", "num_samples", "unknown", "echo")


@dataclass
class Session:
    """The state of an interactive loop.

    Args:
        model: Model that writes.
        tokenizer: Tokenizer that the model was trained with.
        options: Current options of `gptlit predict`.
        parser: Parser of the options, for new values.
        prompt: The last prompt.
        messages: Roles and contents of the conversation so far, with --chat.
        n_texts: Number of texts written so far.
    """

    model: GPT
    tokenizer: Tokenizer
    options: Namespace
    parser: OneLineErrors
    prompt: str = ""
    messages: list[tuple[str, str]] = field(default_factory=list)
    n_texts: int = 0


def loop(session: Session) -> None:
    """Answer each line of standard input until its end or `/quit`.

    An invalid line is reported on stderr, and the loop continues. In a terminal Ctrl-C stops the
    current text; if input comes from a file or a pipe, it ends the loop.
    """
    rule_ids(session.tokenizer, sampling_settings(session.options))  # refuses invalid ones
    is_typed = sys.stdin.isatty()
    # invalid bytes are kept, so that only their line is refused
    prompts.standard_input("--interactive", errors="surrogateescape")
    if is_typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives input() a history and line editing
        note("each line is a prompt; /help shows commands, Ctrl-D quits")
    while True:
        try:
            line = _read_line(is_typed)
            if line is None or not _answer(session, line, is_typed):
                return
        except UsageError as error:
            with naming_flags(_as_command):
                note(f"error: {error}")
        except KeyboardInterrupt:
            if not is_typed:
                raise
            signals.forget()
            print(flush=True)


def _read_line(is_typed: bool) -> str | None:
    """Read a line without its line break; None at the end of input."""
    if is_typed and sys.stdout.isatty():
        try:
            return input(PROMPT)
        except EOFError:
            print()
            return None
    if is_typed:
        print(PROMPT, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _answer(session: Session, line: str, is_typed: bool) -> bool:
    """Execute a command, or continue a prompt; returns False for /quit.

    Raises:
        UsageError: An unknown command, an invalid setting or prompt.
    """
    text_of("standard input", line)
    if line.startswith("//") or not line.startswith("/"):
        session.prompt = line.removeprefix("/")
        session.messages.append(("user", session.prompt))
        try:
            _write(session, is_typed)
        finally:
            if session.messages[-1][0] == "user":  # refused, or interrupted before an answer
                del session.messages[-1]
        return True
    name, _, value = line[1:].partition(" ")
    if name in ("quit", "exit"):
        return False
    if name == "again":
        session.options.seed += session.options.num_samples
        if session.messages[-1:] and session.messages[-1][0] == "assistant":
            del session.messages[-1]
        _write(session, is_typed)
    elif name == "new":
        session.messages = []
    elif name == "help":
        print(HELP, file=sys.stderr)
    elif name == "settings":
        for setting in SETTINGS:
            print(f"  {setting:<20}{_value(session, setting)}", file=sys.stderr)
    elif name not in SETTINGS:
        near = closest(name, [*COMMANDS, *SETTINGS])
        advice = f" Did you mean /{near}?" if near else ""
        raise UsageError(f"/{name}: unknown command or setting; /help lists them.{advice}")
    else:
        if value.strip():
            session.options = _changed(session, name, value.strip())
        if is_typed or not value.strip():
            print(f"  {name} {_value(session, name)}", file=sys.stderr)
    return True


def _value(session: Session, name: str) -> str:
    value = sampling_settings(session.options).used().get(name, session.options[name])
    return "none" if value in (None, [], "") else str(value)


def _changed(session: Session, name: str, value: str) -> Namespace:
    """Return the options with a new value of one of them.

    Raises:
        UsageError: The settings are invalid, or invalid with this model's tokenizer.
    """
    options = session.options.clone()
    parsed = session.parser.parse_one(name, value, f"/{name}")
    unescape(parsed)
    if name in LISTS:
        options[name] = [] if value == "none" else [*(options[name] or []), *parsed[name]]
    elif name == "force" and value == "none":
        options.force = ""
    else:
        options[name] = parsed[name]
    if name == "temperature":
        options.greedy = False
    rule_ids(session.tokenizer, sampling_settings(options))  # refuses invalid ones
    return options


def _as_command(option: str) -> str:
    """Return the command of an option, such as /top_k."""
    return f"/{option}" if option in SETTINGS else option if option == "prompt" else f"--{option}"


def _write(session: Session, is_typed: bool) -> None:
    """Write the texts of the last prompt, as `gptlit predict` does, while they are drawn."""
    options, settings = session.options, sampling_settings(session.options)
    size = session.model.config.block_size
    prompt = examples.asked(session.messages) if options.chat else session.prompt
    prompts.warn_about([prompt], options.unknown, session.tokenizer, size)
    for index in range(options.num_samples):
        if index or (session.n_texts and not is_typed):
            print(SEPARATOR, end="")
        pieces = stream_generate(
            session.model,
            session.tokenizer,
            prompt,
            settings,
            seed=options.seed + index,
            unknown=options.unknown,
        )
        first = next(pieces)
        session.n_texts += 1
        written: list[str] = []
        kept = _kept(itertools.chain([first] if options.echo else [], pieces), written)
        try:
            write_stream(kept, at_once=True)
        finally:  # also of an answer that Ctrl-C ended
            session.messages.append(("assistant", "".join(written)))


def _kept(pieces: Iterator[str], written: list[str]) -> Iterator[str]:
    """Yield pieces, and append each to a list."""
    for piece in pieces:
        written.append(piece)
        yield piece
