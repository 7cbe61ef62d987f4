"""Runs `gptlit` in a pseudo-terminal, whose output a terminal emulator interprets."""

import fcntl
import os
import struct
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyte
import pytest

from gptlit.__main__ import main

ROWS = 24


@dataclass
class Terminal:
    """A terminal of some columns, with all lines that scrolled through it."""

    columns: int
    lines: list[str] = field(default_factory=list)  # after the command ended
    frames: list[str] = field(default_factory=list)  # lines before they were overwritten

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def words(self) -> set[str]:
        return set(self.text.split())


def read_to_end(descriptor: int, chunks: list[bytes]) -> None:
    while True:
        try:
            chunk = os.read(descriptor, 1 << 16)
        except OSError:  # on Linux, once the last writer has closed the terminal
            return
        if not chunk:
            return
        chunks.append(chunk)


@contextmanager
def attached(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Attach standard output and error to a terminal, and fill in its lines afterwards."""
    ours, theirs = os.openpty()
    size = struct.pack("HHHH", ROWS, terminal.columns, 0, 0)
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, size)
    chunks: list[bytes] = []
    reader = threading.Thread(target=read_to_end, args=(ours, chunks))
    reader.start()
    with (
        monkeypatch.context() as patch,
        open(theirs, "w", encoding="utf-8") as out,
        # two streams on one terminal, as in a separate process
        open(os.dup(theirs), "w", encoding="utf-8") as err,
    ):
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.delenv("COLUMNS", raising=False)
        patch.setenv("TERM", "xterm")
        yield
    reader.join()
    os.close(ours)
    screen: Any = pyte.HistoryScreen(terminal.columns, ROWS, history=10_000)
    stream_to_screen = pyte.ByteStream(screen)
    raw = b"".join(chunks)
    stream_to_screen.feed(raw)
    gone = ["".join(row[x].data for x in range(terminal.columns)) for row in screen.history.top]
    terminal.lines = (
        "\n".join(line.rstrip() for line in [*gone, *screen.display]).rstrip().split("\n")
    )
    terminal.frames = [
        frame for line in raw.decode().split("\n") for frame in line.strip("\r").split("\r")
    ]


def seen(columns: int, monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Terminal:
    """Call `gptlit` in-process in a terminal."""
    terminal = Terminal(columns)
    with attached(terminal, monkeypatch):
        code = main([str(argument) for argument in arguments])
    assert code == 0, terminal.text
    return terminal
