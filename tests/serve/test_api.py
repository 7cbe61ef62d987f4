"""The API, by sockets, by OpenAI's client and by curl."""

import contextlib
import json
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlit
from gptlit.model.gpt import GPT
from gptlit.serve import app
from gptlit.serve.engine import Job
from gptlit.tokenizers.base import Tokenizer
from tests.conftest import WORDS
from tests.serve.serving import JSON, Serving

ID = "version_0-last"


@pytest.fixture(scope="module")
def alone(ckpt: Path) -> tuple[GPT, Tokenizer]:
    """The same model, for texts that are written one at a time."""
    return gptlit.load(ckpt)


def made_up_requests(n: int) -> list[dict[str, Any]]:
    """Requests that differ in everything, most of them longer than the window of 8 tokens."""
    pick = random.Random(3)
    requests = []
    for index in range(n):
        body: dict[str, Any] = {
            "prompt": " ".join(pick.choices(WORDS, k=pick.randint(0, 12))),
            "max_tokens": pick.randint(1, 60),
            "seed": pick.randrange(2**40),
            "temperature": pick.choice([0, 0.7, 1, 1.4]),
            "n": pick.choice([1, 1, 3]),
            "stream": index % 2 == 0,
        }
        body |= pick.choice([{}, {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.9}])
        body |= pick.choice([{}, {}, {"frequency_penalty": 0.3}, {"repetition_penalty": 1.2}])
        body |= pick.choice([{}, {"stop": "th"}, {"stop": ["\n", "e l", "zzz"]}])
        requests.append(body)
    return requests


def texts_of(served: Serving, body: dict[str, Any]) -> list[str]:
    answer = served.complete(**body)
    assert answer.status == 200, answer.text
    texts = [""] * body["n"]
    bodies = answer.events[:-1] if body["stream"] else [answer.json]
    for choice in (each for body in bodies for each in body["choices"]):
        texts[choice["index"]] += choice["text"]
    return texts


def test_concurrent_requests_get_the_texts_that_they_get_alone(
    served: Serving, alone: tuple[GPT, Tokenizer]
) -> None:
    requests = made_up_requests(36)
    with ThreadPoolExecutor(12) as pool:
        found = [*pool.map(lambda body: texts_of(served, body), requests)]
    for body, texts in zip(requests, found, strict=True):
        options = {
            k: v for k, v in body.items() if k not in ("prompt", "max_tokens", "n", "stream")
        }
        seed = options.pop("seed")
        options |= {"max_new_tokens": body["max_tokens"]}
        wanted = [
            gptlit.generate(*alone, body["prompt"], seed=seed + i, **options)
            for i in range(body["n"])
        ]
        assert texts == [text.removeprefix(body["prompt"]) for text in wanted], body


def test_several_prompts_have_the_same_seeds(served: Serving) -> None:
    """The texts of a prompt are those of `gptlit predict` with several prompts."""
    about = {"max_tokens": 9, "seed": 5, "n": 2}
    ids = served.server.served.tokenizer.encode("the").tolist()
    answer = served.complete(prompt=["the", "thy"], **about).json
    texts = [choice["text"] for choice in answer["choices"]]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    alone = [served.complete(prompt=prompt, **about).json["choices"] for prompt in ("the", "thy")]
    assert texts == [choice["text"] for choices in alone for choice in choices]
    by_ids = served.complete(prompt=[ids, [*ids, 3]], **about).json["choices"]
    assert [choice["text"] for choice in by_ids][:2] == texts[:2]
    assert served.complete(prompt=ids, **about).json["choices"] == by_ids[:2]
    assert answer["usage"] == {
        "prompt_tokens": 6, "completion_tokens": 36, "total_tokens": 42,
    }  # fmt: skip


