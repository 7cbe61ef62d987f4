"""Entry point of `gptlit`: imports only the modules of the verb that is called."""

import contextlib
import errno
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from gptlit import __version__, signals, streams
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


class Verb(NamedTuple):
    """A verb: its description, and the function that is called with the arguments after it."""

    about: str
    module: str
    function: str = "main"


FIT = "cli.fit"  # its function takes the verb too
VERBS = {
    "fit": Verb("train a model, or resume a run (--ckpt_path last)", FIT),
    "predict": Verb("generate text with a trained model", "predict.command"),
    "validate": Verb("compute the exact loss on the validation split", FIT),
    "test": Verb("compute the exact loss on the test split", FIT),
    "serve": Verb("serve a page to write on, and an API as OpenAI's", "serve.command"),
    "data": Verb("show statistics of a text under one or more tokenizers", "cli.data"),
    "import": Verb(
        "make a checkpoint of nanoGPT's or Hugging Face's files", "cli.convert", "import_"
    ),
    "merge": Verb("add a LoRA adapter to its model's weights for good", "cli.convert", "merge"),
    "export": Verb("write a checkpoint for transformers and other programs", "exports.command"),
    "study": Verb("train a grid or a search of runs, with a table and plots", "study.command"),
    "runs": Verb("list the runs with their configs, losses and states", "reports.runs"),
    "plot": Verb("draw the loss curves of runs, TensorBoard folders or CSVs", "reports.plot"),
    "compare": Verb("compare runs: options, losses, curves and sample texts", "reports.compare"),
    "look": Verb("show attention, predictions and layers on an HTML page", "look.command"),
    "summary": Verb("show the size, memory and time of a run without training it", FIT),
}
ALIASES = {"train": "fit", "generate": "predict", "sample": "predict"}
# other programs' verbs, and the commands of gptlit that do the same
ELSEWHERE = {
    "resume": "gptlit fit --ckpt_path last",
    "continue": "gptlit fit --ckpt_path last",
    "evaluate": "gptlit validate or gptlit test",
    "eval": "gptlit validate or gptlit test",
    "chat": "gptlit predict --interactive",
    "finetune": "gptlit fit --model.init_from last --data.path my.txt",
}

HELP = f"""gptlit {__version__}: train a small GPT on a text and generate text with it

usage: gptlit VERB [options]   (gptlit VERB --help shows the options)

{chr(10).join(f"  {name:<9} {verb.about}" for name, verb in VERBS.items())}

  gptlit fit                            train on Shakespeare (small.yaml)
  gptlit fit --data.path my.txt         train on your own text
  gptlit fit --ckpt_path last           resume where the newest run stopped
  gptlit predict --prompt "ROMEO:"      generate text with the newest model
  tensorboard --logdir lightning_logs   watch the metrics

  train is an alias of fit; generate and sample are aliases of predict
  gptlit help VERB is the same as gptlit VERB --help
  --debug, before or after the verb, shows the traceback of an error"""

DEBUG = "--debug"


@naming_flags()
def main(argv: Sequence[str] | None = None) -> int:
    """Run `gptlit` and return its exit code.

    Args:
        argv: Arguments; by default those of the process.
    """
    own_process = argv is None
    if own_process:
        streams.use_utf8()
    with signals.caught(own_process), streams.usable(own_process):
        try:
            return _exit_code(sys.argv[1:] if argv is None else argv)
        except (KeyboardInterrupt, signals.Terminated) as stop:
            signals.ending()
            if is_first_process():
                note(str(stop) or "stopped")
            return signals.exit_code(stop)


def _exit_code(words: Sequence[str]) -> int:
    try:
        shown = _traceback_shown() if DEBUG in words else contextlib.nullcontext()
        with shown, signals.as_raised():
            return _run([word for word in words if word != DEBUG])
    except UsageError as error:
        message, code = str(error), 2
    except RunError as error:
        message, code = str(error), 1
    except BrokenPipeError:
        return 141  # the reader of standard output has closed it
    except streams.OutputLost as error:
        message = f"{streams.STANDARD_OUTPUT}: {error.strerror}; the result is incomplete"
        code = 1
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        message = f"{error.strerror}" + (f": {error.filename}" if error.filename else "")
        code = 1
    except (MemoryError, RuntimeError) as error:
        if "EADDRINUSE" in str(error):
            port = os.environ.get("MASTER_PORT", "")
            message = f"MASTER_PORT {port}: in use by another program; unset it or name another"
            code = 1
        elif is_out_of_memory(error):
            message, code = MEMORY_ADVICE, 2
        else:
            raise
    note(f"error: {message}")
    return code


@contextlib.contextmanager
def _traceback_shown() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if not isinstance(error, SystemExit):
            traceback.print_exc()
        raise


def _check_environment() -> None:
    """Refuse variables that look like options but aren't, and a working folder that was removed."""
    prefixes = tuple(f"GPTLIT_{verb.upper()}__" for verb in VERBS)
    for name in sorted(os.environ):
        if name.startswith("GPTLIT_") and "__" in name and not name.startswith(prefixes):
            verb = name.removeprefix("GPTLIT_").partition("_")[0].lower()
            raise UsageError(
                f"{name}: not an option; variables are named GPTLIT_VERB__GROUP__NAME, for "
                f"instance GPTLIT_FIT__MODEL__N_EMBD.{did_you_mean(verb, VERBS)}"
            )
    try:
        os.getcwd()  # without it modules can't be imported
    except OSError as error:
        raise UsageError(
            f"the working folder can't be found ({error.strerror}); change to one that exists"
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
        raise UsageError(f"no verb; use gptlit {', '.join(VERBS)}, or gptlit --help")
    elif verb in ELSEWHERE:
        raise UsageError(f"{verb}: unknown verb; use {ELSEWHERE[verb]}")
    elif verb not in VERBS:
        raise UsageError(
            f"{verb}: unknown verb; choose from {', '.join(VERBS)}."
            + did_you_mean(verb, [*VERBS, *ALIASES])
        )
    elif (which := help_pages.asked(verb, rest)) is not None:
        print(help_pages.text(verb, VERBS[verb].about, which))
    else:
        _check_environment()
        try:
            with signals.disposable():
                run = _function(verb, rest)
            run()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    sys.stdout.flush()  # raises an error if the result was not delivered
    return code


def _function(verb: str, words: list[str]) -> Callable[[], None]:
    """Import a verb's module and return its function with its arguments."""
    _, module, name = VERBS[verb]
    if verb == "predict" and any(word.startswith("--trainer") for word in words):
        module = "predict.devices"
    function = getattr(importlib.import_module(f"gptlit.{module}"), name)
    return functools.partial(function, [verb, *words] if module == FIT else words)


if __name__ == "__main__":
    sys.exit(main())
