"""Uploads to a stand-in of the Hub: a server on this machine that answers as its HTTP interface."""

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Result, Run

Call = Callable[..., Result]
# of huggingface_hub's own calls of its HTTP library
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")
TOKEN = "hf_notToBePrinted"


@dataclass
class Repositories:
    """The content of the stand-in: whether each repository is private, and its files."""

    private: dict[str, bool] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by sha256
    tokens: set[str | None] = field(default_factory=set)
    refuses: bool = False


class Answers(BaseHTTPRequestHandler):
    hub: Repositories
    address: str

    def log_message(self, *_: object) -> None: ...

    def content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: Any, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        if name in self.hub.private:
            self.answer({"id": name, "private": self.hub.private[name]})
        else:
            self.answer({}, 404)

    def do_PUT(self) -> None:
        content = self.content()
        self.hub.large[hashlib.sha256(content).hexdigest()] = content
        self.answer({})

    def do_POST(self) -> None:
        content = self.content()
        self.hub.tokens.add(self.headers.get("Authorization"))
        if self.hub.refuses:
            self.answer({"error": f"Invalid token {TOKEN}"}, 401)
        elif self.path == "/api/repos/create":
            wanted = json.loads(content)
            name = f"{wanted['organization']}/{wanted['name']}"
            exists = name in self.hub.private
            self.hub.private.setdefault(name, wanted.get("visibility") != "public")
            self.answer({"url": f"{self.address}/{name}"}, 409 if exists else 200)
        elif self.path == "/api/validate-yaml":
            yaml.safe_load(json.loads(content)["content"].split("---")[1])
            self.answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for each in json.loads(content)["files"]
            ]
            self.answer({"files": files})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.address}/put/{each['oid']}"}}}
                for each in json.loads(content)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.hub.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.hub.files[value["path"]] = self.hub.large[value["oid"]]
            name = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            address = f"{self.address}/{name}/commit/1"
            self.answer({"commitUrl": address, "commitOid": "1", "success": True})
        else:
            self.answer({}, 404)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Repositories]:
    from huggingface_hub import constants

    found = Repositories()
    answers = type("Own", (Answers,), {"hub": found})
    with ThreadingHTTPServer(("127.0.0.1", 0), answers) as server:
        answers.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", answers.address)  # type: ignore[attr-defined]
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        # Xet's own protocol is that of a library in Rust
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield found
        server.shutdown()
        thread.join()


@pytest.fixture
def checkpoint(run: Run) -> Path:
    return run.folder / "checkpoints" / "last.ckpt"


def test_a_folder_is_uploaded_to_a_private_repository(
    gptlit: Call, checkpoint: Path, hub: Repositories
) -> None:
    result = gptlit("export", checkpoint, "out", "--push", "me/my-model")
    assert result.code == 0, result.err
    assert hub.private == {"me/my-model": True}
    written = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert {name: content for name, content in hub.files.items() if name in written} == written
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert "pushed to http://127.0.0.1" in result.err
    assert result.err.rstrip().endswith("/me/my-model, private")
    assert TOKEN not in result.err + result.out
    assert "model-index:\n- name: me/my-model\n" in hub.files["README.md"].decode()


def test_a_repository_is_public_only_if_asked(
    gptlit: Call, checkpoint: Path, hub: Repositories
) -> None:
    assert gptlit("export", checkpoint, "a", "--push=me/x", "--public=true").code == 0
    assert hub.private == {"me/x": False}
    files = dict(hub.files)
    result = gptlit("export", checkpoint, "b", "--push=me/x")
    assert result.code == 2
    assert "--push me/x: is a public repository; give --public true" in result.err
    assert hub.files == files


def test_a_refusal_keeps_the_folder_and_hides_the_token(
    gptlit: Call, checkpoint: Path, hub: Repositories
) -> None:
    hub.refuses = True
    result = gptlit("export", checkpoint, "out", "--push=me/x")
    assert result.code == 1
    assert "--push me/x: " in result.err
    assert "hf upload me/x out tries again" in result.err
    assert TOKEN not in result.err
    assert Path("out/model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--push=mine"], "--push mine: must be a name such as user/my-model"),
        (["--push=me/x"], "--push me/x: needs the variable HF_TOKEN"),
        (["--public=true"], "--public true: needs --push user/name"),
    ],
)
def test_what_is_missing_is_reported_before_anything_is_written(
    gptlit: Call,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    result = gptlit("export", checkpoint, "out", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not list(Path().iterdir())
