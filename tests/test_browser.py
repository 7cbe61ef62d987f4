"""The driver of a headless browser does and records what its user would do and see."""

from pathlib import Path

import pytest
from PIL import Image

from tests.browser import Browser, Page

PAGE = """<!doctype html><title>Page</title><meta name="color-scheme" content="light dark">
<style>body { margin: 0; background: white; } button:hover { color: red; }
@media (prefers-color-scheme: dark) { body { background: black; } }</style>
<input><button>0</button><p id="keys"></p>
<script>
const button = document.querySelector("button");
button.onclick = () => { button.textContent = +button.textContent + 1; };
const keys = document.getElementById("keys");
addEventListener("keydown", (event) => {
  keys.textContent += (event.ctrlKey ? "Control+" : "") + event.key + " ";
});
</script>"""


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Page:
    path = tmp_path / "page.html"
    path.write_text(PAGE)
    return browser.open(path.as_uri())


def test_mouse_and_keys(page: Page) -> None:
    page.click("button")
    page.click("button")
    assert page.text("button") == "2"
    assert page.evaluate("getComputedStyle(button).color") == "rgb(255, 0, 0)"
    page.focus("input")
    for key in ("a", "B", "Control+a", "ArrowLeft", " "):
        page.press(key)
    page.write("é漢")
    assert page.text("#keys") == "a B Control+a ArrowLeft"
    # the arrow leaves the selection of all at its beginning
    assert page.evaluate("document.querySelector('input').value") == " é漢aB"
    page.press("Tab")
    page.press("Enter")
    assert page.text("button") == "3"
    assert page.errors == []


def test_errors_and_requests_are_recorded(page: Page) -> None:
    assert page.errors == []
    assert [url.rpartition("/")[2] for url in page.requests] == ["page.html"]
    page.evaluate("console.error('it', 1); console.log('not this')")
    page.evaluate("setTimeout(() => nosuch(), 0)")
    page.evaluate("fetch('https://example.com/x').catch(() => 0)")
    assert page.requests[-1] == "https://example.com/x"
    wanted = ["it 1", "nosuch is not defined", "example.com/x"]
    assert all(any(each in error for error in page.errors) for each in wanted), page.errors
    with pytest.raises(AssertionError, match="other is not defined"):
        page.evaluate("other()")


def test_waiting(page: Page) -> None:
    page.evaluate("void setTimeout(() => { window.later = 'now'; }, 30)")
    assert page.wait_for("window.later") == "now"
    with pytest.raises(AssertionError, match="is not true in"):
        page.wait_for("window.never", 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_sizes_and_colours(page: Page, tmp_path: Path, dark: bool) -> None:
    page.show(390, 500, dark)
    assert page.evaluate("[innerWidth, innerHeight]") == [390, 500]
    page.evaluate("document.body.style.height = '900px'")
    for whole in (False, True):
        page.screenshot(tmp_path / "page.png", whole)
        image = Image.open(tmp_path / "page.png").convert("RGB")
        assert image.size == (390, 900 if whole else 500)
        assert image.getpixel((380, 480)) == ((0, 0, 0) if dark else (255, 255, 255))
