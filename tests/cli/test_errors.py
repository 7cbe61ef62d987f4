"""Invalid input: one line on stderr that names the option, exit code 2, no traceback."""

import errno
import hashlib
import math
import os
import pickle
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from gptlit.checkpoints import checkpoint
from gptlit.files import sha256_of
from gptlit.predict import command
from gptlit.runs import run_folder
from tests.conftest import TINY, Result, Run, made_up_text

Call = Callable[..., Result]


RESUME_NOTES = ("gptlit: resuming", "gptlit: model ")  # lines on the checkpoint that is used


def assert_one_line(result: Result, *parts: str) -> None:
    assert result.code == 2
    lines = [line for line in result.err.splitlines() if not line.startswith(RESUME_NOTES)]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("gptlit: error: ")
    assert len(lines[0]) < 300
    for part in parts:
        assert part in lines[0]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("", ["no verb", "fit, predict, validate, test, serve, data"]),
        ("--model.n_layer 3", ["no verb"]),
        ("fitt", ["fitt: unknown verb", "Did you mean fit?"]),
        ("fit --config tinny.yaml", ["--config tinny.yaml", "Did you mean tiny.yaml?"]),
        ("fit --config=nowhere.yaml", ["--config nowhere.yaml", "small, tiny"]),
        ("fit --model.n_embed 3", ["--model.n_embed", "Did you mean --model.n_embd?"]),
        ("fit --n_embed 3", ["--n_embed", "Did you mean --model.n_embd?"]),
        ("fit --seed 3", ["--seed: may mean --data.seed or --samples.seed or --seed_everything"]),
        ("resume", ["resume: unknown verb", "gptlit fit --ckpt_path last"]),
        ("help fitt", ["fitt: unknown verb", "Did you mean fit?"]),
        ("fit tinny", ["tinny: is not an option", "Did you mean tiny?"]),
        ("fit tiny.yaml last", ["--ckpt_path last"]),
        ("predict best", ["best: may mean --prompt best or --ckpt_path best"]),
        ("predict ROMEO: --temprature 1", ["--temprature", "Did you mean --temperature?"]),
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
        ("fit --data.path torn.txt", ["--data.path torn.txt", "UTF-8 except for", "offset 6"]),
        ("fit --data.path nothing", ["--data.path nothing", "a folder without .txt"]),
        ("fit --data.path short.txt --model.block_size 64", ["block_size 64", "that fits is 45"]),
        ("fit --data.path mid.txt --data.batch_size 99", ["--data.batch_size 99", "lower"]),
        (
            "fit --data.path mid.txt --model.block_size 64 --data.batch_size 1",
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
            ["--trainer.max_steps 0: nothing to train: step 0 already reaches it; give a larger"],
        ),
        (
            "fit --data.path mid.txt --data.val_fraction 0 --data.batch_size 1 "
            "--model.block_size 16 --trainer.max_epochs 0",
            ["--trainer.max_epochs 0: nothing to train: step 0 already reaches it; give a larger"],
        ),
        ("fit --trainer.precision 7", ["--trainer.precision 7"]),
        ("fit --trainer.precision bf16-mixd", ["or null. Did you mean bf16-mixed?"]),
        ("fit --model.optimizer adm", ["one of adamw, adam, sgd, muon. Did you mean adam?"]),
        ("predict --unknown skp", ["--unknown skp", "error, skip. Did you mean skip?"]),
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
        ("predict --sweep seed=5 num_beams=2", ["--sweep seed", "does not apply to a beam search"]),
        ("predict --sweep seed=5 --num_samples 2", ["--num_samples 2", "--sweep seed"]),
        ("predict --sweep max_new_tokens=5,none", ["--max_new_tokens null", "need a limit"]),
        ("predict --sweep top_k=5 --explain", ["--explain", "--sweep", "leave one out"]),
        ("predict --echo off", ["--echo 'off': expected true or false"]),
        ("predict --explain --interactive", ["--interactive", "--explain"]),
        ("predict --explain --ckpt_path nothing", ["--ckpt_path nothing", "takes one checkpoint"]),
        ("predict --explain --format markdown", ["--format markdown", "text, jsonl"]),
        ("predict --format markdown", ["--format markdown", "--sweep", "text, jsonl"]),
        ("predict --interactive --format jsonl", ["--format jsonl", "--interactive"]),
        ("predict --interactive --output_file o", ["--output_file", "--interactive"]),
        ("predict --interactive --prompt a", ["--prompt", "line by line"]),
        ("predict --explain --trainer.devices 1", ["--explain: needs one device"]),
        ("predict --sweep top_k=1 --trainer.devices 1", ["--sweep: needs one device"]),
        ("predict --ckpt_path nothing --trainer.devices 1", ["--ckpt_path nothing", "one device"]),
    ],
)
def test_one_line(gptlit: Call, tmp_path: Path, arguments: str, parts: list[str]) -> None:
    for name, content in {
        "empty.txt": b"",
        "torn.txt": b"caf\xc3\xa9 \xff",
        "short.txt": b"0123456789" * 10,
        "mid.txt": b"0123456789" * 20,
        "broken.yaml": b"model: [1",
        "unknown.yaml": b"model: {n_hed: 2}",
        "ckpt.yaml": b"ckpt_path: last",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "nothing").mkdir()
    before = sorted(tmp_path.iterdir())
    assert_one_line(gptlit(*arguments.split()), *parts)
    left = {path.name for path in tmp_path.iterdir()} - {path.name for path in before}
    assert left <= {"data", "lightning_logs"}
    assert not list(tmp_path.glob("lightning_logs/*"))  # no folder of a run that never began


