"""`gptlit serve`: options, start and end of the server."""

import asyncio
import contextlib
import functools
import importlib.util
import logging
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from gptlit import signals
from gptlit.checkpoints import adapters, checkpoint, run_paths
from gptlit.corpora.catalog import CORPORA
from gptlit.data.novelty import TrainingText
from gptlit.devices import choice, cpus
from gptlit.devices.accelerators import name_of
from gptlit.download import Inline, fetch
from gptlit.messages import RunError, UsageError, errors_naming, note, opt
from gptlit.parser import OneLineErrors, with_environment
from gptlit.predict.command import WEIGHTS, place
from gptlit.predict.options import Weights
from gptlit.terminal import count_of
from gptlit.training import threads

if TYPE_CHECKING:
    import uvicorn

    from gptlit.serve.app import Served, Server

SWITCH_S = 5e-4  # a tenth of Python's default; benchmarks/serve.py
NEEDED = ("starlette", "uvicorn")
TEXTS, TOKENS = 64, 100_000  # guesses, for the choice of a device


def parser() -> OneLineErrors:
    """Return the parser of `gptlit serve`."""
    parser = OneLineErrors(prog="gptlit serve", allow_abbrev=False)

    def add(name: str, about: str, type_: Any = str, default: Any = None, **how: Any) -> None:
        parser.add_argument(name, type=type_, default=default, help=about, **how)

    add("checkpoint", "A checkpoint, or best (the default) or last of the newest run.", str, "best",
        nargs="?")  # fmt: skip
    add("--adapter", "Folder of a LoRA adapter (peft's format), or NAME=FOLDER: the checkpoint's "
        "model with it is served too, by that name; may be repeated.", action="append")  # fmt: skip
    add("--host", "Address to listen at; the default can be reached from this machine alone, and "
        "0.0.0.0 from others too.", str, "127.0.0.1")  # fmt: skip
    add("--port", "Port to listen at; 0 for any free one.", int, 8000)
    add("--max_tokens", "Most tokens of a text.", int, 4096)
    add("--max_prompt", "Most tokens of a prompt; the model sees the last of them.", int, 32768)
    add("--max_requests", "Most requests that are answered at once; others are refused.", int, 64)
    add("--api_key", "Key that requests must have; the variable GPTLIT_SERVE__API_KEY hides it "
        "from lists of processes.", str)  # fmt: skip
    add("--allow_origin", "Origin of other pages that may ask, such as http://localhost:3000, or * "
        "for all; may be repeated.", action="append")  # fmt: skip
    add("--allow_host", "Name of this server besides IP addresses and localhost; may be repeated.",
        action="append")  # fmt: skip
    add("--drain", "Seconds for running requests to end after SIGTERM.", float, 30.0)
    add("--weights", "As of gptlit predict: float32, int8 or auto.", Weights, "auto")
    add("--device", f"{choice.NAMES}. auto: a GPU where it is sooner.", str, choice.AUTO)
    add("--threads", cpus.THREADS_HELP, int, 0)
    return parser


def main(argv: Sequence[str]) -> None:
    """Run `gptlit serve` with these arguments, until a signal ends it.

    Raises:
        UsageError: An invalid option or checkpoint, or starlette or uvicorn is missing.
        Terminated, KeyboardInterrupt: A signal has ended it.
    """
    options = parser().parse_args(with_environment("serve", argv))
    _check(options)
    if any(importlib.util.find_spec(name) is None for name in NEEDED):
        reason = f"gptlit serve needs {' and '.join(NEEDED)}; install them by"
        raise UsageError(f"{reason} pip install 'gptlit[serve]'")
    with _listening(options.host, options.port) as listener, threads.using(options.threads):
        server = make(options)
        address, port = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        # on standard output, since a script may need the port
        print(f"http://{shown}:{port}", flush=True)
        note("the address is a page to write on, with /v1 an API as OpenAI's; Ctrl-C ends both")
        _Process(server, listener, options.drain).run()


