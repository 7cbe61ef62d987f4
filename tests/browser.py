"""A headless chromium, driven over its DevTools protocol; tests skip where there is none.

    def test_a_page(browser: Browser, tmp_path: Path) -> None:
        page = browser.open((tmp_path / "page.html").as_uri(), width=390, dark=True)
        page.click("button")
        assert page.evaluate("document.title") == "Done"
        assert page.errors == []

Functions of `Page` that take a selector use the first element that matches it.
"""

import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 30  # after which a browser that doesn't answer fails the test
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--hide-scrollbars", "--disable-extensions", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-color-profile=srgb",
    "--remote-debugging-port=0", "--remote-allow-origins=*",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)  # fmt: skip
# code of the key, and its number in Windows
KEYS = {"Enter": 13, "Tab": 9, "Escape": 27, "Backspace": 8, "Delete": 46, " ": 32, "Home": 36,
        "End": 35, "PageUp": 33, "PageDown": 34, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
        "ArrowDown": 40}  # fmt: skip
TYPED = {"Enter": "\r", " ": " "}  # text of keys that have a name
MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}


def program() -> str | None:
    """Return the path of the browser, or None if there is none."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Browser:
    """A running browser, to be used in a `with` block.

    Args:
        path: Path of its program.
    """

    def __init__(self, path: str) -> None:
        # a long path would not fit its sockets
        self._folder = tempfile.TemporaryDirectory(prefix="gptlit", ignore_cleanup_errors=True)
        self._process = subprocess.Popen(
            [path, *OPTIONS, f"--user-data-dir={self._folder.name}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stderr is not None
        lines = (line.strip() for line in self._process.stderr)
        address = next((line for line in lines if line.startswith("DevTools listening on")), "")
        if not address:
            self.close()
            pytest.fail(f"{path} ended with exit code {self._process.returncode}")
        self._host = address.split("/")[2]
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove its files."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._folder.cleanup()

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False) -> "Page":
        """Load a URL in a new tab of a size in pixels, and wait until it is loaded."""
        target = self._asked("new?about:blank", "PUT")
        page = self._pages[target["id"]] = Page(target["webSocketDebuggerUrl"])
        page.show(width, height, dark)
        page.go_to(url)
        return page

    def close_tabs(self) -> None:
        """Close all tabs that were opened."""
        for id_, page in self._pages.items():
            page.close()
            self._asked(f"close/{id_}")
        self._pages.clear()

    def _asked(self, path: str, method: str = "GET") -> Any:
        request = urllib.request.Request(f"http://{self._host}/json/{path}", method=method)
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            content = answer.read()
        return json.loads(content) if content.startswith(b"{") else None


class Page:
    """A tab of the browser.

    Attributes:
        errors: Errors of scripts and of the console, failed requests, and warnings of the browser.
        requests: Addresses that were requested, except data:.
    """

    def __init__(self, address: str) -> None:
        import websocket

        self.errors: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        self._numbers = itertools.count(1)
        self._socket = websocket.create_connection(address, timeout=SECONDS)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)  # for events of focus

    def close(self) -> None:
        """Close the connection; the browser closes the tab."""
        self._socket.close()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        answer: dict[str, Any] = {}
        while answer.get("id") != number:
            answer = self._received()
        assert "error" not in answer, f"{method}: {answer.get('error')}"
        result: dict[str, Any] = answer["result"]
        return result

    def _received(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self._socket.recv())
        event, about = message.get("method"), message.get("params", {})
        if event == "Runtime.exceptionThrown":
            details = about["exceptionDetails"]
            thrown = details.get("exception", {}).get("description", "")
            self.errors.append(f"{details['text']} {thrown}")
        elif event == "Runtime.consoleAPICalled" and about["type"] in ("error", "assert"):
            parts = (each.get("value", each.get("description")) for each in about["args"])
            self.errors.append(" ".join(map(str, parts)))
        elif event == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
            entry = about["entry"]
            self.errors.append(f"{entry['text']} {entry.get('url', '')}")
        elif event == "Network.requestWillBeSent":
            url = about["request"]["url"]
            if not url.startswith("data:"):
                self.requests.append(url)
        elif event == "Page.loadEventFired":
            self._loaded = True
        return message

    def wait_for_request(self, url: str) -> None:
        """Wait until a URL was requested, as by a page that is about to load it."""
        while url not in self.requests:
            self._received()

    def go_to(self, url: str) -> None:
        """Load a URL and wait until it is loaded."""
        self._loaded = False
        answer = self.send("Page.navigate", url=url)
        assert "errorText" not in answer, f"{url}: {answer.get('errorText')}"
        while not self._loaded:
            self._received()

    def show(self, width: int, height: int, dark: bool = False) -> None:
        """Change the size of the page in pixels, and whether its reader prefers dark colours."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is waited for."""
        how = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.send("Runtime.evaluate", expression=expression, **how)
        details = answer.get("exceptionDetails")
        if details:
            thrown = details.get("exception", {}).get("description", details["text"])
            raise AssertionError(f"{expression}: {thrown}")
        return answer["result"].get("value")

    def wait_for(self, condition: str, seconds: float = SECONDS) -> Any:
        """Wait until a JavaScript expression is true, and return its value."""
        code = f"""new Promise((resolve, reject) => {{
            const end = Date.now() + {seconds * 1000};
            const look = async () => {{
                try {{
                    const value = await ({condition});
                    if (value) return resolve(value);
                }} catch (error) {{ return reject(error); }}
                if (Date.now() > end) return reject(new Error("is not true in {seconds} s"));
                setTimeout(look, 10);
            }};
            look();
        }})"""
        return self.evaluate(code)

    def text(self, selector: str) -> str:
        """Return the visible text of an element."""
        return str(self.evaluate(f"document.querySelector({json.dumps(selector)}).innerText"))

    def middle_of(self, selector: str) -> tuple[float, float]:
        """Scroll an element into view, and return the place of its middle in the window."""
        place = self.evaluate(f"""(() => {{
            const element = document.querySelector({json.dumps(selector)});
            if (!element) throw new Error("no such element");
            element.scrollIntoView({{block: "center", inline: "center", behavior: "instant"}});
            const box = element.getClientRects()[0];
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        return place[0], place[1]

    def mouse(self, kind: str, x: float, y: float, **options: Any) -> None:
        """Send a mouse event: mouseMoved, mousePressed, mouseReleased or mouseWheel."""
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)

    def hover(self, selector: str) -> None:
        """Move the mouse to an element."""
        self.mouse("mouseMoved", *self.middle_of(selector))

    def click(self, selector: str) -> None:
        """Click an element with the left button."""
        place = self.middle_of(selector)
        self.mouse("mouseMoved", *place)
        for kind in ("mousePressed", "mouseReleased"):
            self.mouse(kind, *place, button="left", clickCount=1)

    def focus(self, selector: str) -> None:
        """Give an element the keyboard's focus."""
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key, such as a, Enter, ArrowDown or Control+Shift+a."""
        *held, name = key.split("+") if len(key) > 1 else [key]
        modifiers = sum(MODIFIERS[each] for each in held)
        text = TYPED.get(name, name if len(name) == 1 else "")
        number = KEYS.get(name, ord(name.upper()) if len(name) == 1 else 0)
        about: dict[str, Any] = {"key": name, "modifiers": modifiers}
        about |= {"windowsVirtualKeyCode": number, "code": "Space" if name == " " else name}
        if modifiers & ~MODIFIERS["Shift"]:
            text = ""
        for _ in range(times):
            kind = "keyDown" if text else "rawKeyDown"
            down = {"text": text} if text else {}
            self.send("Input.dispatchKeyEvent", type=kind, **about, **down)
            self.send("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, text: str) -> None:
        """Insert a text where the keyboard's focus is, as a paste does."""
        self.send("Input.insertText", text=text)

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """Save a PNG of the window, or of the whole page."""
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "scale": 1} | {n: size[n] for n in ("width", "height")}
            answer = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(answer["data"]))


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    """A browser for all tests of a process."""
    path = program()
    if path is None:
        pytest.skip(f"needs a browser; none of {', '.join(PROGRAMS)} is installed")
    pytest.importorskip("websocket", reason="needs websocket-client, which is in gptlit[dev]")
    with Browser(path) as browser:
        yield browser


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    """A browser whose tabs are closed after the test."""
    yield chromium
    chromium.close_tabs()
