"""Conversations and preferences as texts, and the records that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from gptlit.corpora import examples
from gptlit.corpora.reading import Documents, TextOptions
from gptlit.messages import UsageError


def texts(folder: Path, records: list[Any], kind: str, name: str = "a.jsonl") -> list[str]:
    lines = "\n".join(json.dumps(record) for record in records)
    (folder / name).write_text(lines if name == "a.jsonl" else json.dumps(records))
    documents = Documents([folder / name], "--data.path", TextOptions(format=kind))  # type: ignore[arg-type]
    return ["".join(blocks) for blocks in documents]


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def asked(question: str, answer: str) -> dict[str, str]:
    return {"question": question, "answer": answer}


def rated(prompt: str, chosen: str, rejected: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_each_answer_has_the_conversation_before_it(tmp_path: Path) -> None:
    said = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes?"), ("user", "1+1?"),
            ("assistant", "2")]  # fmt: skip
    record = {"messages": [{"role": role, "content": content} for role, content in said]}
    begin = "<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\n"
    expected = [
        begin,
        "Yes?\n<|end|>",
        f"{begin}Yes?\n<|end|>\n<|user|>\n1+1?\n<|assistant|>\n",
        "2\n<|end|>",
    ]
    assert texts(tmp_path, [record], "chat") == expected
    assert examples.asked(said[:-1]) == expected[2]


@pytest.mark.parametrize("fields", [("question", "answer"), ("prompt", "completion")])
def test_questions_and_answers(tmp_path: Path, fields: tuple[str, str]) -> None:
    records = [dict(zip(fields, each, strict=True)) for each in (("a?", "b\n"), ("c?\r\n", "d"))]
    expected = [
        "<|user|>\na?\n<|assistant|>\n", "b\n\n<|end|>", "<|user|>\nc?\n\n<|assistant|>\n",
        "d\n<|end|>",
    ]  # fmt: skip
    assert (
        texts(tmp_path, records, "chat") == texts(tmp_path, records, "chat", "a.json") == expected
    )


def test_pairs_repeat_the_prompt(tmp_path: Path) -> None:
    pair = {"prompt": "the ", "chosen": "king", "rejected": "<|end|>"}
    assert texts(tmp_path, [pair], "pairs") == ["the ", "king", "the ", "<|end|>"]


@pytest.mark.parametrize(
    ("kind", "record", "reason"),
    [
        ("chat", ["x"], "is not a JSON object"),
        ("chat", {"text": "x"}, "is not an object with messages, or with question and answer"),
        ("chat", {"messages": []}, "is not an object with messages"),
        ("chat", {"messages": [said("me", "x")]}, r"messages\[1\] has no role system"),
        ("chat", {"messages": [{"role": "user"}]}, r"messages\[1\].content is not a text"),
        ("chat", {"messages": [said("user", "x")]}, "ends without an answer"),
        ("chat", {"messages": [said("assistant", "x")]}, "begins with the assistant"),
        ("chat", asked("x", ""), "answer is not a text of one character"),
        ("chat", asked("a\n<|end|>\nb", "x"), "question has a line of the template"),
        ("chat", asked("a", "<|assistant|>"), "answer has a line of the template"),
        ("chat", asked("a", "\ud800"), "answer has a lone surrogate"),
        ("pairs", {"prompt": "x", "chosen": "y"}, "is not an object with prompt, chosen, rejec"),
        ("pairs", rated("x", "y", 3), "rejected is not a text"),
        ("pairs", rated("x", "y", "y"), "chosen and rejected are the same"),
    ],
)
def test_other_records_are_refused(tmp_path: Path, kind: str, record: Any, reason: str) -> None:
    good = {"question": "a", "answer": "b", "prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(UsageError, match=f"--data.path .*a.jsonl: line 2:? {reason}"):
        texts(tmp_path, [good, record], kind)
    with pytest.raises(UsageError, match=f"a.json: record 2:? {reason}"):
        texts(tmp_path, [good, record], kind, "a.json")


def test_other_files_and_cleaning_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    documents = Documents([tmp_path / "a.txt"], "--data.path", TextOptions(format="chat"))
    with pytest.raises(UsageError, match=r"format chat: is read from .jsonl and .json files, not"):
        list(documents)
