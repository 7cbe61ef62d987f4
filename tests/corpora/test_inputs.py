"""Paths that are no files: pipes are copied once, and what has no end is refused."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptlit.checkpoints import checkpoint, nanogpt, weight_files
from gptlit.corpora import inputs
from gptlit.messages import UsageError
from gptlit.predict import options, prompts
from tests.conftest import TINY, Result, Run, made_up_text

Gptlit = Callable[..., Result]


@contextlib.contextmanager
def pipe(content: bytes) -> Iterator[str]:
    """The path of an open pipe that a thread writes to, as the shell makes of <(command)."""
    reading, writing = os.pipe()

    def write() -> None:
        with contextlib.suppress(BrokenPipeError), open(writing, "wb") as file:
            file.write(content)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield f"/dev/fd/{reading}"
    finally:
        os.close(reading)
        thread.join()


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "socket"])
@pytest.mark.parametrize(
    "words",
    [
        ("data", "{}"),
        ("fit", *TINY, "--data.path={}"),
        ("fit", *TINY, "--data.path={text}", "--data.val_path={}"),
        ("fit", "--config={}"),
        ("fit", "--ckpt_path={}"),
        ("fit", *TINY, "--model.init_from={}"),
        ("study", "{}"),
        ("predict", "--ckpt_path={}"),
        ("predict", "--ckpt_path={ckpt}", "--prompt_file={}"),
        ("import", "nanogpt", "{}", "--output=out.ckpt"),
        ("import", "hugging_face", "{}", "--output=out.ckpt"),
        ("export", "{}", "folder"),
    ],
    ids=lambda words: " ".join(word for word in words if word not in TINY),
)
def test_endless_inputs_are_refused(
    gptlit: Gptlit, run: Run, tmp_path: Path, words: tuple[str, ...], path: str
) -> None:
    ckpt = run.folder / "checkpoints" / "last.ckpt"
    # what can be bound has a short name
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as bound:
        bound.bind("socket")
        found = gptlit(*(word.format(path, text=run.text, ckpt=ckpt) for word in words))
    kind = "socket" if path == "socket" else "device"
    assert found.code == 2
    (line,) = [line for line in found.err.splitlines() if "error" in line]
    assert f"{path}: is a {kind}, which has no end; name a file" in line
    assert {each.name for each in tmp_path.iterdir()} <= {"socket"}


def test_endless_files_next_to_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"wte": "piece.safetensors"}}'
    )
    os.mkfifo(tmp_path / "piece.safetensors")
    with pytest.raises(UsageError, match="piece.safetensors: is a pipe"):
        weight_files.read_tensors(tmp_path)
    with pytest.raises(UsageError, match="/dev/zero: is a device"):
        nanogpt.read_meta(Path("/dev/zero"))
    os.mkfifo(tmp_path / "step_1.ckpt")
    (tmp_path / "last.ckpt").write_bytes(b"torn")
    with pytest.raises(UsageError, match="torn, altered.*no whole one next to it"):
        checkpoint.read(tmp_path / "last.ckpt")
    with pytest.raises(UsageError, match="step_1.ckpt: is a pipe"):
        checkpoint.read(tmp_path / "step_1.ckpt")


def test_a_pipe_is_refused_as_a_checkpoint(gptlit: Gptlit, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for words in (
        ("predict", "--ckpt_path=fifo"),
        ("import", "nanogpt", "fifo"),
        ("study", "fifo"),
    ):
        found = gptlit(*words)
        assert found.code == 2
        assert (
            "fifo: is a pipe, but the file is read more than once; save the pipe's output"
            in found.err
        )


def test_a_text_through_a_pipe(gptlit: Gptlit, tmp_path: Path) -> None:
    with pipe(b"the king\nand thy love\n") as path:
        first = gptlit("data", path)
        again = gptlit("data", path)
    assert first.code == again.code == 0
    (copy,) = (tmp_path / "data" / "piped").iterdir()
    assert copy.read_bytes() == b"the king\nand thy love\n"
    message = (
        f"gptlit data {path}: is a pipe, copied once to {copy.relative_to(tmp_path)} (22 bytes)"
    )
    assert message in first.err
    assert "copied" not in again.err
    assert first.out == again.out
    with pipe(b"another text\n") as path:  # perhaps under the same number
        assert "13" in gptlit("data", path).out
    with pipe(b"") as path:
        assert "the pipe was empty; check whether the command" in gptlit("data", path).err


def test_the_extension_of_a_pipe_says_how_to_read_it(tmp_path: Path, gptlit: Gptlit) -> None:
    os.mkfifo("rows.jsonl")
    thread = threading.Thread(target=Path("rows.jsonl").write_bytes, args=[b'{"text": "the king"}'])
    thread.start()
    found = gptlit("data", "rows.jsonl")
    thread.join()
    assert found.code == 0
    assert [path.suffix for path in (tmp_path / "data" / "piped").iterdir()] == [".jsonl"]
    assert "characters                   9" in found.out


def test_a_run_on_a_pipe_resumes_without_it(gptlit: Gptlit, tmp_path: Path) -> None:
    with pipe(made_up_text().encode()) as path, pipe(made_up_text(500, 1).encode()) as other:
        words = [f"--data.path={path}", f"--data.val_path={other}", "--trainer.max_steps=1"]
        assert gptlit("fit", *TINY, *words).code == 0
    going_on = ("fit", "--ckpt_path=last", "--trainer.max_steps=2")
    assert gptlit(*going_on).code == 0
    assert checkpoint.read_named("last")[1]["global_step"] == 2
    for copy in (tmp_path / "data" / "piped").iterdir():
        copy.unlink()
    found = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=3")
    assert found.code == 2
    assert "No such file or directory; it was the copy of a pipe; give --data.path" in found.err
    with pipe(made_up_text().encode()) as path, pipe(made_up_text(500, 1).encode()) as other:
        words = [f"--data.path={path}", f"--data.val_path={other}", "--trainer.max_steps=3"]
        assert gptlit("fit", "--ckpt_path=last", *words).code == 0


def test_other_processes_of_a_run_get_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pipe(b"the king") as path:
        copy = inputs.path_or_copy(path, "--data.path", tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert inputs.path_or_copy(path, "--data.path", tmp_path) == copy  # is closed, as in theirs
    monkeypatch.delenv(inputs.COPIES)
    with pipe(b"the king") as path, pytest.raises(UsageError, match="only one process can read"):
        inputs.path_or_copy(path, "--data.path", tmp_path)


def test_other_processes_get_the_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their standard input is empty once the first process has read it."""
    assert inputs.in_all_processes("prompts", lambda: ["the king\n", "é"]) == ["the king\n", "é"]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert inputs.in_all_processes("prompts", lambda: [""]) == ["the king\n", "é"]
    monkeypatch.delenv(inputs.COPIES)  # as where the processes are started from outside
    parsed = options.parser().parse_args(["--prompt_file=-"])
    with pytest.raises(UsageError, match="--prompt_file -: a single process can read"):
        inputs.in_all_processes("prompts", lambda: prompts.read(parsed))


