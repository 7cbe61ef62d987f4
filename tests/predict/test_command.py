"""`gptlit predict` on the command line."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import gptlit as package
from gptlit.__main__ import main
from gptlit.generation import int8
from gptlit.generation.text_stream import GeneratedText
from gptlit.messages import naming_flags
from gptlit.predict import command, prompts
from gptlit.predict.devices import in_order
from gptlit.predict.options import parse, parser
from gptlit.tokenizers.base import UNKNOWN_WORD
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.words import WordTokenizer
from tests.conftest import Result, Run, after_introduction, launched
from tests.generation.by_keywords import search

Call = Callable[..., Result]


def predict(gptlit: Call, run: Run, *options: Any) -> Result:
    path = run.folder / "checkpoints" / "last.ckpt"
    return gptlit("predict", "--ckpt_path", path, "--max_new_tokens", 15, *options)


def test_predict_prints_the_text_alone(gptlit: Call, run: Run) -> None:
    result = predict(gptlit, run, "--prompt", "ROMEO:")
    model, tokenizer = package.load(run.folder / "checkpoints" / "last.ckpt")
    text = package.generate(model, tokenizer, "ROMEO:", max_new_tokens=15)
    assert result.out == (text if text.endswith("\n") else text + "\n")
    losses = r"val/loss \d\.\d{4}, val/gap [+-]\d\.\d{4}"
    path = re.escape(str(run.folder / "checkpoints" / "last.ckpt"))
    rest = f"text: {re.escape(run.text.name)}, device: cpu, weights: float32"
    which = rf"gptlit: model {path}: step 40, {losses}, {rest}\n"
    assert re.fullmatch(which, result.err)
    assert result.code == 0


def test_novelty_marks_and_counts_copies(gptlit: Call, run: Run) -> None:
    """A forced text is a copy; the rest of the training text is not in the validation split."""
    text = run.text.read_text()
    options = ["--novelty", "--prompt", "!!!!", "--force", text[200:270], "--max_new_tokens", 70]
    result = predict(gptlit, run, *options)
    assert result.code == 0, result.err
    assert result.out == f"!!!![[{text[200:270]}]]\n"
    novelty = 1 - (70 - 31) / (74 - 31)
    assert f"text 1: novelty {novelty:.3f}, longest copy 70 characters" in result.err
    row = json.loads(predict(gptlit, run, *options, "--format=jsonl").out)
    assert row["novelty"] == pytest.approx(novelty)
    assert (row["longest_copy"], row["copied"]) == (70, [[4, 74]])
    assert (
        "--novelty: does not apply to --explain" in predict(gptlit, run, *options, "--explain").err
    )


def test_samples_are_those_of_their_seeds(gptlit: Call, run: Run) -> None:
    alone = [predict(gptlit, run, "--seed", seed).out for seed in (5, 6, 7)]
    batch = predict(gptlit, run, "--seed", 5, "--num_samples", 3)
    assert batch.out == "---\n".join(alone)


def test_the_trainer_writes_the_same(gptlit: Call, run: Run) -> None:
    options = ["--num_samples", 3, "--prompt", "the", "--top_k", 5, "--temperature", 1.5]
    plain = predict(gptlit, run, *options)
    through = predict(gptlit, run, *options, "--trainer.accelerator", "cpu")
    assert through.code == 0, through.err
    assert through.out == plain.out


def test_two_devices_write_the_same(gptlit: Call, run: Run, tmp_path: Path) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    command = ["predict", f"--ckpt_path={path}", "--max_new_tokens=15", "--num_samples=3"]
    devices = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    both = launched(tmp_path, *command, *devices, "--prompt_file=-", stdin="the king\n")
    assert both.code == 0, both.err
    assert both.out == gptlit(*command, "--prompt=the king").out


def test_greedy_is_temperature_zero_is_top_1(gptlit: Call, run: Run) -> None:
    ways = [["--greedy"], ["--greedy=true"], ["--temperature", 0], ["--top_k", 1]]
    assert len({predict(gptlit, run, *way, "--prompt", "the").out for way in ways}) == 1


def test_an_empty_prompt_and_an_over_long_one(gptlit: Call, run: Run) -> None:
    assert len(predict(gptlit, run).out.rstrip("\n")) <= 15
    result = predict(gptlit, run, "--prompt", "the king and")
    assert "warning: --prompt has 12 tokens; the model sees its last 8 at once" in result.err
    assert result.out.startswith("the king and")


def test_unknown_characters_are_refused_or_dropped(gptlit: Call, run: Run) -> None:
    result = predict(gptlit, run, "--prompt", "the ß")
    assert result.code == 2
    assert result.out == ""
    assert "--prompt: 'ß' not in the vocabulary" in result.err
    skipped = predict(gptlit, run, "--prompt", "the ß", "--unknown", "skip")
    assert "warning: --prompt: dropped 'ß'" in skipped.err
    assert skipped.out == predict(gptlit, run, "--prompt", "the ").out


def test_the_token_for_unknown_words_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    for tokenizer, prompt, pieces in (
        (WordTokenizer(["the", "king"], [UNKNOWN_WORD]), "the mad king, mad", "'mad', 'king,'"),
        (CharTokenizer("eht", [UNKNOWN_WORD]), "the ßß", "' ', 'ß'"),
    ):
        with naming_flags():
            prompts.warn_dropped("the", "error", tokenizer)
            assert capsys.readouterr().err == ""
            prompts.warn_dropped(prompt, "error", tokenizer)
        wanted = f"gptlit: warning: --prompt: the model reads {UNKNOWN_WORD} for {pieces}\n"
        assert capsys.readouterr().err == wanted


@pytest.mark.parametrize("none", ["none", "None", "null"])
def test_none_is_null(none: str) -> None:
    known = parser()
    parsed = known.parse_args([f"--top_k={none}", "--max_new_tokens", none, "--prompt", none])
    assert (parsed.top_k, parsed.max_new_tokens, parsed.prompt) == (None, None, [none])


def test_a_message_names_what_works_instead_of_a_number(gptlit: Call) -> None:
    message = gptlit("predict", "--max_new_tokens=all").err
    assert message == "gptlit: error: --max_new_tokens all: expected int or null\n"


def test_predict_streams_to_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = []

    class Terminal:
        text = ""

        def isatty(self) -> bool:
            return True

        def write(self, text: str) -> None:
            self.text += text

        def flush(self) -> None:
            flushes.append(len(self.text))

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    path = run.folder / "checkpoints" / "last.ckpt"
    assert main(["predict", "--ckpt_path", str(path), "--max_new_tokens", "9"]) == 0
    assert flushes[:9] == list(range(9))


def test_several_texts_stream_to_a_terminal_one_after_the_other(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--prompt=the", "--prompt=king", "--num_samples=2"]
    wanted = predict(gptlit, run, *options).out
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(command, "write_jobs", None)
    assert predict(gptlit, run, *options).out == wanted
    refused = predict(gptlit, run, "--prompt=the", "--prompt=ß")
    assert (refused.code, refused.out) == (2, "")


def test_a_closed_pipe_is_no_error(run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    command = (
        f"{sys.executable} -m gptlit predict --ckpt_path {path} --max_new_tokens 9000 | head -c1"
    )
    done = subprocess.run(
        ["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True, timeout=55
    )
    assert after_introduction(done.stderr.decode()) == ""
    assert done.returncode == 141


def test_several_prompts_are_written_as_if_alone(gptlit: Call, run: Run) -> None:
    together = predict(gptlit, run, "--prompt=the", "--prompt=king and", "--num_samples=2")
    alone = [
        predict(gptlit, run, f"--prompt={prompt}", f"--seed={seed}").out
        for prompt in ("the", "king and")
        for seed in (1337, 1338)
    ]
    assert together.out == "---\n".join(alone)


def test_prompts_from_a_file_or_standard_input(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("prompts.txt").write_text("the\nking\n", encoding="utf-8")
    lines = predict(gptlit, run, "--prompt_file=prompts.txt", "--lines")
    assert lines.out == predict(gptlit, run, "--prompt=the", "--prompt=king").out
    whole = predict(gptlit, run, "--prompt_file=prompts.txt")
    assert whole.out == predict(gptlit, run, "--prompt", "the\nking").out
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfthe\r\nking\n")))
    assert predict(gptlit, run, "--prompt_file=-").out == whole.out
    for options, message in (
        (["--prompt_file=nowhere.txt"], "--prompt_file nowhere.txt: No such file"),
        (["--lines"], "--lines: needs --prompt_file"),
        (["--max_new_tokens=null", "--num_samples=2"], "--max_new_tokens null"),
        (["--max_new_tokens=null", "--prompt=the", "--prompt=king"], "--max_new_tokens null"),
        (["--prompt_file=prompts.txt", "--lines", "--max_new_tokens=null"], "--max_new_tokens nu"),
    ):
        refused = predict(gptlit, run, *options)
        assert refused.code == 2
        assert message in refused.err


@pytest.mark.parametrize("name", ["prompt", "stop", "ban", "force"])
def test_invalid_bytes_in_arguments(gptlit: Call, run: Run, name: str) -> None:
    refused = predict(gptlit, run, f"--{name}", os.fsdecode(b"the\xff"))
    message = f"gptlit: error: --{name} 'the\\udcff': not UTF-8 text\n"
    assert (refused.code, refused.out, refused.err) == (2, "", message)


def test_invalid_bytes_of_standard_input(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    # in the C locale Python's standard input accepts any byte
    stdin = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8", "surrogateescape")
    monkeypatch.setattr(sys, "stdin", stdin)
    refused = predict(gptlit, run, "--prompt_file=-")
    message = "gptlit: error: --prompt_file -: not UTF-8 text\n"
    assert (refused.code, refused.out, refused.err) == (2, "", message)


def test_jsonl_has_each_tokens_probability(gptlit: Call, run: Run) -> None:
    options = ["--prompt=the", "--num_samples=2", "--temperature=0.5", "--top_k=3"]
    lines = predict(gptlit, run, *options, "--format=jsonl").out.splitlines()
    rows = [json.loads(line) for line in lines]
    texts = predict(gptlit, run, *options).out
    assert "---\n".join(row["prompt"] + row["text"] + "\n" for row in rows) == texts
    model, tokenizer = package.load(run.folder / "checkpoints" / "last.ckpt")
    for row, seed in zip(rows, (1337, 1338), strict=True):
        assert row["seed"] == seed
        assert row["checkpoint"] == str(run.folder / "checkpoints" / "last.ckpt")
        assert tokenizer.decode(row["ids"]) == row["text"]
        # by the model itself, without temperature and top_k, within the context
        ids = torch.tensor([[*tokenizer.encode("the").tolist(), *row["ids"]]])[:, :8]
        with torch.no_grad():
            logs = model(ids)[0].double().log_softmax(-1)
        for at in range(3, 8):
            assert row["logprobs"][at - 3] == pytest.approx(
                logs[at - 1, ids[0, at]].item(), abs=1e-5
            )
            wanted = -(logs[at - 1].exp() * logs[at - 1]).sum().item()
            assert row["entropies"][at - 3] == pytest.approx(wanted, abs=1e-5)


def test_a_file_has_a_header_with_the_settings(gptlit: Call, run: Run) -> None:
    result = predict(gptlit, run, "--prompt=the", "--output_file=out.txt", "--top_k=4")
    assert (result.code, result.out) == (0, "")
    header, text = Path("out.txt").read_text(encoding="utf-8").split("\n\n", 1)
    assert text == predict(gptlit, run, "--prompt=the", "--top_k=4").out
    rows = dict(line.removeprefix("# ").split(": ", 1) for line in header.splitlines())
    assert rows["checkpoint"].endswith("last.ckpt'")
    for name, value in (
        *(("seed", "1337"), ("num_samples", "1"), ("top_k", "4"), ("temperature", "0.8")),
        *(("prompt", "'the'"), ("weights", "'float32'"), ("unknown", "'error'")),
    ):
        assert rows[name] == value
    options = ["--num_beams=3", "--num_samples=2", "--output_file=out.txt", "--weights=int8"]
    assert predict(gptlit, run, *options).code == 0
    searched = Path("out.txt").read_text(encoding="utf-8").split("\n\n", 1)[0]
    assert "# num_samples: 2\n" in searched
    assert "# weights: 'int8'\n" in searched
    assert "seed" not in searched


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (".", "is a folder; name a file"),
        ("nowhere/out.txt", "there is no folder nowhere; make it first"),
        (os.devnull, "is not a file; without --output_file texts go to standard output"),
    ],
)
def test_a_file_that_can_not_be_written_is_refused_first(
    gptlit: Call, tmp_path: Path, path: str, message: str
) -> None:
    refused = gptlit("predict", "--ckpt_path=nowhere.ckpt", f"--output_file={path}")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"gptlit: error: --output_file {path}: {message}\n"
    assert list(tmp_path.iterdir()) == []


def test_texts_written_until_ctrl_c_are_kept_next_to_the_file(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict(gptlit, run, "--prompt=the", "--prompt=king").out
    write, calls = command.write_jobs, []

    def stops(*arguments: Any, **options: Any) -> list[list[GeneratedText]]:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(*arguments, **options)

    monkeypatch.setattr(command, "write_jobs", stops)
    monkeypatch.setattr(command, "SAMPLES_AT_ONCE", 1)
    Path("out.txt").write_text("from before", encoding="utf-8")
    prompts = ["--prompt=the", "--prompt=king", "--prompt=love"]
    stopped = predict(gptlit, run, *prompts, "--output_file=out.txt")
    message = "gptlit: out.txt.partial has the texts written so far\n"
    message += "gptlit: stopped\n"
    assert (stopped.code, stopped.out, after_introduction(stopped.err)) == (130, "", message)
    assert Path("out.txt.partial").read_text(encoding="utf-8").split("\n\n", 1)[1] == whole
    assert Path("out.txt").read_text(encoding="utf-8") == "from before"


def test_without_echo_the_prompt_is_left_out(gptlit: Call, run: Run) -> None:
    whole = predict(gptlit, run, "--prompt=the").out
    assert "the" + predict(gptlit, run, "--prompt=the", "--echo=false").out == whole
    two = predict(gptlit, run, "--prompt=the", "--num_samples=2").out
    continued = predict(gptlit, run, "--prompt=the", "--num_samples=2", "--echo=false").out
    assert "the" + continued.replace("---\n", "---\nthe") == two


def test_stop_strings_and_bans_by_flag(gptlit: Call, run: Run) -> None:
    free = predict(gptlit, run, "--prompt=the", "--max_new_tokens=60").out
    stop = free[20:23]
    stops = ["--stop", stop, "--stop=Q"]
    stopped = predict(gptlit, run, "--prompt=the", "--max_new_tokens=60", *stops)
    assert stopped.out.rstrip("\n") == ("the" + free[3:].split(stop)[0]).rstrip("\n")
    banned = predict(gptlit, run, "--prompt=", "--max_new_tokens=200", "--ban=e", "--ban= ").out
    assert not set("e ") & set(banned)


def test_escapes_in_strings_that_texts_are_compared_with() -> None:
    words = [r"--stop=a\nb", "--stop", r"\t\\n", r"--force=\n", r"--prompt=\n", "--ckpt_path=x"]
    parsed, _ = parse(parser(), words)
    assert parsed.stop == ["a\nb", "\t\\n"]
    assert (parsed.ban, parsed.force, parsed.prompt) == (None, "\n", [r"\n"])


def test_a_beam_search_by_flag(gptlit: Call, run: Run) -> None:
    """Prints the best texts like samples, and their scores on stderr or in .jsonl."""
    options = ["--prompt=the", "--num_beams=4", "--num_samples=3", "--length_penalty=0.5"]
    model, tokenizer = package.load(run.folder / "checkpoints" / "last.ckpt")
    settings = {"num_beams": 4, "num_samples": 3, "length_penalty": 0.5, "max_new_tokens": 15}
    found = search(model, tokenizer, "the", scored=True, **settings)
    result = predict(gptlit, run, *options)
    assert result.out == "---\n".join(text.whole + "\n" for text in found)
    scores = ", ".join(f"{text.score:.4f}" for text in found)
    assert after_introduction(result.err) == f"gptlit: scores, the best first: {scores}\n"
    result = predict(gptlit, run, *options, "--format=jsonl")
    rows = [json.loads(line) for line in result.out.splitlines()]
    checkpoint = {"checkpoint": str(run.folder / "checkpoints" / "last.ckpt")}
    assert rows == [checkpoint | dataclasses.asdict(text) for text in found]
    assert "seed" not in rows[0]
    assert after_introduction(result.err) == ""


def test_one_beam_is_greedy_by_flag(gptlit: Call, run: Run) -> None:
    ways = [["--num_beams=1"], ["--greedy"], ["--num_beams=1", "--greedy", "--seed=5"]]
    assert len({predict(gptlit, run, *way, "--prompt=the").out for way in ways}) == 1


def test_a_forced_beginning_by_flag(gptlit: Call, run: Run) -> None:
    for more in ([], ["--num_beams=3"], ["--greedy"]):
        options = ["--prompt=the", "--force=king", *more]
        assert predict(gptlit, run, *options).out.startswith("theking")
        assert predict(gptlit, run, *options, "--echo=false").out.startswith("king")
    refused = predict(gptlit, run, "--prompt=the", "--force=king", "--ban=g")
    assert (refused.code, refused.out) == (2, "")
    assert "--force 'king': contains --ban 'g'" in refused.err


@pytest.mark.parametrize("options", [["--num_beams=3", "--num_samples=2"], ["--top_k=3"]])
def test_the_trainer_searches_and_forces_the_same(
    gptlit: Call, run: Run, options: list[str]
) -> None:
    options = [*options, "--prompt=the", "--prompt=king and", "--prompt=love", "--force=ing"]
    plain = predict(gptlit, run, *options)
    through = predict(gptlit, run, *options, "--trainer.accelerator", "cpu")
    assert through.code == 0, through.err
    assert through.out == plain.out


def test_texts_of_jobs_come_in_the_order_of_the_jobs() -> None:
    """For any number of ranks, and of texts in a job."""
    texts = [[GeneratedText("p", f"{job}.{at}") for at in range(job % 3)] for job in range(7)]
    for n_ranks in (1, 2, 3, 9):
        by_rank = [texts[rank::n_ranks] for rank in range(n_ranks)]
        assert in_order(by_rank) == texts


def test_int8_weights_give_nearly_the_same_log_probabilities(gptlit: Call, run: Run) -> None:
    """The log probabilities of the same forced text differ little."""
    found = []
    for weights in ("float32", "int8"):
        options = ["--force", "king", "--max_new_tokens", 4, "--format", "jsonl"]
        result = predict(gptlit, run, *options, "--weights", weights)
        found.append(json.loads(result.out)["logprobs"])
    assert found[0] != found[1]
    assert found[1] == pytest.approx(found[0], abs=0.05)


def test_a_sweep_over_beams_has_the_best_of_each(gptlit: Call, run: Run) -> None:
    result = predict(gptlit, run, "--sweep", "num_beams=1,4", "--format", "jsonl")
    rows = [json.loads(line) for line in result.out.splitlines()]
    model, tokenizer = package.load(run.folder / "checkpoints" / "last.ckpt")
    best = [search(model, tokenizer, num_beams=n, max_new_tokens=15)[0] for n in (1, 4)]
    assert [row["text"] for row in rows] == [each.text for each in best]
    assert [row["num_beams"] for row in rows] == [1, 4]


def test_a_sweep_over_beams_has_several_texts_of_each(gptlit: Call, run: Run) -> None:
    options = ["--sweep", "num_beams=none,2,4", "--num_samples=2"]
    result = predict(gptlit, run, *options, "--format=jsonl")
    rows = [json.loads(line) for line in result.out.splitlines()]
    model, tokenizer = package.load(run.folder / "checkpoints" / "last.ckpt")
    best = [
        each.text
        for n in (2, 4)
        for each in search(model, tokenizer, num_beams=n, num_samples=2, max_new_tokens=15)
    ]
    assert [row["text"] for row in rows[2:]] == best
    assert [row.get("seed") for row in rows] == [1337, 1338, None, None, None, None]
    assert ["temperature" in row for row in rows] == [True] * 2 + [False] * 4
    searched = predict(gptlit, run, "--sweep", "num_beams=2,4", "--num_samples=2").out
    assert "temperature" not in searched
    assert "seed" not in searched
    assert "num_samples 2" in " ".join(searched.split())
    refused = predict(gptlit, run, "--sweep", "num_beams=1,4", "--num_samples=2")
    assert "error: --num_samples 2: must be from 1 to --num_beams" in refused.err
    penalties = predict(gptlit, run, "--num_beams=2", "--sweep", "length_penalty=0,1")
    assert penalties.code == 0, penalties.err


def test_auto_takes_8_bit_weights_where_they_pay(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line and the header say which; tables and --explain have float32 weights."""
    small = predict(gptlit, run)
    monkeypatch.setattr(int8, "pays", lambda model: True)
    chosen, given = predict(gptlit, run), predict(gptlit, run, "--weights=int8")
    assert chosen.out == given.out
    line = chosen.err.splitlines()[0]
    assert line.endswith(", weights: int8 (--weights float32 writes training's samples exactly)")
    exact = predict(gptlit, run, "--weights=float32")
    assert (exact.out, exact.err) == (small.out, small.err)
    assert predict(gptlit, run, "--output_file=out.txt").code == 0
    assert "# weights: 'int8'\n" in Path("out.txt").read_text(encoding="utf-8")
    for options in (["--explain", "--prompt=the king"], ["--sweep=top_k=3", "--format=jsonl"]):
        plain = predict(gptlit, run, *options, "--weights=float32")
        assert (predict(gptlit, run, *options).out, plain.code) == (plain.out, 0)
        rounded = predict(gptlit, run, *options, "--weights=int8")
        assert rounded.code == 0
        assert rounded.out != plain.out


def test_float32_weights_write_the_samples_of_training(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "pays", lambda model: True)
    samples = (run.folder / "samples.txt").read_text(encoding="utf-8").split("=== step 40")[1]
    options = ["--prompt", "", "--max_new_tokens", 12]
    assert predict(gptlit, run, *options, "--weights=float32").out in samples


def test_auto_is_float32_through_the_trainer(
    gptlit: Call, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8, "pays", lambda model: True)
    options = ["--trainer.accelerator=cpu", "--output_file=out.txt"]
    assert predict(gptlit, run, *options).code == 0
    assert "# weights: 'float32'\n" in Path("out.txt").read_text(encoding="utf-8")
    refused = predict(gptlit, run, "--trainer.accelerator=cpu", "--weights=int8")
    assert "--weights int8: needs one device" in refused.err
