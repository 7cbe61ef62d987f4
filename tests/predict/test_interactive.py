"""`gptlit predict --interactive`: typed in a terminal, from a pipe, and interrupted."""

import dataclasses
import io
import os
import pty
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gptlit.messages import UsageError
from gptlit.predict import interactive
from tests.conftest import Result, Run, after_introduction

Call = Callable[..., Result]
Script = Callable[..., Result]


class Typed(io.TextIOWrapper):
    """Standard input that is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def predict(gptlit: Call, run: Run) -> Call:
    path = run.folder / "checkpoints" / "last.ckpt"
    return lambda *options: gptlit("predict", "--ckpt_path", path, "--max_new_tokens=15", *options)


@pytest.fixture
def script(predict: Call, monkeypatch: pytest.MonkeyPatch) -> Script:
    def call(*lines: str, options: tuple[str, ...] = (), typed: bool = False) -> Result:
        content = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
        stdin = (Typed if typed else io.TextIOWrapper)(content, encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stdin)
        result = predict("--interactive", *options)
        return dataclasses.replace(result, err=after_introduction(result.err))

    return call


def test_line_by_line_it_is_predict(predict: Call, script: Script) -> None:
    Path("prompts.txt").write_text("the\nking and\nthe\n", encoding="utf-8")
    for options in ((), ("--num_samples=2", "--seed=5"), ("--echo=false", "--stop=e")):
        result = script("the", "king and", "the", options=options)
        assert (result.code, result.err) == (0, "")
        assert result.out == predict("--prompt_file=prompts.txt", "--lines", *options).out


def test_settings_change_on_the_fly(predict: Call, script: Script) -> None:
    result = script(
        "/temperature 0", "the", "/temperature 1.5", "/top_k 4", "the", "/top_k none", "/seed 9",
        "the",
    )  # fmt: skip
    wanted = [
        predict("--prompt=the", "--greedy").out,
        predict("--prompt=the", "--temperature=1.5", "--top_k=4").out,
        predict("--prompt=the", "--temperature=1.5", "--seed=9").out,
    ]
    assert result.out == "---\n".join(wanted)
    assert result.err == ""
    # --greedy is the initial setting only
    result = script("/temperature 1.5", "the", options=("--greedy",))
    assert result.out == predict("--prompt=the", "--temperature=1.5").out


def test_lists_grow_and_are_cleared(predict: Call, script: Script) -> None:
    result = script("/stop e", "/stop a", "the", "/stop none", "the", "/ban e", "the")
    wanted = [
        predict("--prompt=the", "--stop=e", "--stop=a").out,
        predict("--prompt=the").out,
        predict("--prompt=the", "--ban=e").out,
    ]
    assert result.out == "---\n".join(wanted)


def test_escapes_are_line_breaks_and_tabs(predict: Call, script: Script) -> None:
    result = script(r"/force king\nthe", "the")
    assert result.out == predict("--prompt=the", r"--force=king\nthe").out
    assert "king\nthe" in result.out


def test_a_forced_beginning_is_cleared(predict: Call, script: Script) -> None:
    result = script("/force king", "the", "/force none", "the", "/force")
    wanted = predict("--prompt=the", "--force=king").out, predict("--prompt=the").out
    assert result.out == "---\n".join(wanted)
    assert result.err == "  force none\n"


@pytest.mark.parametrize(
    ("good", "bad", "message"),
    [
        ("/ban e", "/ban yß", "/ban 'yß': 'ß' not in the vocabulary"),
        ("/ban e", "/ban th", "/ban 'th': is 2 tokens of this model"),
        ("/force king", "/force ß", "/force: 'ß' not in the vocabulary"),
        ("/force king", "/ban g", "/force 'king': contains /ban 'g'"),
    ],
)
def test_strings_outside_the_vocabulary_are_refused_at_once(
    predict: Call, script: Script, good: str, bad: str, message: str
) -> None:
    result = script(good, bad, "the")
    (line,) = result.err.splitlines()
    assert message in line
    assert result.out == predict("--prompt=the", good.replace("/", "--").replace(" ", "=")).out
    refused = predict("--interactive", "--ban=th")
    assert (refused.code, refused.out) == (2, "")


def test_lines_does_not_apply(predict: Call) -> None:
    refused = predict("--interactive", "--lines")
    assert (refused.code, refused.out) == (2, "")
    assert "--lines: does not apply to --interactive" in refused.err


def test_again_writes_the_next_samples(predict: Call, script: Script) -> None:
    result = script("the", "/again", options=("--num_samples=2",))
    assert result.out == predict("--prompt=the", "--num_samples=4").out


def test_again_writes_the_next_sample(predict: Call, script: Script) -> None:
    result = script("the", "/again", "/again")
    assert result.out == predict("--prompt=the", "--num_samples=3").out


def test_an_empty_line_and_one_that_begins_with_a_slash(predict: Call, script: Script) -> None:
    result = script("", "//the", options=("--unknown=skip",))
    wanted = predict("--prompt=").out, predict("--prompt=/the", "--unknown=skip").out
    assert result.out == "---\n".join(wanted)
    assert "dropped '/'" in result.err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/temprature 1", "/temprature: unknown command or setting; .*Did you mean /temperature?"),
        ("/temperature -1", "/temperature -1.0: must be 0"),
        ("/temperature hot", "/temperature hot: expected float"),
        ("/top_k 0", "/top_k 0: must be 1 or more"),
        ("/seed -1", "/seed -1: must be 0 or more"),
        ("/min_new_tokens 99", "/min_new_tokens 99: .*not above /max_new_tokens 15"),
        ("/ckpt_path other", "/ckpt_path: unknown command"),
        ("/ban", "  ban none"),
        ("theß", "prompt: 'ß' not in the vocabulary .*; /unknown skip drops them"),
    ],
)
def test_an_invalid_line_is_reported_and_skipped(
    predict: Call, script: Script, line: str, message: str
) -> None:
    result = script(line, "the")
    (reported,) = result.err.splitlines()
    assert re.search(message, reported)
    assert "--" not in reported
    assert result.code == 0
    assert result.out == predict("--prompt=the").out


def test_settings_and_help_are_printed_on_stderr(script: Script) -> None:
    result = script("/top_k 4", "/settings", "/top_k", "/help", "/quit", "the")
    assert result.out == ""
    assert "  top_k               4\n" in result.err
    assert "  seed                1337\n" in result.err
    assert "  top_k 4\n" in result.err
    for name in ("/temperature", "/again", "/quit", "Ctrl-C"):
        assert name in result.err
    assert script("/top_k many", "/top_k").err.splitlines()[-1] == "  top_k none"


def test_a_long_prompt_is_reported(script: Script) -> None:
    assert "the model sees its last 8 at once" in script("the king and").err


def interrupted(monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Stop the first texts by Ctrl-C after a few pieces."""
    stream, left = interactive.stream_generate, [times]

    def stops(*arguments: Any, **options: Any) -> Iterator[str]:
        for index, piece in enumerate(stream(*arguments, **options)):
            if index == 4 and left[0]:
                left[0] -= 1
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(interactive, "stream_generate", stops)