def test_a_wrong_environment_variable(
    gptlit: Call, monkeypatch: pytest.MonkeyPatch, text_file: Path
) -> None:
    monkeypatch.setenv("GPTLIT_FIT__MODEL__N_EMBD", "wide")
    assert_one_line(gptlit("fit", *TINY[:1], f"--data.path={text_file}"), "wide")


@pytest.mark.parametrize("option", ["limit_val_batches=2", "limit_val_batches=0", "fast_dev_run=1"])
def test_metrics_are_of_the_whole_split(gptlit: Call, run: Run, option: str) -> None:
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

    monkeypatch.setattr(command, "main", fail)
    result = gptlit("predict")
    assert_one_line(result, "lower --data.batch_size, then --model.block_size, then --model.n_embd")


def test_a_bug_keeps_its_traceback(gptlit: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(argv: object) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(command, "main", fail)
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        gptlit("predict")


# ---------------------------------------------------------------------- files, places, checkpoints


def listing(folder: Path) -> dict[str, str]:
    """Return the hash of each file in a folder, except token files."""
    return {
        str(path.relative_to(folder)): sha256_of(path) if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
        if path.relative_to(folder).parts[0] != "data"
    }


class Code:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path("RAN").touch, ()


def altered(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], None]:
    """Return a function that writes a changed copy of a valid checkpoint."""

    def write(good: Path, path: Path) -> None:
        content = torch.load(good, weights_only=True)
        change(content)
        torch.save(content, path)

    return write


