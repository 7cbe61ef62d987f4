"""The page in a browser: writing, tokens, colours, history, keys, and a phone's width."""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import gptlit
from gptlit.data.novelty import TrainingText
from gptlit.messages import UsageError
from gptlit.serve.engine import Job
from tests.browser import Browser, Page
from tests.conftest import Run
from tests.serve.serving import Serving, serving
from tests.serve.test_api import ID, held, wait_for

TEXTS = "[...document.querySelectorAll('.text')].map(each => each.textContent)"
IDLE = "document.querySelector('#stop').disabled && document.querySelector('.token') !== null"


@pytest.fixture
def page(served: Serving, browser: Browser) -> Iterator[Page]:
    """The page, with nothing kept of earlier tests, and without errors at the test's end."""
    found = browser.open(served.url)
    found.evaluate("localStorage.clear()")
    found.go_to(served.url)
    found.wait_for("document.querySelector('#model').textContent")
    yield found
    assert not found.errors
    assert all(each.startswith(f"{served.url}/") for each in found.requests)


def fill(page: Page, **fields: Any) -> None:
    for name, value in fields.items():
        page.evaluate(f"document.querySelector('#{name}').value = {json.dumps(str(value))}")


def write(page: Page, prompt: str, **fields: Any) -> list[str]:
    """Write texts, and wait for their ends."""
    fill(page, prompt=prompt, **fields)
    page.click("#write")
    page.wait_for(IDLE)
    found: list[str] = page.evaluate(TEXTS)
    return found


def token(at: int, sample: int = 1) -> str:
    return f".sample:nth-child({sample}) .token:nth-child({at + 1})"


def test_samples_side_by_side_are_those_of_predict(page: Page, ckpt: Path) -> None:
    texts = write(page, "the k", n=3, max_tokens=30, seed=5, top_k=7, stop_strings="zzz\n\\n\\n\\n")
    alone = gptlit.load(ckpt)
    options: dict[str, Any] = {"top_k": 7, "max_new_tokens": 30, "stop": ["zzz", "\n\n\n"]}
    assert texts == [gptlit.generate(*alone, "the k", seed=5 + i, **options) for i in range(3)]
    columns = page.evaluate(
        "[...document.querySelectorAll('.sample')].map(each => each.getBoundingClientRect().x)"
    )
    assert len(set(columns)) == 3
    assert page.evaluate("document.querySelectorAll('.prompt').length") == 15


def test_a_busy_server_is_asked_again(
    page: Page, served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.server, "max_requests", 1)
    texts = write(page, "the k", n=3, max_tokens=300, seed=5)
    assert [len(text) for text in texts] == [305] * 3
    assert all("429" in error for error in page.errors)
    page.errors.clear()


def test_text_is_never_markup(page: Page) -> None:
    """A model's text may hold tags; so may a name that the server reports."""
    fill(page, prompt="the", max_tokens=1)
    page.evaluate("""(async () => {
        const { Sample } = await import("./sample.js");
        const sample = new Sample(0, "", 1, 1, { changed() {}, fails() {} });
        sample.add({ id: 1, piece: "<img src=x onerror=window.broken=1><b>" });
        document.querySelector("#samples").replaceChildren(sample.root);
    })()""")
    assert page.text(".text") == "<img src=x onerror=window.broken=1><b>"
    assert page.evaluate("document.querySelector('.text b, .text img') === null")


def test_an_alternative_is_chosen_with_the_mouse(page: Page, ckpt: Path) -> None:
    (text,) = write(page, "the k", n=1, max_tokens=12, seed=5)
    page.hover(token(8))
    page.wait_for("document.querySelectorAll('#panel li').length === 8")
    rows = page.evaluate(
        "[...document.querySelectorAll('#panel li')].map(each => each.innerText.split('\\n'))"
    )
    shares = [float(row[-1].strip("%<")) for row in rows]
    assert shares == sorted(shares, reverse=True)
    model, tokenizer = gptlit.load(ckpt)
    letters = [row[0].replace("␣", " ").replace("↵", "\n") for row in rows]
    assert all(len(tokenizer.encode(letter)) == 1 for letter in letters)
    other = next(at for at, letter in enumerate(letters) if letter != text[8])
    page.click(f"#panel li:nth-child({other + 1}) button")
    page.wait_for(IDLE)
    (changed,) = page.evaluate(TEXTS)
    assert changed[:9] == text[:8] + letters[other]
    assert len(changed) == 9 + 12
    # a request of its own, with the next seed
    options: dict[str, Any] = {"max_new_tokens": 12, "seed": 6}
    assert changed == gptlit.generate(model, tokenizer, changed[:9], **options)