def test_ctrl_c_stops_the_text_and_not_the_program(
    predict: Call, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict("--prompt=the").out
    interrupted(monkeypatch, 2)
    result = script("the", "the", "/seed 9", "the", typed=True)
    assert result.code == 0
    again = predict("--prompt=the", "--seed=9").out
    assert result.out == (whole[:6] + "\n") * 2 + again
    assert "Ctrl-D quits" in result.err


def test_ctrl_c_ends_the_loop_of_a_pipe(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(monkeypatch)
    result = script("the", "the")
    assert result.code == 130
    assert result.out.count("the") == 1


def test_text_that_is_not_utf8(predict: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO(b"\xef\xbb\xbfthe\ncaf\xe9\nking\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(content, encoding="utf-8"))
    result = predict("--interactive")
    assert result.out == predict("--prompt=the", "--prompt=king").out
    assert (
        after_introduction(result.err)
        == "gptlit: error: standard input 'caf\\udce9': not UTF-8 text\n"
    )
    assert result.code == 0


def test_in_a_terminal(run: Run, tmp_path: Path) -> None:
    """Keys in a terminal: Ctrl-C in a text without a limit and on a line, history, Ctrl-D."""
    path = run.folder / "checkpoints" / "last.ckpt"
    arguments = ["predict", f"--ckpt_path={path}", "--interactive", "--max_new_tokens=null"]
    code = f"""
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # makes Ctrl-C of this terminal a signal
from gptlit.__main__ import main
sys.exit(main({arguments!r}))
"""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "dumb", "COLUMNS": "80", "INPUTRC": os.devnull}
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs, stdout=theirs, stderr=theirs,
        cwd=tmp_path, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen, at = b"", 0

    def until(mark: bytes) -> None:
        nonlocal seen, at
        while (found := seen.find(mark, at)) < 0:
            assert select.select([ours], [], [], 50)[0], seen
            seen += os.read(ours, 4096)
        at = found + len(mark)

    def interrupt() -> None:
        """Press Ctrl-C, repeatedly, as Python's input() can miss one between two keys."""
        nonlocal seen
        start = len(seen)
        for _ in range(50):
            os.write(ours, b"\x03")
            while select.select([ours], [], [], 1)[0]:
                seen += os.read(ours, 4096)
                if b"\n> " in seen[start:]:
                    return

    try:
        until(b"> ")
        os.write(ours, b"the\n")
        until(b"\n")
        until(b"the")
        until(b"\n")  # a line of a text without a limit
        os.write(ours, b"\x03")
        until(b"\n> ")
        os.write(ours, b"nonsense")
        until(b"nonsense")
        interrupt()
        until(b"\n> ")
        os.write(ours, b"/max_new_tokens 3\n")
        until(b"max_new_tokens 3\r\n> ")
        os.write(ours, b"\x1b[A\x1b[A\n")  # the line before the last
        until(b"\n> ")
        os.write(ours, b"\x04")
        assert child.wait(50) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    last = seen.decode().replace("\r", "").split("> ")[-2].split("\n")
    assert "the" in last[0]
    assert last[1].startswith("the")
    assert len("\n".join(last[1:])) in (7, 6)


def test_a_conversation_has_its_template(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer sees the conversation before it; /again answers anew, /new begins another."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def answered(model: Any, tokenizer: Any, prompt: str, settings: Any, **more: Any) -> Any:
        asked.append((prompt, more))
        assert settings.stop == ["\n<|end|>"]
        if "Bad" in prompt:
            raise UsageError("has no token", "prompt")
        yield from (prompt, "yes", f" {len(asked)}")

    monkeypatch.setattr(interactive, "stream_generate", answered)
    monkeypatch.setattr(interactive.prompts, "warn_about", lambda *_: None)
    result = script("Who?", "Bad?", "Why?", "/again", "/new", "Where?", options=("--chat",))
    assert result.code == 0, result.err
    asked = [each for each in asked if "Bad" not in each[0]]  # a refused question leaves no trace
    first = "<|user|>\nWho?\n<|assistant|>\n"
    second = f"{first}yes 1\n<|end|>\n<|user|>\nWhy?\n<|assistant|>\n"
    third = "<|user|>\nWhere?\n<|assistant|>\n"
    assert [prompt for prompt, _ in asked] == [first, second, second, third]
    assert re.findall(r"yes \d", result.out) == ["yes 1", "yes 3", "yes 4", "yes 5"]


def test_what_chat_does_not_go_with(predict: Call) -> None:
    refused = predict("--chat", "--prompt=the", "--explain")
    assert (refused.code, "--chat: does not apply to --explain" in refused.err) == (2, True)
    refused = predict("--chat", "--interactive", "--num_samples=2")
    assert (refused.code, "does not apply to --chat" in refused.err) == (2, True)
    refused = predict("--chat", "--prompt=the")
    assert (refused.code, "'<'" in refused.err) == (2, True)
