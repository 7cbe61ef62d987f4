"""Records: .jsonl, .json, .csv and .tsv."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptlit.corpora import rows, unpacking
from gptlit.corpora.reading import Documents, TextOptions
from gptlit.messages import UsageError
from tests.conftest import Result


def read(path: Path, **options: str) -> list[str]:
    found = Documents([path], "--data.path", TextOptions(**options))  # type: ignore[arg-type]  # strings
    return ["".join(blocks) for blocks in found]


def written(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


RECORDS = [
    {"text": "the king\r\nand thy love", "id": 1},
    {"id": [{"text": "no"}], "text": 'quotes " and \\ and ]}, é 😀'},
    {"text": ""},
]
TEXTS = ["the king\nand thy love", 'quotes " and \\ and ]}, é 😀', ""]


@pytest.mark.parametrize("block", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2, ensure_ascii=False),
        "\n".join(map(json.dumps, RECORDS)),
        " ".join(json.dumps(record, indent=1) for record in RECORDS),
    ],
    ids=["array", "indented", "lines", "values"],
)
def test_json_in_each_of_its_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, block: int
) -> None:
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    assert read(written(tmp_path, "x.json", content)) == TEXTS


def test_records_in_arrays_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of a record is limited, the number of records is not."""
    monkeypatch.setattr(rows, "RECORD_CHARS", 200)
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 64)
    many = [{"text": "a" * (n % 90)} for n in range(400)]
    assert len(read(written(tmp_path, "x.json", json.dumps(many)))) == 400
    many[300] = {"text": "b" * 400}
    with pytest.raises(UsageError, match="x.json: record 301 has more than 200 characters"):
        read(written(tmp_path, "x.json", json.dumps(many)))


@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=4))
def test_round_trip_of_json(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    content = json.dumps([{"text": text} for text in texts])
    found = read(written(tmp_path_factory.mktemp("json"), "x.json", content))
    clean = [text.replace("\0", "").replace("\r\n", "\n").replace("\r", "\n") for text in texts]
    assert found == clean


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '[{"text": "a"}, {"body": "b", "id": 1}]',
            "record 2 .*'text' .its fields are 'body', 'id'",
        ),
        (
            '[{"text": "a"}, "b"]',
            "record 2 is not a JSON object with a text in its field 'text'; jsonl_field",
        ),
        ('[{"text": 3}]', "record 1 is not a JSON object with a text"),
        ('{"data": [{"text": "a"}]}', "record 1 .*its fields are 'data'"),
        ('[{"text": "a"} {"text": "b"}]', "record 1 is not followed by a comma"),
        ('[{"text": "a"},', "record 2 is not JSON .Expecting value"),
        ('[{"text": "a"}', "ends within its array, after record 1; look for a complete copy"),
        ('[{"text": "a"}] x', "something follows its array"),
        ('[{"text": "a}]', "record 1 is not JSON .Unterminated string"),
        ('[{"text" "a"}, ' + '{"text": "b"}, ' * 20 + "]", "record 1 is not JSON .Expecting ':'"),
        ('[{"text": "\\ud800"}]', "record 1 has a lone surrogate"),
        ("[" * 50_000, "record 1 is not a JSON object"),
        ('[{"text": "a", "n": ' + "9" * 5_000 + "}]", "record 1 can't be read .Exceeds the limit"),
        ("text", "record 1 is not JSON"),
    ],
)
def test_invalid_json(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"--data.path .*x.json: .*{message}"):
        read(written(tmp_path, "x.json", content))


TABLE = 'id,text,note\n1,"the king\nand ""thy"" love, he said",x\n\n2, speak ,y\n3,é 😀,\n'
COLUMN = ['the king\nand "thy" love, he said', " speak ", "é 😀"]


@pytest.mark.parametrize("block", [1, 5, 1 << 20])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["x.csv", "x.tsv"])
def test_a_column_of_a_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ends: str, block: int
) -> None:
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", block)
    content = TABLE.replace("\n", ends)
    if name == "x.tsv":
        content = 'id\ttext\tnote\n1\t"the king\nand ""thy"" love, he said"\tx\n\n2\t speak \ty\n'
        content = (content + "3\té 😀\t\n").replace("\n", ends)
    assert read(written(tmp_path, name, "\ufeff" + content)) == COLUMN
    assert read(written(tmp_path, name, content), column="id") == ["1", "2", "3"]


def test_the_only_column_and_other_separators(tmp_path: Path) -> None:
    assert read(written(tmp_path, "x.csv", "speech\nthe king\n")) == ["the king"]
    path = written(tmp_path, "x.csv", 'id;"a,b,c,d";text\n1;2;the king, he said\n')
    found = Documents([path], "--data.path", TextOptions())
    assert ["".join(blocks) for blocks in found] == ["the king, he said"]
    assert found.notes == [f"{path}: columns are separated by ';'"]
    assert read(written(tmp_path, "x.csv", "id|text\n1|the king\n")) == ["the king"]


def test_blank_lines_before_the_names_of_columns_are_skipped(tmp_path: Path) -> None:
    path = written(tmp_path, "x.csv", "\n \n\nid;text\n1;the king\n")
    assert read(path) == ["the king"]
    path = written(tmp_path, "x.csv", "\n\nid,text\n1\n")
    with pytest.raises(UsageError, match="line 4 has 1 column, and the first row has 2"):
        read(path)
    for blank in ("", "\n\n"):
        assert read(written(tmp_path, "x.csv", blank)) == []


@pytest.mark.parametrize(
    ("content", "column", "message"),
    [
        ("id,body\n1,a\n", None, "no column 'text', but 'id', 'body'; column names the one"),
        ("id,body\n1,a\n", "bodi", "no column 'bodi', but 'id', 'body'.*Did you mean body?"),
        ("id,text\n1,a\n2\n", None, "line 3 has 1 column, and the first row has 2"),
        ('id,text\n1,"a\n', None, "line 3 is not a row of a table"),
        ('id,text\n1,"a"b\n', None, "line 2 is not a row of a table"),
    ],
)
def test_invalid_tables(tmp_path: Path, content: str, column: str | None, message: str) -> None:
    options = {} if column is None else {"column": column}
    with pytest.raises(UsageError, match=f"--data.path .*x.csv: .*{message}"):
        read(written(tmp_path, "x.csv", content), **options)


def test_each_row_is_a_document(gptlit: Callable[..., Result], tmp_path: Path) -> None:
    content = "id,speech,text\n" + "".join(f"{n},the king {n},no\n" for n in range(300))
    written(tmp_path, "x.csv", content)
    found = gptlit("data", "x.csv", "--column=speech", "--eos=true")
    assert found.code == 0
    assert re.search(r"documents +300\n", found.out)
    found = gptlit("data", "x.csv", "--column=speach")
    assert "has no column 'speach', but 'id', 'speech', 'text'; --column names the one" in found.err