def test_log_probabilities_are_the_models(served: Serving, alone: tuple[GPT, Tokenizer]) -> None:
    """Echoed, generated, and beyond a stop string; in a stream as in one reply."""
    model, tokenizer = alone
    body = {"prompt": "the k", "max_tokens": 3, "seed": 8, "logprobs": 3, "echo": True}
    whole = served.complete(**body, return_token_ids=True).json["choices"][0]
    ids, scores = whole["token_ids"], whole["logprobs"]
    assert whole["text"] == tokenizer.decode(ids) == "".join(whole["pieces"])
    assert whole["text"].startswith("the k")
    with torch.no_grad():
        logs = model(torch.tensor([ids]))[0].log_softmax(dim=-1)
    own = [float(logs[at, id_]) for at, id_ in enumerate(ids[1:])]
    assert scores["token_logprobs"][0] is None
    assert scores["token_logprobs"][1:] == pytest.approx(own, abs=1e-5)
    for at, likeliest in enumerate(scores["likeliest"][1:]):
        best = logs[at].topk(3)
        assert [id_ for id_, _, _ in likeliest] == best.indices.tolist()
        assert [value for _, _, value in likeliest] == pytest.approx(best.values.tolist(), abs=1e-5)
        named = {tokenizer.decode([id_]): value for id_, _, value in likeliest}
        assert named.items() <= scores["top_logprobs"][at + 1].items()
        assert scores["tokens"][at + 1] in scores["top_logprobs"][at + 1]
    assert scores["text_offset"] == [*range(8)]
    streamed = served.complete(**body, stream=True).events
    parts = [each["choices"][0]["logprobs"] for each in streamed[:-1]]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert [value for part in parts for value in part[name]] == scores[name]


def test_tokens_of_a_stop_string_are_left_out(served: Serving) -> None:
    body = {"prompt": "the", "max_tokens": 200, "seed": 11, "logprobs": 0}
    free = served.complete(**body).json["choices"][0]
    stop = free["text"][20:23]
    end = free["text"].index(stop)
    for streams in (False, True):
        answer = served.complete(**body, stop=[stop], stream=streams)
        parts = answer.events[:-1] if streams else [answer.json]
        choices = [part["choices"][0] for part in parts]
        assert "".join(choice["text"] for choice in choices) == free["text"][:end]
        tokens = [token for choice in choices for token in choice["logprobs"]["tokens"]]
        assert tokens == free["logprobs"]["tokens"][:end]
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + [
            "stop"
        ]
    assert free["finish_reason"] == "length"
    assert free["logprobs"]["text_offset"][0] == 3


def test_a_prompt_is_scored_without_a_token(served: Serving) -> None:
    body = {"prompt": "the king and thy love", "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = served.complete(**body).json
    assert answer["choices"][0]["text"] == body["prompt"]
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 21
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 0


def test_a_stream_ends_with_its_usage(served: Serving) -> None:
    body = {"prompt": "the", "max_tokens": 5, "n": 2, "seed": 1, "stream": True}
    *parts, last = served.complete(**body).events
    assert last == "[DONE]"
    assert all("usage" not in part and part["object"] == "text_completion" for part in parts)
    assert len({part["id"] for part in parts}) == 1
    *parts, usage, last = served.complete(**body, stream_options={"include_usage": True}).events
    assert all(part["usage"] is None for part in parts)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 10)


def test_a_request_without_a_seed_reports_the_one_that_was_drawn(served: Serving) -> None:
    first, second = (served.complete(prompt="the", max_tokens=20).json for _ in range(2))
    assert first["seed"] != second["seed"]
    again = served.complete(prompt="the", max_tokens=20, seed=first["seed"]).json
    assert again["choices"] == first["choices"]


