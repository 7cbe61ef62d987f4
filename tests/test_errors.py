"""Bad input: one line on stderr that names the option, exit code 2, no traceback."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptlit import predict
from tests.conftest import TINY, Result, Run

Call = Callable[..., Result]


def assert_one_line(result: Result, *told: str) -> None:
    assert result.code == 2
    lines = [line for line in result.err.splitlines() if not line.startswith("gptlit: going on")]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("gptlit: error: ")
    assert len(lines[0]) < 300
    for part in told:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("", ["no verb", "fit, predict, validate, test, data"]),
        ("--model.n_layer 3", ["no verb"]),
        ("fitt", ["fitt: unknown verb", "Did you mean fit?"]),
        ("fit --config tinny.yaml", ["--config tinny.yaml", "Did you mean tiny.yaml?"]),
        ("fit --config=nowhere.yaml", ["--config nowhere.yaml", "small.yaml"]),
        ("fit --model.n_embed 3", ["--model.n_embed", "Did you mean --model.n_embd?"]),
        ("fit --n_embd 3", ["--n_embd", "Did you mean --model.n_embd?"]),
        ("fit --model.n_embd wide", ["--model.n_embd wide: expected int"]),
        ("fit --model.n_embd", ["--model.n_embd", "expected one argument"]),
        ("fit --model.n_embd 130", ["--model.n_embd 130", "--model.n_head 4", "128 or 132"]),
        ("fit --model.lr 0", ["--model.lr 0"]),
        ("fit --model.vocab_size 3", ["--model.vocab_size: unknown option"]),
        ("fit --data.block_size 3", ["data.block_size", "model.block_size"]),
        ("fit --data.corpus shakespear", ["--data.corpus shakespear", "mean shakespeare?"]),
        (
            "fit --data.tokenizer chars",
            ["--data.tokenizer chars", "Did you mean char?"],
        ),
        ("fit --data.tokenizer word:x", ["--data.tokenizer word:x", "word:reversible"]),
        ("fit --data.tokenizer bpe:9 --data.path mid.txt", ["bpe:9", "at least 257"]),
        ("fit --data.tokenizer bpe:999 --data.path mid.txt", ["bpe:999", "a longer text"]),
        ("fit --data.tokenizer tiktoken:gpt9 --data.path mid.txt", ["tiktoken:gpt9", "mean gpt2?"]),
        ("fit --data.path nowhere.txt", ["--data.path nowhere.txt", "No such file"]),
        ("fit --data.path empty.txt", ["--data.path empty.txt", "empty"]),
        ("fit --data.path latin.txt", ["--data.path latin.txt", "not UTF-8", "offset 3"]),
        ("fit --data.path nothing", ["--data.path nothing", "a folder without .txt"]),
        ("fit --data.path short.txt", ["--model.block_size 64", "largest block that fits is 49"]),
        ("fit --data.path mid.txt --data.val_fraction 0", ["--data.batch_size 12", "lower"]),
        (
            "fit --data.path mid.txt --data.batch_size 1",
            ["--data.val_fraction: the val split has", "64"],
        ),
        ("fit --data.val_fraction 1.5 --data.path mid.txt", ["--data.val_fraction 1.5"]),
        ("fit --trainer.max_stepz 3", ["Did you mean --trainer.max_steps?"]),
        ("fit --snapshot_every -1", ["--snapshot_every -1"]),
        ("fit --samples.temperature -1", ["--samples.temperature -1"]),
        ("fit --ckpt_path last", ["--ckpt_path last", "gptlit fit"]),
        ("fit --ckpt_path nowhere.ckpt", ["--ckpt_path nowhere.ckpt: no such file"]),
        ("fit --ckpt_path short.txt", ["--ckpt_path short.txt", "not a checkpoint"]),
        ("fit --config broken.yaml", ["--config broken.yaml: not YAML"]),
        ("fit --config unknown.yaml", ["model.n_hed", "Did you mean model.n_head?"]),
        ("fit --config ckpt.yaml", ["ckpt_path last", "--ckpt_path"]),
        ("fit --data.path=", ["--data.path"]),
        ("fit --data.path mid.txt --trainer.accelerator abacus", ["--trainer", "abacus"]),
        ("fit --data.path mid.txt --trainer.devices 0", ["--trainer", "devices"]),
        ("fit --data.path mid.txt --trainer.strategy nope", ["--trainer", "nope"]),
        ("fit --data.path mid.txt --trainer.val_check_interval 0", ["val_check_interval 0"]),
        (
            "fit --data.path mid.txt --data.val_fraction 0 --data.batch_size 1 "
            "--trainer.max_steps 0",
            ["nothing to train"],
        ),
        ("fit --trainer.precision 7", ["--trainer.precision 7"]),
        ("fit loose", ["loose", "--name value"]),
        ("fit --data.cleaning.drop_lines [", ["--data.cleaning.drop_lines ["]),
        ("fit --data.cleaning.max_words 0", ["--data.cleaning.max_words 0", "1 or more"]),
        ("data mid.txt --cleaning.min_words 9", ["min_words", "leaves nothing"]),
        ("data nowhere.txt", ["nowhere.txt", "gptlit data list"]),
        ("data empty.txt", ["empty"]),
        ("data mid.txt --tokenizer [char,words]", ["words", "Did you mean word?"]),
        ("data mid.txt --val_fraction 2", ["val_fraction 2"]),
        ("validate", ["--ckpt_path best", "gptlit fit"]),
        ("test --ckpt_path short.txt", ["--ckpt_path short.txt"]),
        ("predict", ["--ckpt_path best", "gptlit fit"]),
        ("predict --ckpt_path best --trainer.devices 1", ["--ckpt_path best"]),
        ("predict --temprature 1", ["--temprature", "Did you mean --temperature?"]),
        ("predict --temperature -1", ["--temperature -1"]),
        ("predict --top_k 0", ["--top_k 0"]),
        ("predict --seed -1", ["--seed -1"]),
        ("predict --num_samples 0", ["--num_samples 0"]),
        ("predict --max_new_tokens many", ["--max_new_tokens many: expected int"]),
        ("predict --num_beams 0", ["--num_beams 0", "1 (greedy) or more"]),
        ("predict --num_beams 2 --num_samples 3", ["--num_samples 3", "--num_beams 2"]),
        ("predict --num_beams 2 --top_p 0.9", ["--top_p 0.9", "draws nothing", "--num_beams"]),
        ("predict --num_beams 2 --max_new_tokens null", ["--max_new_tokens null", "a number"]),
        ("predict --early_stopping never", ["--early_stopping never", "give --num_beams"]),
        ("predict --force abc --stop b", ["--force 'abc'", "--stop 'b'"]),
        ("predict --unknown ignore", ["--unknown ignore", "error, skip"]),
        ("predict --ckpt_path nothing", ["--ckpt_path nothing", "without checkpoints"]),
        ("predict --sweep temprature=1", ["--sweep temprature", "Did you mean temperature?"]),
        ("predict --sweep temperature=-1", ["--sweep temperature -1.0", "0.8 is usual"]),
        ("predict --sweep seed=-1", ["--sweep seed=-1", "0 or more"]),
        ("predict --sweep", ["--sweep", "expected at least one argument"]),
        ("predict --sweep top_k=5 --greedy --sweep temperature=1", ["--greedy", "temperature"]),
        ("predict --sweep seed=5 num_beams=2", ["--sweep seed", "no part in a beam search"]),
        ("predict --sweep seed=5 --num_samples 2", ["--num_samples 2", "--sweep seed"]),
        ("predict --sweep max_new_tokens=5,none", ["--max_new_tokens null", "need an end"]),
        ("predict --sweep top_k=5 --explain", ["--explain", "--sweep", "leave one out"]),
        ("predict --explain Romeo", ["--explain 'Romeo': expected true or false"]),
        ("predict --explain --interactive", ["--interactive", "--explain"]),
        ("predict --explain --ckpt_path nothing", ["--ckpt_path nothing", "takes one checkpoint"]),
        ("predict --explain --format markdown", ["--format markdown", "text, jsonl"]),
        ("predict --format markdown", ["--format markdown", "--sweep", "text, jsonl"]),
        ("predict --interactive --format jsonl", ["--format jsonl", "--interactive"]),
        ("predict --interactive --output_file o", ["--output_file", "--interactive"]),
        ("predict --interactive --prompt a", ["--prompt", "line by line"]),
        (
            "predict --sweep top_k=1 --format tensorboard --output_file o",
            ["--output_file o", "--format tensorboard"],
        ),
        ("predict --explain --trainer.devices 1", ["--explain: needs one device"]),
        ("predict --sweep top_k=1 --trainer.devices 1", ["--sweep: needs one device"]),
        ("predict --ckpt_path nothing --trainer.devices 1", ["--ckpt_path nothing", "one device"]),
    ],
)
def test_one_line(gptlit: Call, tmp_path: Path, arguments: str, told: list[str]) -> None:
    for name, content in {
        "empty.txt": b"",
        "latin.txt": b"caf\xe9",
        "short.txt": b"0123456789" * 10,
        "mid.txt": b"0123456789" * 20,
        "broken.yaml": b"model: [1",
        "unknown.yaml": b"model: {n_hed: 2}",
        "ckpt.yaml": b"ckpt_path: last",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "nothing").mkdir()
    before = sorted(tmp_path.iterdir())
    assert_one_line(gptlit(*arguments.split()), *told)
    left = {path.name for path in tmp_path.iterdir()} - {path.name for path in before}
    assert left <= {"data", "lightning_logs"}
    assert not list(tmp_path.glob("lightning_logs/*"))  # no run is left of what never began


def test_a_wrong_environment_variable(
    gptlit: Call, monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    monkeypatch.setenv("GPTLIT_FIT__MODEL__N_EMBD", "wide")
    assert_one_line(gptlit("fit", *TINY[:1], f"--data.path={text_file}"), "wide")


@pytest.mark.parametrize("option", ["limit_val_batches=2", "limit_val_batches=0", "fast_dev_run=1"])
def test_figures_are_those_of_a_whole_split(gptlit: Call, run: Run, option: str) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    result = gptlit("validate", "--ckpt_path", path, f"--trainer.{option}")
    assert_one_line(result, "--trainer." + option.split("=")[0], "whole split")


def test_a_checkpoint_of_another_version(gptlit: Call, run: Run) -> None:
    content = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    content["gptlit"]["config"]["flux_capacitor"] = 1.21
    torch.save(content, "newer.ckpt")
    for verb in ("predict", "validate", "fit"):
        assert_one_line(gptlit(verb, "--ckpt_path=newer.ckpt"), "newer.ckpt", "flux_capacitor")


def test_a_checkpoint_for_another_shape(gptlit: Call, run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    copy = Path("copy.ckpt")
    copy.write_bytes(path.read_bytes())
    result = gptlit("fit", "--ckpt_path", copy, "--trainer.max_steps=50", "--model.n_embd=32")
    assert_one_line(result, "--model.n_embd 32", "16")


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:114] . DefaultCPUAllocator: can't allocate memory"
        ),
    ],
)
def test_out_of_memory(gptlit: Call, monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(argv: object) -> None:
        raise failure

    monkeypatch.setattr(predict, "main", fail)
    result = gptlit("predict")
    assert_one_line(result, "lower --data.batch_size, then --model.block_size, then --model.n_embd")


def test_what_is_not_the_users_fault_keeps_its_traceback(
    gptlit: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(argv: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(predict, "main", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        gptlit("predict")