def _check(options: Namespace) -> None:
    for name in ("max_tokens", "max_prompt", "max_requests"):
        if options[name] < 1:
            raise UsageError("must be 1 or more", name, options[name])
    if not 0 <= options.port < 2**16:
        raise UsageError("must be from 0 to 65535", "port", options.port)
    if not 0 <= options.drain <= 86400:
        raise UsageError("must be from 0 to 86400 seconds", "drain", options.drain)
    if options.api_key is not None and not (options.api_key.isascii() and options.api_key.strip()):
        raise UsageError("must be letters, digits or signs of ASCII", "api_key")
    for origin in options.allow_origin or []:
        scheme, _, host = origin.partition("://")
        if origin != "*" and (scheme not in ("http", "https") or not host or "/" in host):
            reason = "must be an origin such as http://localhost:3000, or * for all"
            raise UsageError(reason, "allow_origin", origin)
    cpus.check_threads(options.threads)


@contextlib.contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Open the socket before the model is loaded, so that a port in use is refused at once.

    Raises:
        UsageError: The address can't be listened at.
    """
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise UsageError("no address of this machine; 127.0.0.1 is usual", "host", host) from error
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(128)
        except PermissionError as error:
            reason = "ports below 1024 are for the administrator; 8000 is usual"
            raise UsageError(reason, "port", port) from error
        except OSError as error:
            if not port:
                raise UsageError(f"{error.strerror}; 127.0.0.1 is usual", "host", host) from error
            reason = f"{error.strerror} at {opt('host')} {host}; name another, or 0 for a free one"
            raise UsageError(reason, "port", port) from error
        yield listener


def make(options: Namespace) -> "Server":
    """Load the model, and make its server.

    Raises:
        UsageError: An invalid checkpoint or device.
    """
    from gptlit.serve.app import Server
    from gptlit.serve.guard import Access
    from gptlit.serve.protocol import Limits

    access = Access(
        [options.host, *(options.allow_host or [])],
        options.allow_origin or [],
        options.api_key or "",
    )
    limits = Limits(options.max_tokens, options.max_prompt)
    return Server(_models(options), limits, options.max_requests, access)


def _models(options: Namespace) -> list["Served"]:
    """Return the checkpoint's model, and it with each adapter; they share what isn't changed."""
    from gptlit.serve.app import Served

    with errors_naming(lambda name: "checkpoint" if name == "ckpt_path" else f"--{name}"):
        path, content = checkpoint.read_named(options.checkpoint)
        net, tokenizer = checkpoint.build(content)
    base = _id(path)
    folders = _adapters(options, base)
    n_parameters = net.num_parameters()  # before some are packed
    nets = [net, *(adapters.adapted(net, folder) for folder in folders.values())]
    model, *others = [place([each], options, (TEXTS, TOKENS)) for each in nets]
    device, introduction = name_of(model.wte.weight.device), checkpoint.introduction(path, content)
    note(f"{introduction}, device: {device}, weights: {WEIGHTS[options.weights]}")
    about = {
        "text": content[checkpoint.KEY]["text"].get("name", "unknown"),
        "state": checkpoint.evaluation(content),
        "parameters": f"{n_parameters:,}",
        "device": f"{device}, {options.weights}",
    }
    training_text = functools.partial(_training_text, path, content)
    models = [Served(base, model, tokenizer, about, training_text)]
    for (name, folder), other in zip(folders.items(), others, strict=True):
        own = {"text": f"{base} with an adapter", "state": f"of the base: {about['state']}"}
        note(f"model {name}: it with the adapter {folder}")
        models.append(Served(name, other, tokenizer, about | own, _unknown_text, base))
    return models


def _adapters(options: Namespace, base: str) -> dict[str, Path]:
    """Return the folders of the option adapter by the names of their models.

    Raises:
        UsageError: Two models have the same name.
    """
    found: dict[str, Path] = {}
    for words in options.adapter or []:
        given, _, path = words.rpartition("=")
        folder = Path(path).expanduser()
        name = _printable(given) or _adapter_id(folder.absolute())
        if name == base or name in found:
            reason = f"another model is called {name} already; add another name, as NAME=FOLDER"
            raise UsageError(reason, "adapter", words)
        found[name] = folder
    return found


def _id(path: Path) -> str:
    """Return the name of a checkpoint in the API: its file's, after its run's if it has one."""
    folder = path.absolute().parent
    is_of_run = folder.name == run_paths.CHECKPOINTS
    return _printable(f"{folder.parent.name}-{path.stem}" if is_of_run else path.stem)


def _adapter_id(folder: Path) -> str:
    is_of_run = folder.name == run_paths.ADAPTER
    return _printable(f"{folder.parent.name}-{folder.name}" if is_of_run else folder.name)


def _printable(name: str) -> str:
    return "".join(each if each.isascii() and each.isprintable() else "_" for each in name)


def _unknown_text() -> TrainingText:
    raise UsageError("an adapter doesn't name the text that it was trained on")


def _training_text(path: Path, content: dict[str, Any]) -> TrainingText:
    """Return the index of the text that a checkpoint was trained on; nothing is downloaded.

    Raises:
        UsageError: The text isn't there, or has changed.
    """
    from gptlit.data.datamodule import TextDataModule  # imports Lightning

    if not content[checkpoint.KEY]["text"].get("sha256"):
        raise UsageError("the checkpoint was not trained on a text of this machine")
    data = TextDataModule.load_from_checkpoint(path)
    known = CORPORA.get(data.options.corpus)
    if data.options.path is None and known and not isinstance(known.source, Inline):
        fetch(known.filename, known.sha256, [], data.folder)
    data.prepare_data()
    return data.training_text


class _Process:
    """Runs a server until a signal ends it.

    The first SIGTERM or SIGHUP lets running requests end; Ctrl-C and any second signal end at once.
    """

    def __init__(self, server: "Server", listener: socket.socket, drain_s: float) -> None:
        self._server, self._listener, self._drain_s = server, listener, drain_s
        self._uvicorn = uvicorn_server(server)
        self._signals: list[int] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    def run(self) -> None:
        """Serve; always ends by an exception.

        Raises:
            Terminated, KeyboardInterrupt: The signal.
            RunError: The server could not start.
        """
        before = sys.getswitchinterval()
        # the engine's thread waits for the interpreter after each operation of PyTorch
        sys.setswitchinterval(SWITCH_S)
        signals.delegate(self._on_signal)
        try:
            asyncio.run(self._serve())
        finally:
            signals.delegate(None)
            self._server.engine.close()
            sys.setswitchinterval(before)
        if not self._signals:
            raise RunError("the server could not start; the lines above say why")
        if signal.SIGINT in self._signals:
            raise KeyboardInterrupt
        raise signals.Terminated(self._signals[-1])

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        if not self._signals:
            await self._uvicorn.serve([self._listener])

    def _on_signal(self, number: int) -> None:
        # an exception here could be caught by any callback of the loop
        self._signals.append(number)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._end, number)

    def _end(self, number: int) -> None:
        if number == signal.SIGINT or len(self._signals) > 1:
            self._end_at_once()
        else:
            running = count_of(self._server.n_requests, "running request")
            note(f"{signals.NAMES[number]}: refuses new requests, waits for {running}")
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        asyncio.get_running_loop().call_later(self._drain_s, self._end_at_once)
        self._server.drain()
        await self._server.is_idle.wait()
        self._uvicorn.should_exit = True

    def _end_at_once(self) -> None:
        # it would log the requests that are cut off
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        self._uvicorn.should_exit = self._uvicorn.force_exit = True


def uvicorn_server(server: "Server") -> "uvicorn.Server":
    """Return uvicorn's server of an app; it leaves signals to gptlit."""
    import uvicorn

    class Uvicorn(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

    config = uvicorn.Config(
        server.app, lifespan="on", log_level="warning", access_log=False, server_header=False,
        http="h11", ws="none",
    )  # fmt: skip
    return Uvicorn(config)
