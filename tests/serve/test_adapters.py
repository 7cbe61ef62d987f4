"""`gptlit serve --adapter`: one checkpoint's model and it with adapters, as several models."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import gptlit
from gptlit.checkpoints import adapters
from gptlit.model.gpt import GPT, GPTConfig
from tests.browser import Browser
from tests.conftest import Result
from tests.model.test_lora import random_changes
from tests.serve.serving import Serving, serving
from tests.serve.test_api import ID
from tests.serve.test_page import IDLE

Call = Callable[..., Result]


@pytest.fixture(scope="module")
def folders(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Adapters of the served checkpoint's model."""
    plain, _ = gptlit.load(ckpt)
    found = [tmp_path_factory.mktemp(name) / "adapter" for name in ("first", "second")]
    for rank, folder in enumerate(found, 1):
        config = GPTConfig(**{**vars(plain.config), "lora_r": rank})
        state = random_changes(GPT(config)).state_dict() | plain.state_dict()
        adapters.write(config, state, folder, base=None)
    return found


@pytest.fixture(scope="module")
def voices(ckpt: Path, folders: list[Path]) -> Iterator[Serving]:
    first, second = folders
    with serving([str(ckpt), f"--adapter={first}", f"--adapter=other={second}"]) as found:
        yield found


def test_models_of_a_server(voices: Serving, folders: list[Path]) -> None:
    first = f"{folders[0].parent.name}-adapter"
    rows = voices.ask("/v1/models").json["data"]
    assert [(row["id"], row.get("parent")) for row in rows] == [
        (ID, None), (first, ID), ("other", ID),
    ]  # fmt: skip
    assert voices.ask("/v1/models/other").json == rows[2]
    lines = voices.ask("/api/about?model=other").json["lines"]
    assert lines["text"] == f"{ID} with an adapter"
    assert lines["state"].startswith("of the base: step ")
    answer = voices.complete(prompt="the", model="another")
    assert (answer.status, answer.json["error"]["code"]) == (404, "model_not_found")
    reason = f"the model 'another' does not exist; this server has '{ID}', '{first}', 'other'"
    assert answer.json["error"]["message"] == reason


def test_each_model_writes_its_own_texts(voices: Serving, ckpt: Path, folders: list[Path]) -> None:
    names = [ID, f"{folders[0].parent.name}-adapter", "other"]
    body = {"prompt": "the k", "max_tokens": 30, "seed": 4, "temperature": 1}
    with ThreadPoolExecutor(6) as pool:
        answers = [*pool.map(lambda name: voices.complete(**body, model=name), names * 2)]
    texts = ["the k" + answer.json["choices"][0]["text"] for answer in answers]
    models = [gptlit.load(ckpt, adapter=folder) for folder in (None, *folders)]
    options = {"max_new_tokens": 30, "seed": 4, "temperature": 1.0}
    wanted = [gptlit.generate(*model, "the k", **options) for model in models]
    assert texts == wanted * 2
    assert len(set(wanted)) == 3
    assert [answer.json["model"] for answer in answers] == names * 2
    assert voices.complete(**body).json["choices"] == answers[0].json["choices"]


def test_copies_of_an_adapters_text_cannot_be_known(voices: Serving) -> None:
    answer = voices.ask("/api/copied", {"text": "the", "n_prompt": 0, "model": "other"}).json
    assert answer == {
        "available": False, "reason": "an adapter doesn't name the text that it was trained on",
    }  # fmt: skip


def test_packed_models_count_all_parameters(ckpt: Path, folders: list[Path]) -> None:
    words = [str(ckpt), f"--adapter=a={folders[0]}", "--weights=int8"]
    n = sum(each.numel() for each in gptlit.load(ckpt)[0].parameters())
    with serving(words) as packed:
        lines = [packed.ask(f"/api/about?model={name}").json["lines"] for name in (ID, "a")]
        assert [each["parameters"] for each in lines] == [f"{n:,}"] * 2
        answers = [packed.complete(prompt="the", model=name, seed=1) for name in (ID, "a")]
    texts = [answer.json["choices"][0]["text"] for answer in answers]
    assert texts[0] != texts[1]


def test_models_share_what_adapters_leave_alone(voices: Serving) -> None:
    base, *others = (each.model for each in (voices.server.served, *voices.server.others))
    for other in others:
        assert other.wte.weight is base.wte.weight
        assert other.h[0].mlp.c_fc.weight is base.h[0].mlp.c_fc.weight
        assert other.h[0].attn.c_attn.weight is not base.h[0].attn.c_attn.weight


def test_wrong_words(gptlit: Call, ckpt: Path, folders: list[Path]) -> None:
    given = f"{ID}={folders[1]}"
    twice = [f"--adapter={folders[0]}", f"--adapter={folders[0]}"]
    for words, reason in (
        ([f"--adapter={given}"], f"--adapter {given}: another model is called {ID} already"),
        (twice, "-adapter already; add another name, as NAME=FOLDER"),
        (["--adapter=x"], "--adapter x: no adapter_config.json in it"),
    ):
        done = gptlit("serve", ckpt, "--port=0", *words)
        assert (done.code, done.out) == (2, "")
        assert reason in done.err
        assert done.err.count("\n") == 1


def test_the_page_has_a_choice_of_models(voices: Serving, browser: Browser, ckpt: Path) -> None:
    page = browser.open(voices.url)
    page.evaluate("localStorage.clear()")
    page.wait_for("document.querySelector('#models').options.length === 3")
    assert page.evaluate("document.querySelector('#models').value") == ID
    page.evaluate(
        "(box => { box.value = 'other'; box.dispatchEvent(new Event('change')) })"
        "(document.querySelector('#models'))"
    )
    page.wait_for_request(f"{voices.url}/?model=other")
    page.go_to(f"{voices.url}/?model=other")
    page.wait_for("document.title.startsWith('other')")
    fields = {"prompt": "the k", "n": "1", "max_tokens": "20", "seed": "5"}
    for name, value in fields.items():
        page.evaluate(f"document.querySelector('#{name}').value = {json.dumps(value)}")
    page.click("#write")
    page.wait_for(f"{IDLE} && document.querySelectorAll('.token').length === 25")
    options = {"max_tokens": 20, "seed": 5, "temperature": 0.8, "model": "other"}
    wanted = voices.complete(prompt="the k", **options).json["choices"][0]["text"]
    assert page.text(".text") == f"the k{wanted}"
    assert not page.errors