BYTES = {
    "empty.txt": b"",
    "binary.txt": bytes(range(256)),
    "nul.txt": b"\x00" * 500,
    "space.txt": b"  \n" * 9,
    "utf16.txt": "hello world".encode("utf-16")[:-1],
    "torn.txt.gz": b"\x1f\x8b\x08hello",
    "fake.txt.zst": b"hello",
    "bad.jsonl": b'{"text": "a"}\n{"text": 3}\n',
    "digits.txt": b"0123456789" * 200,
    "short.txt": b"the king and thy love shall speak",
    "file": b"x",
    "empty.yaml": b"",
    "list.yaml": b"- 1\n- 2\n",
    "number.yaml": b"model: 7",
    "types.yaml": b"model: {n_layer: [1, 2]}",
    "steps.yaml": b"trainer: {max_steps: soon}",
    "kind.yaml": b"data: {tokenizer: {kind: 3}}",
    "colour.yaml": b"data: {tokenizer: {kind: word, colour: red}}",
    "verb.yaml": b"fit: {model: {n_layer: 1}}",
    "predict.yaml": b"prompt: hello\ntemperature: 0.7\n",
    "tab.yaml": b"model:\n\tn_layer: 1\n",
    "latin.yaml": b"data: {path: caf\xe9}",
    "code.yaml": b"model: !!python/object/apply:os.system ['touch RAN']\n",
    "code.pkl": pickle.dumps(Code()),
}
CHECKPOINTS: dict[str, Callable[[Path, Path], Any]] = {
    "code.ckpt": lambda _, path: torch.save({"gptlit": Code(), "state_dict": {}}, path),
    "pickle.ckpt": lambda _, path: path.write_bytes(BYTES["code.pkl"]),
    "torn.ckpt": lambda good, path: path.write_bytes(good.read_bytes()[:-400]),
    "flipped.ckpt": lambda good, path: path.write_bytes(
        good.read_bytes()[:5000] + bytes([good.read_bytes()[5000] ^ 255]) + good.read_bytes()[5001:]
    ),
    "other.ckpt": lambda _, path: torch.save({"state_dict": {}, "epoch": 3}, path),
    "tensor.ckpt": lambda _, path: torch.save(torch.zeros(3), path),
    "missing.ckpt": altered(lambda content: content["state_dict"].pop("net.wte.weight")),
    "shape.ckpt": altered(
        lambda content: content["state_dict"].update({"net.wte.weight": torch.zeros(3, 3)})
    ),
    "nan.ckpt": altered(lambda content: content["state_dict"]["net.wte.weight"].fill_(math.nan)),
    "weightless.ckpt": altered(lambda content: content.pop("state_dict")),
    "stepless.ckpt": altered(lambda content: content.pop("global_step")),
    "layers.ckpt": altered(lambda content: content["gptlit"]["config"].update(n_layer="many")),
    "heads.ckpt": altered(lambda content: content["gptlit"]["config"].update(n_head=3)),
    "runes.ckpt": altered(lambda content: content["gptlit"].update(tokenizer={"kind": "runes"})),
    "five.ckpt": altered(lambda content: content["gptlit"].update(tokenizer=5)),
    "half.ckpt": altered(lambda content: content["gptlit"].update(tokenizer={"kind": "word"})),
    "options.ckpt": altered(lambda content: content["gptlit"].update(run="model: [1")),
}