def test_a_text_is_written_anew_by_keys_alone(page: Page) -> None:
    fill(page, prompt="", n=1, max_tokens=20, seed=5)
    page.focus("#prompt")
    page.write("thy")
    page.press("Control+Enter")
    page.wait_for(IDLE)
    (text,) = page.evaluate(TEXTS)
    page.focus(".token")
    page.press("ArrowRight", 10)
    assert page.evaluate("document.activeElement === document.querySelectorAll('.token')[10]")
    page.press("Enter")
    page.wait_for("document.activeElement.textContent === 'Regenerate from here'")
    page.press("ArrowDown")
    page.wait_for("document.activeElement.matches('.alternative')")
    page.press("Escape")
    assert page.evaluate("document.querySelector('#panel').hidden")
    assert page.evaluate("document.activeElement === document.querySelectorAll('.token')[10]")
    page.press("r")
    page.wait_for(IDLE)
    (again,) = page.evaluate(TEXTS)
    assert (again[:10], len(again)) == (text[:10], 30)
    assert again != text
    assert "seed 6 · 27 tokens" in page.text(".state")


def test_stop_and_continue(page: Page, served: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = write(page, "the", n=1, max_tokens=10, seed=5)
    jobs: list[Job]
    with held(served, monkeypatch) as jobs:
        page.click("#continue")
        wait_for(lambda: len(jobs) == 1)
        assert not page.evaluate("document.querySelector('#stop').disabled")
        page.press("Escape")
        page.wait_for(IDLE)
        wait_for(lambda: jobs[0].is_cancelled)
    assert "stopped" in page.text(".state")
    assert page.evaluate(TEXTS) == [text]
    page.click("#continue")
    page.wait_for(IDLE)
    (longer,) = page.evaluate(TEXTS)
    assert longer.startswith(text)
    assert len(longer) == len(text) + 10


def test_colours_of_surprise(page: Page, served: Serving) -> None:
    write(page, "the king", n=1, max_tokens=80, seed=5, temperature=1.5)
    page.click("input[value=surprise]")
    steps = page.evaluate(
        "[...document.querySelectorAll('.token')].map(each => each.dataset.surprise)"
    )
    body = {"prompt": "the king", "max_tokens": 80, "seed": 5, "temperature": 1.5}
    scores = served.complete(**body, logprobs=0, echo=True).json["choices"][0]["logprobs"]
    wanted = [
        sum(logprob < math.log(limit) for limit in (0.5, 0.1, 0.01, 0.001))
        for logprob in scores["token_logprobs"][1:]
    ]
    assert steps[1:] == [str(each) for each in wanted]
    assert {"0", "1", "3"} <= set(steps[1:])
    colour = "getComputedStyle(document.querySelector('[data-surprise=\"3\"]')).backgroundColor"
    assert page.evaluate(colour) == "rgba(221, 107, 32, 0.52)"
    page.click("input[value=none]")
    assert page.evaluate(colour) == "rgba(0, 0, 0, 0)"


def test_copied_text_is_marked(page: Page, run: Run, served: Serving) -> None:
    """A text of the history, whose tokens are a copy of 100 characters and others."""
    text = "!!é!!" + run.text.read_text()[200:300] + "!!!!"
    ids = served.server.served.tokenizer.encode(text).tolist()
    tokens = [[id_, letter, None, 0] for id_, letter in zip(ids, text, strict=True)]
    saved = {"prompt": "", "seed": 1, "step": 1, "finish": "length", "tokens": tokens}
    entry = {"id": "1", "time": 0, "prompt": "", "fields": {}, "samples": [saved]}
    kept = json.dumps(json.dumps([entry]))
    page.evaluate(f"localStorage.setItem('gptlit:history:{ID}', {kept})")
    page.go_to(served.url)
    page.click("#history summary")
    page.wait_for("document.querySelector('.entry') !== null")
    page.click(".entry")
    page.click("input[value=copied]")
    page.wait_for("document.querySelector('.copied') !== null")
    places = "[...document.querySelectorAll('.token')].map(each => +each.matches('.copied'))"
    assert page.evaluate(places) == [0] * 5 + [1] * 100 + [0] * 4
    assert "longest copy 100" in page.text(".state")


def test_a_page_says_that_the_training_text_is_missing(
    page: Page, served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> TrainingText:
        raise UsageError("no such file")

    server = served.server
    monkeypatch.setattr(server, "_training_texts", {})
    monkeypatch.setattr(server, "served", dataclasses.replace(server.served, training_text=missing))
    write(page, "the", n=1, max_tokens=40)
    page.click("input[value=copied]")
    page.wait_for("document.querySelector('#legend').textContent.includes('is not here')")
    assert page.text("#legend") == (
        "the training text is not here, so copies can't be found: no such file"
    )


def test_the_history_is_kept_in_the_browser(page: Page, served: Serving) -> None:
    first = write(page, "the", n=2, max_tokens=10, seed=5, top_k=4)
    write(page, "thy", n=1, max_tokens=10, seed=5, top_k="")
    page.go_to(served.url)
    page.wait_for("document.querySelectorAll('#entries li').length === 2")
    assert page.evaluate("document.querySelector('#prompt').value") == "thy"
    page.click("#history summary")
    page.click("#entries li:nth-child(2) .entry")
    assert page.evaluate(TEXTS) == first
    assert page.evaluate("document.querySelector('#top_k').value") == "4"
    page.click(token(7))
    page.wait_for("document.querySelectorAll('#panel li').length === 8")
    page.press("Escape")
    page.click(".sample:nth-child(2) .head button")  # continues a text of the history
    page.wait_for(IDLE)
    longer = page.evaluate(TEXTS)
    assert (longer[0], longer[1][: len(first[1])]) == (first[0], first[1])
    assert len(longer[1]) == len(first[1]) + 10
    page.click("#entries li:nth-child(1) [aria-label^=Remove]")
    page.wait_for("document.querySelectorAll('#entries li').length === 1")
    page.click("#clear")
    page.wait_for("document.querySelectorAll('#entries li').length === 0")


def test_copy_and_download(page: Page) -> None:
    (text,) = write(page, "the", n=1, max_tokens=10, seed=5)
    page.evaluate("""(() => {
        window.kept = {};
        navigator.clipboard.writeText = async (text) => { kept.copied = text; };
        URL.createObjectURL = (blob) => { kept.blob = blob; return "#file"; };
        HTMLAnchorElement.prototype.click = function () { kept.name = this.download; };
    })()""")
    page.click(".head button:nth-of-type(3)")
    page.click(".head button:nth-of-type(4)")
    assert page.wait_for("kept.copied") == text
    assert page.evaluate("kept.blob.text()") == text
    assert page.evaluate("kept.name") == "gptlit-5.txt"
    assert page.text(".head button:nth-of-type(3)") == "Copied"


def test_an_error_is_shown_at_its_field(page: Page) -> None:
    fill(page, prompt="the €", n=1)
    page.click("#write")
    page.wait_for("!document.querySelector('#error').hidden")
    assert "'€' not in the vocabulary" in page.text("#error")
    assert page.evaluate("document.activeElement.id") == "prompt"
    assert page.evaluate("document.querySelector('#prompt').getAttribute('aria-invalid')") == "true"
    assert any("400" in error for error in page.errors)
    page.errors.clear()
    write(page, "the", n=1, max_tokens=5)
    assert page.evaluate("document.querySelector('#error').hidden")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phones_width(page: Page, dark: bool) -> None:
    """Nothing is wider than the screen, and the alternatives lie at its lower edge."""
    page.show(390, 844, dark)
    write(page, "the king and thy love", n=2, max_tokens=60, seed=5)
    page.click("input[value=surprise]")
    page.click(token(30))
    page.wait_for("document.querySelectorAll('#panel li').length === 8")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    box = page.evaluate("document.querySelector('#panel').getBoundingClientRect().toJSON()")
    assert (box["left"], box["right"], round(box["bottom"])) == (8, 382, 836)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(20, 23, 27)" if dark else "rgb(246, 247, 249)")


def test_a_key_is_asked_for(ckpt: Path, browser: Browser) -> None:
    with serving([str(ckpt), "--api_key=secret"]) as served:
        page = browser.open(served.url)
        page.wait_for("document.querySelector('#ask_key').open")
        page.focus("#key")
        page.write("secret")
        page.press("Enter")
        page.wait_for("document.querySelector('#model').textContent")
        assert len(write(page, "the", n=1, max_tokens=5)[0]) == 8