WRONG: dict[str, tuple[Any, int, str | None, str]] = {
    "no JSON": (b"{", 400, None, "not JSON"),
    "NaN": (b'{"prompt": "a", "temperature": NaN}', 400, None, "NaN is not JSON"),
    "deep": (b'{"prompt": ' + b"[" * 100_000, 400, None, "not JSON"),
    "a list": ([1], 400, None, "must be a JSON object"),
    "no prompt": ({}, 400, "prompt", "is missing"),
    "type": ({"prompt": 5}, 400, "prompt", "must be a string or a list"),
    "bool": ({"prompt": "a", "n": True}, 400, "n", "must be an integer"),
    "float": ({"prompt": "a", "top_k": 1.5}, 400, "top_k", "must be an integer"),
    "unknown": ({"prompt": "a", "max_token": 5}, 400, "max_token", "Did you mean max_tokens?"),
    "model": ({"prompt": "a", "model": "gpt-5"}, 404, "model", f"this server has '{ID}'"),
    "suffix": ({"prompt": "a", "suffix": "b"}, 400, "suffix", "not supported"),
    "best_of": ({"prompt": "a", "best_of": 3}, 400, "best_of", "not supported"),
    "characters": ({"prompt": "a€"}, 400, "prompt", "'€' not in the vocabulary"),
    "surrogate": (b'{"prompt": "\\ud800"}', 400, "prompt", "surrogate"),
    "ids": ({"prompt": [1, 10_000]}, 400, "prompt", "token ids must be integers from 0"),
    "mixed": ({"prompt": ["a", 1]}, 400, "prompt", "must be a string"),
    "empty": ({"prompt": []}, 400, "prompt", "from 1 to 128 prompts, not 0"),
    "long": ({"prompt": "a " * 200}, 400, "prompt", "400 tokens, more than this server's 300"),
    "max_tokens": ({"prompt": "a", "max_tokens": 5001}, 400, "max_tokens", "from 1 to 5000"),
    "no tokens": ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens", "from 1 to 5000"),
    "n": ({"prompt": ["a"] * 64, "n": 3}, 400, "n", "more than 128 texts"),
    "logprobs": ({"prompt": "a", "logprobs": 21}, 400, "logprobs", "from 0 to 20"),
    "seed": ({"prompt": "a", "seed": -1}, 400, "seed", "from 0 to"),
    "temperature": ({"prompt": "a", "temperature": -1}, 400, "temperature", "0 (greedy)"),
    "huge": ({"prompt": "a", "temperature": 10**400}, 400, "temperature", "too large"),
    "top_p": ({"prompt": "a", "top_p": 2}, 400, "top_p", "at most 1"),
    "stop": ({"prompt": "a", "stop": [""]}, 400, "stop", "name a string"),
    "stops": ({"prompt": "a", "stop": ["a"] * 17}, 400, "stop", "16 strings at most"),
    "long stop": ({"prompt": "a", "stop": "a" * 257}, 400, "stop", "256 characters at most"),
    "stream_options": ({"prompt": "a", "stream_options": {}}, 400, "stream_options", "stream true"),
    "unknown pieces": ({"prompt": "a", "unknown": "x"}, 400, "unknown", "error or skip"),
    "body": (b" " * (app.MOST_BYTES + 1), 413, None, "larger than"),
}  # fmt: skip


@pytest.mark.parametrize("which", WRONG)
def test_errors_have_the_shape_of_openais(served: Serving, which: str) -> None:
    body, status, param, message = WRONG[which]
    answer = served.ask("/v1/completions", body)
    assert answer.status == status, answer.text
    error = answer.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert message in error["message"]
    assert "--" not in error["message"]


def test_a_large_request_is_parsed_like_a_small_one(served: Serving) -> None:
    """By another thread, so that others need not wait."""
    small = {"prompt": "the", "max_tokens": 9, "seed": 3}
    body = json.dumps(small).encode() + b" " * app.LARGE_BODY
    answer = served.ask("/v1/completions", body)
    assert answer.json["choices"] == served.complete(**small).json["choices"]
    wrong = json.dumps({"prompt": "a", "top_p": 2}).encode() + b" " * app.LARGE_BODY
    assert served.ask("/v1/completions", wrong).json["error"]["param"] == "top_p"