REFUSED: list[tuple[str, list[str]]] = [
    # configs
    ("fit --config empty.yaml", ["--config empty.yaml", "model: {n_layer: 4}"]),
    ("fit --config number.yaml", ["--config number.yaml: model: 7", "group of options"]),
    ("fit --config types.yaml", ["--model.n_layer [1, 2]: expected int"]),
    ("fit --config steps.yaml", ["--trainer.max_steps soon: expected int"]),
    ("fit --config kind.yaml", ["--data.tokenizer.kind 3", "char, word, tiktoken, bpe"]),
    ("fit --config colour.yaml", ["--data.tokenizer.colour: unknown option"]),
    ("fit --config verb.yaml", ["fit.model.n_layer", "Did you mean model.n_layer?"]),
    ("fit --config predict.yaml", ["prompt: unknown key in a config"]),
    ("fit --config tab.yaml", ["--config tab.yaml: not YAML", "line 2"]),
    ("fit --config latin.yaml", ["--config latin.yaml: not UTF-8"]),
    ("fit --config code.yaml", ["--config code.yaml: not YAML", "os.system"]),
    ("fit --config nothing", ["--config nothing: no such file"]),
    ("fit --config /proc/self/mem", ["--config /proc/self/mem: Input/output error"]),
    ("predict --config tiny.yaml", ["--config: unknown option", "an option of gptlit fit"]),
    ("validate --config number.yaml", ["--config number.yaml"]),
    # texts
    ("fit TINY --data.path binary.txt", ["--data.path binary.txt: a binary file"]),
    ("fit TINY --data.path nul.txt", ["--data.path nul.txt: a binary file"]),
    ("fit TINY --data.path space.txt", ["--data.path space.txt", "empty"]),
    ("fit TINY --data.path utf16.txt", ["utf16.txt: not utf-16 text", "by its byte order mark"]),
    ("fit TINY --data.path torn.txt.gz", ["--data.path torn.txt.gz: incomplete or corrupt .gz"]),
    ("fit TINY --data.path fake.txt.zst", ["--data.path fake.txt.zst: incomplete or corrupt .zst"]),
    ("fit TINY --data.path bad.jsonl", ["--data.path bad.jsonl: line 2", "jsonl_field"]),
    ("fit TINY --data.path loop.txt", ["--data.path loop.txt", "symbolic links"]),
    ("fit TINY --data.val_path empty.txt", ["--data.val_path empty.txt", "empty"]),
    ("fit TINY --model.block_size 100000", ["--model.block_size 100000", "5526"]),
    ("summary TINY --data.path nowhere.txt", ["--data.path nowhere.txt"]),
    ("data binary.txt", ["binary.txt: a binary file"]),
    ("data bad.jsonl", ["bad.jsonl: line 2"]),
    # numbers and names
    ("fit TINY --seed_everything -1", ["--seed_everything -1", "2^32"]),
    ("fit TINY --samples.seed 99999999999999999999", ["--samples.seed 9999", "2^63"]),
    ("fit TINY --samples 3", ["--samples", "--samples.NAME VALUE"]),
    ("fit TINY --model.lr nan", ["--model.lr nan: must be a finite number"]),
    ("fit TINY --model.mlp_ratio 0.01", ["--model.mlp_ratio 0.01", "0 channels"]),
    ("fit TINY --model.positions absolute", ["one of learned, sinusoidal, rotary, none"]),
    ("fit TINY --data.tokenizer.kind word --data.tokenizer.min_frequency 0",
     ["--data.tokenizer.min_frequency 0: must be 1 or more"]),
    ("fit TINY --data.tokenizer.kind bpe --data.tokenizer.vocab_size many",
     ["--data.tokenizer.vocab_size many: expected int"]),
    ("fit TINY --trainer.accumulate_grad_batches 0", ["accumulate_grad_batches 0", "1 or more"]),
    ("fit TINY --trainer.check_val_every_n_epoch 0", ["check_val_every_n_epoch 0"]),
    ("fit TINY --trainer.limit_train_batches 0", ["--trainer.limit_train_batches 0"]),
    ("fit TINY --trainer.accelerator tpu", ["--trainer", "torch_xla"]),
    ("fit TINY --trainer.logger nope", ["--trainer.logger nope: expected one of"]),
    ("fit TINY --trainer.callbacks.class_path EarlyStopping", ["callbacks: needs monitor"]),
    ("fit TINY --trainer.max_time soon", ["--trainer", "soon", "DD:HH:MM:SS"]),
    # places
    ("fit TINY --data.data_dir file", ["--data.data_dir file", "Not a directory"]),
    ("fit TINY --trainer.default_root_dir file", ["--trainer.default_root_dir file"]),
    ("predict --output_file nothing", ["--output_file nothing: is a folder"]),
    ("predict --prompt_file nothing", ["--prompt_file nothing: Is a directory"]),
    ("predict --prompt_file binary.txt", ["--prompt_file binary.txt: not UTF-8"]),
    ("export last full", ["full: exists already", "new folder"]),
    ("export last file", ["file: exists already"]),
    ("export last out --format tflite", ["--format tflite: expected one of hf, "]),
    ("import hugging_face last --output file", ["--output file: exists already"]),
    ("import hugging_face nothing", ["nothing", "config.json"]),
    ("import nanogpt digits.txt --output new", ["digits.txt", "refused"]),
    ("import nanogpt other.ckpt --output new", ["other.ckpt: not a checkpoint of nanoGPT"]),
    ("import nanogpt other.ckpt", ["--output other.ckpt: exists already"]),
    ("import pytorch x.pt", ["pytorch", "choose from nanogpt, "]),
    # prompts and sampling
    ("predict --prompt 日本", ["--prompt", "日", "--unknown skip"]),
    ("predict --force 日", ["--force", "日"]),
    ("predict --ban th", ["--ban 'th'", "one token"]),
    ("predict --stop=", ["--stop ''"]),
    ("predict --lines", ["--lines: needs --prompt_file"]),
    ("predict --prompt_file empty.txt --lines", ["--prompt_file empty.txt: has no lines"]),
    ("predict --explain --prompt=", ["--explain: there is no text"]),
    ("predict --weights int4", ["--weights int4: expected one of auto, float32, int8"]),
    ("predict --interactive --lines", ["--lines", "--interactive"]),
    ("predict --sweep weights=int8", ["--sweep weights", "temperature"]),
    ("predict --sweep temperature=1 temperature=2", ["temperature=2", "twice"]),
    ("predict --length_penalty 2", ["--length_penalty 2.0", "--num_beams"]),
    ("predict --data.path x", ["--data.path", "an option of gptlit fit"]),
    ("predict --ckpt_path=", ["--ckpt_path ''"]),
    ("predict --ckpt_path last --ckpt_path nowhere.ckpt", ["--ckpt_path nowhere.ckpt"]),
    # other verbs
    ("validate --data.path digits.txt", ["digits.txt", "can't read that text"]),
    ("validate --data.val_fraction 0", ["--data.val_fraction 0", "--data.val_path"]),
    ("validate --preflight", ["--preflight true: is an option of fit only"]),
    ("test", ["--data.test_fraction 0", "--data.test_path"]),
    ("fit --ckpt_path last", ["--trainer.max_steps 40", "is already at step 40"]),
    ("fit --ckpt_path last --model.init_from last", ["--model.init_from last", "one of them"]),
    # checkpoints
    *(
        (f"{verb} {name}", [name, parts])
        for name, parts in {
            "code.ckpt": "it could run code",
            "pickle.ckpt": "torn, altered, or not a checkpoint",
            "torn.ckpt": "torn, altered, or not a checkpoint",
            "flipped.ckpt": "torn, altered, or not a checkpoint",
            "other.ckpt": "not a checkpoint of gptlit",
            "tensor.ckpt": "not a checkpoint of gptlit",
            "weightless.ckpt": "has no state_dict",
            "stepless.ckpt": "has no global_step",
            "five.ckpt": "gptlit.tokenizer 5: must be a table",
        }.items()
        for verb in ("predict --ckpt_path", "validate --ckpt_path", "fit --ckpt_path")
    ),
    ("export code.ckpt out", ["code.ckpt", "it could run code"]),
    ("export torn.ckpt out", ["torn.ckpt", "torn"]),
    ("import nanogpt code.ckpt --output new", ["code.ckpt", "refused"]),
    ("import nanogpt other.ckpt code.pkl --output new", ["other.ckpt", "nanoGPT"]),
    ("summary --ckpt_path code.ckpt", ["code.ckpt", "it could run code"]),
    ("predict --ckpt_path missing.ckpt", ["the weights lack net.wte.weight"]),
    ("validate --ckpt_path missing.ckpt", ["the weights lack net.wte.weight"]),
    ("fit --ckpt_path missing.ckpt --trainer.max_steps 50", ["the weights lack net.wte.weight"]),
    ("export shape.ckpt out", ["net.wte.weight is of shape (3, 3)"]),
    ("predict --ckpt_path nan.ckpt", ["not finite", "earlier checkpoint"]),
    ("predict --ckpt_path layers.ckpt", ["the checkpoint's model can't be built"]),
    ("predict --ckpt_path heads.ckpt", ["--model.n_head 3"]),
    ("predict --ckpt_path runes.ckpt", ["'runes'", "char, word, tiktoken, bpe"]),
    ("predict --ckpt_path half.ckpt", ["state of a tokenizer is corrupt"]),
    ("fit --ckpt_path options.ckpt", ["options.ckpt: holds no options of its run"]),
    ("validate --ckpt_path options.ckpt", ["options.ckpt: holds no options of its run"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def folder_of_files(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a run, a text and many invalid files."""
    folder = tmp_path_factory.mktemp("folder_of_files")
    shutil.copytree(run.folder, folder / "lightning_logs" / "version_0")
    shutil.copy(run.text, folder)
    for name, content in BYTES.items():
        (folder / name).write_bytes(content)
    for name, write in CHECKPOINTS.items():
        write(run.folder / "checkpoints" / "last.ckpt", folder / name)
    (folder / "nothing").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "x").touch()
    (folder / "loop.txt").symlink_to("loop.txt")
    return folder


def words_of(line: str) -> list[str]:
    tiny = [*TINY, "--data.path=speeches.txt", "--trainer.max_steps=2"]
    return [word for each in line.split() for word in (tiny if each == "TINY" else [each])]


def assert_refused(result: Result, code: int, *parts: str) -> str:
    """Check that there is one line of error, apart from notes on changed options."""
    assert result.code == code, result.err
    lines = [line for line in result.err.splitlines() if " -> " not in line]
    lines = [line for line in lines if not line.startswith(RESUME_NOTES)]
    assert len(lines) == 1, result.err
    assert lines[0].startswith("gptlit: error: ")
    assert len(lines[0]) < 400
    for part in parts:
        assert part in lines[0]
    return lines[0]


@pytest.mark.parametrize(("line", "parts"), REFUSED)
def test_an_error_changes_no_file(
    gptlit: Call,
    monkeypatch: pytest.MonkeyPatch,
    folder_of_files: Path,
    line: str,
    parts: list[str],
) -> None:
    monkeypatch.chdir(folder_of_files)
    before = listing(folder_of_files)
    assert_refused(gptlit(*words_of(line)), 2, *parts)
    assert listing(folder_of_files) == before


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("predict --output_file /proc/x", ["--output_file /proc/x: can't be written"]),
        ("export last file/x", ["file/x: can't be written"]),
        ("import hugging_face last --output file/x", ["--output file/x: can't be written"]),
    ],
)
def test_places_that_are_not_writable(
    gptlit: Call,
    monkeypatch: pytest.MonkeyPatch,
    folder_of_files: Path,
    line: str,
    parts: list[str],
) -> None:
    monkeypatch.chdir(folder_of_files)
    before = listing(folder_of_files)
    assert_refused(gptlit(*words_of(line)), 1, *parts)
    assert listing(folder_of_files) == before


@pytest.mark.parametrize("name", ["GPTLIT_FITT__MODEL__N_EMBD", "GPTLIT_FIT_MODEL__N_EMBD"])
def test_unknown_environment_variables(
    gptlit: Call, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "3")
    assert_refused(gptlit("fit"), 2, name, "GPTLIT_FIT__MODEL__N_EMBD", "Did you mean fit?")


@pytest.mark.parametrize(
    ("variable", "line", "parts"),
    [
        ("GPTLIT_FIT__CONFIG=nowhere.yaml", "fit", ["--config nowhere.yaml"]),
        ("GPTLIT_PREDICT__TEMPERATURE=hot", "predict", ["--temperature hot: expected float"]),
        ("GPTLIT_DATA__TOKENIZER=chars", "data digits.txt", ["chars", "Did you mean char?"]),
        ("GPTLIT_EXPORT__FORMAT=tflite", "export last out", ["--format tflite"]),
        ("GPTLIT_DATA_DIR=/nowhere", "data dante --data_dir none", ["/nowhere/commedia.txt"]),
    ],
)
def test_environment_variables_of_the_verbs(
    gptlit: Call,
    monkeypatch: pytest.MonkeyPatch,
    folder_of_files: Path,
    variable: str,
    line: str,
    parts: list[str],
) -> None:
    from gptlit import download

    def unreachable(source: object) -> bytes:
        raise download.SourceError("no network")

    monkeypatch.setattr(download.Url, "read", unreachable)
    monkeypatch.chdir(folder_of_files)
    monkeypatch.setenv(*variable.split("=", 1))
    assert_refused(gptlit(*words_of(line)), 2, *parts)


def test_two_processes_in_one_run_folder(gptlit: Call, run: Run) -> None:
    shutil.copytree(run.folder, "lightning_logs/version_0")
    before = listing(Path("lightning_logs"))
    last = Path("lightning_logs/version_0/checkpoints/last.ckpt")
    with run_folder.RunFolder(Path("lightning_logs"), last).lock():
        result = gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=42")
    assert_refused(
        result, 2, "lightning_logs/version_0: another process is training in this folder"
    )
    assert listing(Path("lightning_logs")) == before
    assert (
        gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=42").code == 0
    )  # the other has ended


def test_a_port_in_use(gptlit: Call, monkeypatch: pytest.MonkeyPatch, text_file: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        result = gptlit("fit", *TINY, f"--data.path={text_file}", "--trainer.strategy=ddp")
    assert result.code == 1
    assert f"MASTER_PORT {os.environ['MASTER_PORT']}: in use" in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert not Path("lightning_logs").exists()


def test_no_space_for_texts(
    gptlit: Call, monkeypatch: pytest.MonkeyPatch, folder_of_files: Path
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(folder_of_files)
    before = listing(folder_of_files)
    monkeypatch.setattr(os, "fsync", full)
    for line in ("predict --output_file new.txt", "import hugging_face last --output new.ckpt"):
        assert_refused(gptlit(*line.split()), 1, "new.", "No space left")
    assert listing(folder_of_files) == before


@pytest.mark.parametrize("line", ["--debug fit --model.n_embd 3", "fit --model.n_embd 3 --debug"])
def test_debug_shows_the_traceback(gptlit: Call, line: str) -> None:
    result = gptlit(*line.split())
    assert result.code == 2
    first, *_, last = result.err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "in __post_init__" in result.err
    assert last.startswith("gptlit: error: --model.n_embd 3: must be a multiple of")


# ---------------------------------------------------------------------- random configs

OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "model.n_layer": st.sampled_from([-1, 0, 1, 2]),
    "model.n_head": st.sampled_from([0, 1, 2, 3]),
    "model.n_kv_head": st.sampled_from(["null", 1, 2]),
    "model.n_embd": st.sampled_from([1, 2, 6, 8, 12]),
    "model.block_size": st.sampled_from([0, 1, 2, 8, 33, 5000]),
    "model.positions": st.sampled_from(["learned", "sinusoidal", "rotary", "none", "both"]),
    "model.norm": st.sampled_from(["layer", "rms"]),
    "model.norm_place": st.sampled_from(["pre", "post"]),
    "model.activation": st.sampled_from(["gelu", "gelu_tanh", "relu", "relu2", "swiglu"]),
    "model.mixer": st.sampled_from(["attention", "none"]),
    "model.init": st.sampled_from(["gpt2", "torch", "unit"]),
    "model.attention": st.sampled_from(["sdpa", "eager"]),
    "model.mlp_ratio": st.sampled_from([0.1, 1, 4]),
    "model.logit_softcap": st.sampled_from(["null", 0, 15.0]),
    "model.dropout": st.sampled_from([0, 0.5, 1]),
    **{
        f"model.{name}": st.sampled_from(["true", "false"])
        for name in ("qk_norm", "tie_weights", "zero_init", "bias", "attn_proj")
    },
    "model.token_shift": st.sampled_from([-1, 0, 1, 3, 100]),
    "model.lr": st.sampled_from([0, 1e-3, 1.0, "nan"]),
    "model.min_lr": st.sampled_from([0, 1e-4, 2.0]),
    "model.warmup_steps": st.sampled_from([-1, 0, 1, 100]),
    "model.decay_steps": st.sampled_from(["null", 0, 1, 7]),
    "model.weight_decay": st.sampled_from([0, 0.1]),
    "data.tokenizer": st.sampled_from(["char", "word", "word:reversible", "bpe:260", "bpe:9"]),
    "data.batch_size": st.sampled_from([0, 1, 3, 5000]),
    "data.windows": st.sampled_from(
        ["pass", "side_by_side", "every_offset", "random", "documents"]
    ),
    "data.eos": st.sampled_from(["true", "false"]),
    "data.val_fraction": st.sampled_from([0, 0.001, 0.1, 0.9, 1]),
    "data.val_spans": st.sampled_from([1, 3]),
    "data.split_by": st.sampled_from(["characters", "documents"]),
    "trainer.accumulate_grad_batches": st.sampled_from([0, 1, 3]),
    "trainer.gradient_clip_val": st.sampled_from(["null", 0, 0.5, -1]),
    "trainer.val_check_interval": st.sampled_from([0, 1, 2, 0.5, 1.0, 5.0]),
    "trainer.check_val_every_n_epoch": st.sampled_from(["null", 0, 1]),
    "trainer.limit_val_batches": st.sampled_from([0, 1, 0.5, 1.0]),
    "trainer.limit_train_batches": st.sampled_from([0, 2, 0.5, 1.0]),
    "trainer.num_sanity_val_steps": st.sampled_from([-1, 0, 1]),
    "trainer.log_every_n_steps": st.sampled_from([0, 1, 2]),
    "trainer.precision": st.sampled_from(["32-true", "64-true"]),
    "trainer.fast_dev_run": st.sampled_from(["false", "true", 2]),
    "trainer.overfit_batches": st.sampled_from([0, 1, 0.5]),
    "trainer.detect_anomaly": st.sampled_from(["true", "false"]),
    "trainer.max_epochs": st.sampled_from([-1, 0, 1]),
    "snapshot_every": st.sampled_from([-1, 0, 1]),
    "early_stopping.patience": st.sampled_from([-1, 0, 1]),
    "samples.max_new_tokens": st.sampled_from([-1, 0, 3]),
    "samples.top_k": st.sampled_from(["null", 0, 2]),
    "guard.skip_nonfinite": st.sampled_from([-1, 0, 1]),
}


@st.composite
def configs(draw: st.DrawFn) -> list[str]:
    """Draw up to seven options; more would rarely be valid together."""
    names = draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=7, unique=True))
    return [f"--{name}={draw(OPTIONS[name])}" for name in names]


@hypothesis.settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(options=configs())
def test_a_config_trains_or_is_refused(gptlit: Call, tmp_path: Path, options: list[str]) -> None:
    """A command trains two steps, or prints one line and exits with code 2."""
    root = tmp_path / hashlib.sha256(repr(options).encode()).hexdigest()[:12]
    text = tmp_path / "few.txt"
    text.write_text(made_up_text(300), encoding="utf-8")
    base = [*TINY, f"--data.path={text}", "--trainer.max_steps=2"]
    result = gptlit("fit", *base, f"--trainer.default_root_dir={root}", *options)
    if result.code:
        assert_refused(result, 2, "--")
        assert not list(root.rglob("version_*"))
    else:
        saved = list(root.rglob("last.ckpt"))
        assert saved or any("fast_dev_run" in option for option in options)
        assert all(checkpoint.read(path)["global_step"] in (1, 2) for path in saved)