def test_a_pipe_that_gives_too_much(tmp_path: Path) -> None:
    with (
        pipe(b"a" * 100_000) as path,
        pytest.raises(UsageError, match=f"--data.path {path}: the pipe gave more than .* MiB"),
    ):
        inputs.path_or_copy(path, "--data.path", tmp_path / "piped", max_bytes=99_999)
    assert not list((tmp_path / "piped").iterdir())


def test_a_wait_is_reported_and_can_be_interrupted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    command = [sys.executable, "-m", "gptlit", "data", "fifo"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        message = process.stderr.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert message == (
        "gptlit: waiting for gptlit data fifo: the pipe has given nothing so far; Ctrl-C stops\n"
    )
    assert rest == "gptlit: stopped\n"
    assert process.returncode == 130
    assert not list((tmp_path / "data" / "piped").iterdir())


def test_prompts_and_configs_through_pipes(gptlit: Gptlit, run: Run) -> None:
    words = ("predict", f"--ckpt_path={run.folder}/checkpoints/last.ckpt", "--max_new_tokens=1")
    with pipe(b"\xef\xbb\xbfthe\r\nking\n") as path:
        found = gptlit(*words, f"--prompt_file={path}", "--lines")
    assert found.code == 0
    assert found.out.startswith("the")
    assert "\nking" in found.out
    assert "\r" not in found.out
    with pipe(b"model: {n_layer: 7}") as path:
        found = gptlit(
            "fit", *TINY[1:], f"--config={path}", f"--data.path={run.text}", "--print_config"
        )
    assert "n_head: 2" in found.out
    with pipe(b"no options") as path:
        assert "holds no options by name" in gptlit("fit", f"--config={path}").err


def test_byte_order_marks_are_named(gptlit: Gptlit, tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("thé", encoding="utf-16")
    assert inputs.read_text("prompt.txt", "--prompt_file") == "thé"
    (tmp_path / "utf16.yaml").write_text("model: {n_layer: 1}", encoding="utf-16")
    for words in (("fit", "--config=utf16.yaml"), ("study", "utf16.yaml")):
        found = gptlit(*words)
        assert found.code == 2
        assert "utf16.yaml: UTF-16 text, by its byte order mark; save it as UTF-8" in found.err


READ = "from gptlit.corpora import inputs; print(inputs.read_text('/dev/stdin', '--prompt_file'))"
READ_DASH = "from gptlit.predict import prompts; prompts.standard_input('--prompt_file -').read(9)"


def test_standard_input_by_its_path(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("the king", encoding="utf-8")

    def read(code: str, path: str) -> subprocess.CompletedProcess[str]:
        command = f'{sys.executable} -c "{code}" < {path}'
        return subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)

    command = [sys.executable, "-c", READ]
    piped = subprocess.run(command, input="the queen", capture_output=True, text=True)
    assert piped.stdout == "the queen\n"
    assert read(READ, "prompt.txt").stdout == "the king\n"
    assert read(READ, "/dev/null").stdout == "\n"
    assert "is a device, which has no end" in read(READ, "/dev/zero").stderr
    assert "is a device, which has no end" in read(READ_DASH, "/dev/zero").stderr


def test_a_prompt_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "prompts.txt").write_text("a" * 5, encoding="utf-8")
    assert inputs.read_text(str(tmp_path / "prompts.txt"), "--prompt_file") == "aaaaa"
    monkeypatch.setattr(inputs, "MAX_TEXT_BYTES", 4)
    with pytest.raises(UsageError, match="--prompt_file .*prompts.txt: is larger than .* MiB"):
        inputs.read_text(str(tmp_path / "prompts.txt"), "--prompt_file")
