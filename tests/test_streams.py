"""Commands with standard streams that are missing, closed, full or of a narrow encoding."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptlit.__main__ import main
from gptlit.streams import only_shown
from tests.conftest import TINY, Result, Run, made_up_text

Call = Callable[..., Result]
NARROW = ["ascii", "cp1252", "latin-1"]
RESULTS = {
    "help": ["--help"],
    "help of a verb": ["predict", "--help"],
    "config": ["fit", "--print_config"],
    "data": ["data", "TEXT"],
    "tokenize": ["data", "TEXT", "--tokenize=the Ωmega", "--tokenizer=char"],
    "stream": ["predict", "--ckpt_path=CKPT", "--prompt=the é"],
    "batch": ["predict", "--ckpt_path=CKPT", "--num_samples=2"],
    "jsonl": ["predict", "--ckpt_path=CKPT", "--format=jsonl"],
    "explain": ["predict", "--ckpt_path=CKPT", "--explain", "--prompt=the é"],
    "sweep": ["predict", "--ckpt_path=CKPT", "--sweep", "temperature=0,1"],
    "validate": ["validate", "--ckpt_path=CKPT"],
    "summary": ["summary", *TINY, "--data.path=TEXT"],
}


class Device(io.RawIOBase):
    """Accepts bytes until it fails with an error."""

    def __init__(self, error: int = 0, room: int = 0) -> None:
        self.error = error
        self.room = room
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        if self.error and len(self.content) + len(data) > self.room:
            raise OSError(self.error, os.strerror(self.error))
        self.content += bytes(data)
        return len(data)


def stdout_on(
    monkeypatch: pytest.MonkeyPatch, device: Device, encoding: str = "utf-8"
) -> io.TextIOWrapper:
    stream = io.TextIOWrapper(io.BufferedWriter(device), encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def words(run: Run, name: str) -> list[str]:
    ckpt = str(run.folder / "checkpoints" / "last.ckpt")
    return [word.replace("CKPT", ckpt).replace("TEXT", str(run.text)) for word in RESULTS[name]]


@pytest.fixture
def omegas(tmp_path: Path) -> Path:
    path = tmp_path / "omegas.txt"
    path.write_text(made_up_text().replace(" ", "Ω"), encoding="utf-8")
    return path


def fit(text: Path, *options: str) -> list[str]:
    short = ["--trainer.max_steps=2", "--trainer.val_check_interval=2"]
    return ["fit", *TINY, f"--data.path={text}", *short, *options]


TIMED = ["summary"]


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        *((name, "ascii") for name in RESULTS if name not in TIMED),
        ("tokenize", "cp1252"),
        ("explain", "latin-1"),
    ],
)
def test_results_are_written_in_any_encoding(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, encoding: str
) -> None:
    wanted = gptlit(*words(run, name))
    device = Device()
    stdout_on(monkeypatch, device, encoding)
    result = gptlit(*words(run, name))
    assert (wanted.code, result.code) == (0, 0)
    lacks = wanted.out != wanted.out.encode(encoding, "replace").decode(encoding)
    assert device.content.decode(encoding) == wanted.out.encode(
        encoding, "backslashreplace"
    ).decode(encoding)
    assert result.err.count("PYTHONIOENCODING") == lacks
    if name in ("tokenize", "explain"):
        assert lacks  # otherwise the test is empty


@pytest.mark.parametrize(
    ("name", "errors"),
    [
        ("help", ["ENOSPC"]),
        ("config", ["ENOSPC"]),
        ("data", ["ENOSPC", "EPIPE", "EIO", "missing", "closed"]),
        ("stream", ["ENOSPC", "EPIPE", "missing"]),
        ("jsonl", ["ENOSPC", "EPIPE"]),
        ("explain", ["ENOSPC"]),
        ("validate", ["ENOSPC", "missing"]),
        ("summary", ["ENOSPC"]),
    ],
)
def test_a_result_that_is_not_delivered_is_an_error(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, errors: list[str]
) -> None:
    for error in errors:
        device = Device(getattr(errno, error, 0))
        stream = stdout_on(monkeypatch, device)
        if error == "missing":
            monkeypatch.setattr(sys, "stdout", None)
        elif error == "closed":
            stream.close()
        before = sys.stdout
        result = gptlit(*words(run, name))
        assert sys.stdout is before
        reason = os.strerror(device.error) if device.error else "closed"
        line = f"gptlit: error: standard output: {reason}; the result is incomplete"
        found = [row for row in result.err.splitlines() if "error" in row]
        if error == "EPIPE":  # the reader closed the pipe by itself
            assert (result.code, found) == (141, [])
        else:
            assert (result.code, found) == (1, [line])
        assert "Traceback" not in result.err
        device.error = 0


def test_commands_without_a_result_need_no_standard_output(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, stream in enumerate((None, stdout_on(monkeypatch, Device(errno.ENOSPC)))):
        monkeypatch.setattr(sys, "stdout", stream)
        result = gptlit("export", run.folder / "checkpoints" / "last.ckpt", f"exported{number}")
        assert (result.code, "error" in result.err) == (0, False)


@pytest.mark.parametrize("encoding", NARROW)
def test_a_fit_shows_its_samples_in_any_encoding(
    gptlit: Call, omegas: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    device = Device()
    stdout_on(monkeypatch, device, encoding)
    result = gptlit(*fit(omegas, "--samples.prompts=[Ω]"))
    assert result.code == 0
    assert b"    \\u03a9" in device.content
    assert result.err.count("PYTHONIOENCODING") == 1
    assert "Ω" in Path("lightning_logs/version_0/samples.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "bar"),
    [
        ("ENOSPC", "true"),
        ("ENOSPC", "false"),
        ("EPIPE", "true"),
        ("missing", "true"),
        ("closed", "false"),
    ],
)
def test_a_fit_needs_no_standard_output(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch, error: str, bar: str
) -> None:
    device = Device(getattr(errno, error, 0))
    stream = stdout_on(monkeypatch, device)
    if error == "closed":
        stream.close()
    elif error == "missing":
        monkeypatch.setattr(sys, "stdout", None)
    result = gptlit(*fit(text_file, f"--trainer.enable_progress_bar={bar}"))
    assert result.code == 0
    assert result.err.count("the run continues without it") == 1
    assert Path("lightning_logs/version_0/checkpoints/last.ckpt").is_file()
    assert "=== step 2," in Path("lightning_logs/version_0/samples.txt").read_text()
    device.error = 0


def test_a_fit_needs_no_standard_error(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(errno.ENOSPC)
    full = io.TextIOWrapper(io.BufferedWriter(device), "utf-8", line_buffering=True)
    for stream in (None, full):
        monkeypatch.setattr(sys, "stderr", stream)
        result = gptlit(*fit(text_file))
        assert result.code == 0
        assert "gptlit:" not in result.out  # messages do not move to the other stream
        assert gptlit("fit", "--model.n_embd=3").code == 2
    device.error = 0


def test_files_are_saved_before_results_are_shown(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path("lightning_logs/version_0")
    found = []

    class Watched(Device):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            if b"step 2: " in bytes(data):
                names = ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "samples.txt")
                found.append([(folder / name).is_file() for name in names])
                found.append(["val/loss" in (folder / "metrics.csv").read_text()])
            return super().write(data)

    stdout_on(monkeypatch, device := Watched())
    assert gptlit(*fit(text_file, "--samples.prompts=[the]")).code == 0
    assert found == [[True] * 3, [True]]
    assert b"\n    the" in device.content.partition(b"step 2: ")[2]


def test_output_outside_of_a_command_is_dropped_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device(errno.ENOSPC)
    stream = stdout_on(monkeypatch, device)
    for _ in range(2):
        with only_shown():
            print("Ω")
    assert sys.stdout is stream
    assert "standard output: No space left on device" in capsys.readouterr().err
    device.error = 0


@pytest.mark.parametrize(
    ("streams", "code"), [("<&-", 0), (">&-", 1), ("2>&-", 0), (">/dev/full", 1), ("<&- 2>&-", 0)]
)
def test_closed_descriptors(text_file: Path, streams: str, code: int) -> None:
    if "full" in streams and not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = f"{sys.executable} -m gptlit data {text_file} --data_dir {text_file.parent} {streams}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=55)
    assert done.returncode == code
    assert bool(done.stdout) == (code == 0)
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.stderr.count("the result is incomplete") == code
    # no file got the descriptor of a stream
    files = [path for path in text_file.parent.rglob("*") if path.is_file()]
    assert not [path for path in files if b"gptlit: " in path.read_bytes()]


def test_a_missing_standard_input_is_an_empty_one(
    gptlit: Call, run: Run, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    for options in (["--prompt_file=-"], ["--interactive"]):
        result = gptlit("predict", f"--ckpt_path={run.folder}/checkpoints/last.ckpt", *options)
        assert (result.code, "error" in result.err) == (0, False)
    assert gptlit(*fit(text_file)).code == 0
    assert sys.stdin is None


def test_the_streams_of_the_caller_are_not_changed(gptlit: Call) -> None:
    before = (sys.stdin, sys.stdout, sys.stderr)
    gptlit("--version")
    main(["data", "nowhere.txt"])
    assert (sys.stdin, sys.stdout, sys.stderr) == before
