"""The entry of `gptlit`: picks the verb and imports only what that verb needs."""

import errno
import os
import sys
from collections.abc import Sequence

from gptlit import __version__
from gptlit.messages import RunError, UsageError, did_you_mean, note

VERBS = {
    "fit": "train a model, or go on training one (--ckpt_path last)",
    "predict": "write text with a trained model",
    "validate": "the exact loss on the validation split",
    "test": "the exact loss on the test split",
    "data": "what a text is, under one or more tokenizers",
    "import": "a checkpoint from nanoGPT's or Hugging Face's files",
    "export": "a checkpoint as a Hugging Face folder, or as plain safetensors",
    "summary": "what a fit with these options would be: size, memory, time",
}

HELP = f"""gptlit {__version__}: train a small GPT on a text and write with it

usage: gptlit VERB [options]   (gptlit VERB --help tells them)

{chr(10).join(f"  {verb:<9} {about}" for verb, about in VERBS.items())}

  gptlit fit                            train on Shakespeare (small.yaml)
  gptlit fit --data.path my.txt         train on a text of your own
  gptlit fit --ckpt_path last           go on where the newest run stopped
  gptlit predict --prompt "ROMEO:"      write with the newest model
  tensorboard --logdir lightning_logs   watch"""

MEMORY_ADVICE = (
    "out of memory: lower --data.batch_size, then --model.block_size, then --model.n_embd"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `gptlit` with these arguments (default: the process's own); returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except UsageError as error:
        note(f"error: {error}")
        return 2
    except RunError as error:
        note(f"error: {error}")
        return 1
    except KeyboardInterrupt as stop:
        note(str(stop) or "stopped")
        return 130
    except BrokenPipeError:
        # whoever read standard output has closed it; Python would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        note(f"error: {error.strerror}" + (f": {error.filename}" if error.filename else ""))
        return 1
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        note(f"error: {MEMORY_ADVICE}")
        return 2


def _run(arguments: list[str]) -> int:
    verb = arguments[0] if arguments else ""
    if verb in ("-h", "--help"):
        print(HELP)
    elif verb == "--version":
        print(f"gptlit {__version__}")
    elif not verb or verb.startswith("-"):
        raise UsageError(f"no verb; say gptlit {', '.join(VERBS)}, or gptlit --help")
    elif verb not in VERBS:
        raise UsageError(
            f"{verb}: unknown verb; choose from {', '.join(VERBS)}.{did_you_mean(verb, VERBS)}"
        )
    elif verb == "predict" and not any(item.startswith("--trainer") for item in arguments):
        from gptlit import predict

        predict.main(arguments[1:])
    elif verb in ("import", "export"):
        from gptlit import exchange

        (exchange.import_ if verb == "import" else exchange.export)(arguments[1:])
    elif verb == "data":
        from gptlit import survey

        survey.main(arguments[1:])
    else:
        from gptlit import cli

        cli.main(arguments)
    return 0


def _is_out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator raises a plain RuntimeError
    return isinstance(error, MemoryError) or any(
        sign in str(error) for sign in ("out of memory", "can't allocate memory")
    )


if __name__ == "__main__":
    sys.exit(main())
