"""The entry of `gptlit`: picks the verb and imports only what that verb needs."""

import contextlib
import errno
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

from gptlit import __version__, signals, startup, streams
from gptlit.cli import help_pages
from gptlit.messages import (
    MEMORY_ADVICE,
    RunError,
    UsageError,
    did_you_mean,
    is_first_process,
    is_out_of_memory,
    naming_flags,
    note,
)

VERBS = {
    "fit": "train a model, or go on training one (--ckpt_path last)",
    "predict": "write text with a trained model",
    "validate": "the exact loss on the validation split",
    "test": "the exact loss on the test split",
    "data": "what a text is, under one or more tokenizers",
    "import": "a checkpoint from nanoGPT's or Hugging Face's files",
    "export": "a checkpoint as a Hugging Face folder, or as plain safetensors",
    "study": "many runs side by side: a grid or a search, a table and plots",
    "summary": "what a fit with these options would be: size, memory, time",
}

ALIASES = {"train": "fit", "generate": "predict", "sample": "predict"}
# what other programs call what gptlit does by an option, or by one of two verbs
ELSEWHERE = {
    "resume": "gptlit fit --ckpt_path last",
    "continue": "gptlit fit --ckpt_path last",
    "evaluate": "gptlit validate or gptlit test",
    "eval": "gptlit validate or gptlit test",
    "chat": "gptlit predict --interactive",
    "finetune": "gptlit fit --model.init_from last --data.path my.txt",
}

HELP = f"""gptlit {__version__}: train a small GPT on a text and write with it

usage: gptlit VERB [options]   (gptlit VERB --help tells them)

{chr(10).join(f"  {verb:<9} {about}" for verb, about in VERBS.items())}

  gptlit fit                            train on Shakespeare (small.yaml)
  gptlit fit --data.path my.txt         train on a text of your own
  gptlit fit --ckpt_path last           go on where the newest run stopped
  gptlit predict --prompt "ROMEO:"      write with the newest model
  tensorboard --logdir lightning_logs   watch

  train is another name of fit, generate and sample of predict; gptlit help VERB
  is gptlit VERB --help
  --debug, before or behind the verb: an error is shown with its traceback"""

DEBUG = "--debug"


@naming_flags()
def main(argv: Sequence[str] | None = None) -> int:
    """Run `gptlit` with these arguments (default: the process's own); returns the exit code."""
    own_process = argv is None
    if own_process:
        startup.use_utf8()
    with signals.caught(own_process), streams.usable(own_process):
        try:
            return _exit_code(sys.argv[1:] if argv is None else argv)
        except (KeyboardInterrupt, signals.Terminated) as stop:
            signals.ending()
            if is_first_process():
                note(str(stop) or "stopped")
            return signals.exit_code(stop)


def _exit_code(given: Sequence[str]) -> int:
    arguments = [word for word in given if word != DEBUG]
    try:
        shown = _traceback_shown() if DEBUG in given else contextlib.nullcontext()
        with shown, signals.as_raised():
            return _run(arguments)
    except UsageError as error:
        note(f"error: {error}")
        return 2
    except RunError as error:
        note(f"error: {error}")
        return 1
    except BrokenPipeError:
        return 141  # whoever read standard output has closed it
    except streams.OutputLost as error:
        note(f"error: {streams.STANDARD_OUTPUT}: {error.strerror}; the result is incomplete")
        return 1
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        note(f"error: {error.strerror}" + (f": {error.filename}" if error.filename else ""))
        return 1
    except (MemoryError, RuntimeError) as error:
        if "EADDRINUSE" in str(error):
            port = os.environ.get("MASTER_PORT", "")
            note(f"error: MASTER_PORT {port}: in use by another program; unset it or name another")
            return 1
        if not is_out_of_memory(error):
            raise
        note(f"error: {MEMORY_ADVICE}")
        return 2


@contextlib.contextmanager
def _traceback_shown() -> Iterator[None]:
    try:
        yield
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        raise


def _check_environment() -> None:
    """Refuse variables that are meant for gptlit and that nothing would read."""
    prefixes = tuple(f"GPTLIT_{verb.upper()}__" for verb in VERBS)
    for name in sorted(os.environ):
        if name.startswith("GPTLIT_") and name != "GPTLIT_DATA_DIR" and "__" in name:
            verb = name.removeprefix("GPTLIT_").partition("_")[0].lower()
            if not name.startswith(prefixes):
                raise UsageError(
                    f"{name}: no option; its variable would be GPTLIT_VERB__GROUP__NAME, for "
                    f"instance GPTLIT_FIT__MODEL__N_EMBD.{did_you_mean(verb, VERBS)}"
                )


def _check_folder() -> None:
    """Refuse a working folder that isn't there: libraries can't even be loaded in one."""
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(
            f"the working folder can't be found ({error.strerror}); change into one that exists"
        ) from error


def _run(arguments: list[str]) -> int:
    code = 0
    verb, *rest = arguments or [""]
    if verb == "help" and rest:
        verb, rest = rest[0], ["--help", *rest[1:]]
    verb = ALIASES.get(verb, verb)
    if verb in ("-h", "--help", "help"):
        print(HELP)
    elif verb in ("--version", "version"):
        print(f"gptlit {__version__}")
    elif not verb or verb.startswith("-"):
        raise UsageError(f"no verb; say gptlit {', '.join(VERBS)}, or gptlit --help")
    elif verb in ELSEWHERE:
        raise UsageError(f"{verb}: unknown verb; use {ELSEWHERE[verb]}")
    elif verb not in VERBS:
        raise UsageError(
            f"{verb}: unknown verb; choose from {', '.join(VERBS)}."
            + did_you_mean(verb, [*VERBS, *ALIASES])
        )
    elif (which := help_pages.asked(rest)) is not None:
        print(help_pages.text(verb, VERBS[verb], which))
    else:
        _check_environment()
        _check_folder()
        try:
            _dispatch(verb, [verb, *rest])
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    sys.stdout.flush()  # whether the result arrived
    return code


def _dispatch(verb: str, arguments: list[str]) -> None:
    with signals.disposable():
        run = _command(verb, arguments)
    run()


def _command(verb: str, arguments: list[str]) -> Callable[[], None]:
    """What a verb does; its modules are imported here."""
    rest = arguments[1:]
    if verb == "predict":
        if any(item.startswith("--trainer") for item in arguments):
            from gptlit.predict import devices

            return lambda: devices.main(rest)
        from gptlit.predict import command

        return lambda: command.main(rest)
    if verb in ("import", "export"):
        from gptlit.cli import convert

        return lambda: (convert.import_ if verb == "import" else convert.export)(rest)
    if verb == "data":
        from gptlit.cli import data

        return lambda: data.main(rest)
    if verb == "study":
        from gptlit.study import command as study

        return lambda: study.main(rest)
    from gptlit.cli import fit

    return lambda: fit.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
