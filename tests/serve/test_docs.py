"""The commands and the Python of docs/serving.md, against a server."""

import shlex
import shutil
import subprocess
import sys

import pytest

from tests.serve.serving import Serving
from tests.test_docs import ROOT, blocks, commands

BLOCKS = blocks(ROOT / "docs" / "serving.md")
CURL = [
    command
    for language, block in BLOCKS
    if language == "bash"
    for command in commands(block)
    if command.startswith("curl ")
]


@pytest.mark.parametrize("command", CURL)
def test_the_requests_of_curl(served: Serving, command: str) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")
    words = shlex.split(command.replace("http://127.0.0.1:8000", served.url))
    words = [curl, "-sS", "--fail-with-body", "--noproxy", "*", *words[1:]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_python_of_a_client(served: Serving) -> None:
    pytest.importorskip("openai", reason="needs openai, which is in gptlit[dev]")
    (code,) = (block for language, block in BLOCKS if language == "py")
    code = code.replace("http://127.0.0.1:8000", served.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr
    assert "ROMEO" not in done.stderr