def test_other_paths_methods_and_types(served: Serving) -> None:
    assert served.ask("/v1/nothing").status == 404
    assert served.ask("/v1/completions").status == 405
    typed = {"Content-Type": "text/plain"}
    refused = served.ask("/v1/completions", b'{"prompt": "a"}', headers=typed)
    assert refused.status == 415
    assert "Content-Type: application/json" in refused.json["error"]["message"]
    (model,) = served.ask("/v1/models").json["data"]
    assert model["id"] == ID
    assert served.ask(f"/v1/models/{ID}").json == model
    assert served.ask("/v1/models/gpt-5").json["error"]["code"] == "model_not_found"
    idle = {"status": "ok", "requests": 0, "texts": 0}
    wait_for(lambda: served.ask("/health").json == idle)


@contextlib.contextmanager
def held(served: Serving, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Job]]:
    """Keep jobs from the engine, so that their requests last until the block ends."""
    jobs: list[Job] = []
    submit = served.server.engine.submit
    with monkeypatch.context() as patch:
        patch.setattr(served.server.engine, "submit", jobs.extend)
        yield jobs
    submit(jobs)


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_more_requests_than_allowed_are_refused(
    served: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(served.server, "max_requests", 2)
    with ThreadPoolExecutor(2) as pool:
        with held(served, monkeypatch) as jobs:
            running = [pool.submit(served.complete, prompt="a", n=3) for _ in range(2)]
            wait_for(lambda: len(jobs) == 6)
            refused = served.complete(prompt="a")
            assert served.ask("/health").json["requests"] == 2
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert refused.json["error"]["type"] == "rate_limit_error"
        assert [each.result().status for each in running] == [200, 200]
    assert served.complete(prompt="a").status == 200


@pytest.mark.parametrize("streams", [False, True])
def test_texts_end_when_their_client_leaves(
    served: Serving, streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Job] = []
    submit = served.server.engine.submit

    def spy(submitted: Any) -> None:
        jobs.extend(submitted)
        submit(submitted)

    monkeypatch.setattr(served.server.engine, "submit", spy)
    connection = served.connect()
    body = {"prompt": "the", "max_tokens": 5000, "n": 4, "stream": streams}
    connection.request("POST", "/v1/completions", json.dumps(body), JSON)
    if streams:
        assert connection.getresponse().readline().startswith(b"data: ")
    else:
        wait_for(lambda: any(job.n_left < 5000 for job in jobs))
    connection.sock.shutdown(2) if connection.sock else connection.close()
    connection.close()
    wait_for(lambda: served.server.n_requests == 0)
    wait_for(lambda: served.server.engine.n_texts == 0)
    assert len(jobs) == 4
    assert all(job.is_cancelled and 0 < job.n_left < 5000 for job in jobs)


def test_the_client_of_openai(served: Serving, request: pytest.FixtureRequest) -> None:
    openai = pytest.importorskip("openai", reason="needs openai, which is in gptlit[dev]")
    client = openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)
    request.addfinalizer(client.close)
    assert [model.id for model in client.models.list()] == [ID]
    about: Any = {"model": ID, "prompt": "the k", "max_tokens": 12, "seed": 4, "n": 2}
    whole = client.completions.create(**about, logprobs=2, extra_body={"top_k": 9})
    assert whole.usage.completion_tokens == 24
    streamed = {0: "", 1: ""}
    for part in client.completions.create(**about, stream=True, extra_body={"top_k": 9}):
        for choice in part.choices:
            streamed[choice.index] += choice.text
    assert [choice.text for choice in whole.choices] == list(streamed.values())
    assert len(whole.choices[0].logprobs.tokens) == 12
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(**about | {"model": "gpt-5"})
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="top_p") as wrong:
        client.completions.create(**about, top_p=4)
    assert wrong.value.param == "top_p"


def test_curl(served: Serving) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("needs curl")
    words = [curl, "-sS", "--noproxy", "*", "-N", f"{served.url}/v1/completions"]
    body = {"prompt": "the", "max_tokens": 9, "seed": 2, "stream": True}
    words += ["-H", "Content-Type: application/json", "-d", json.dumps(body)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    lines = [line for line in done.stdout.splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    texts = (json.loads(line.removeprefix("data: "))["choices"][0]["text"] for line in lines[:-1])
    whole = served.complete(**body | {"stream": False}).json["choices"][0]["text"]
    assert "".join(texts) == whole
