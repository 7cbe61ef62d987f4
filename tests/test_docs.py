"""The commands, Python, YAML and links of README and docs work, on tiny sizes and in order."""

import contextlib
import hashlib
import io
import itertools
import json
import pickle
import random
import re
import shlex
import shutil
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from gptlit.checkpoints import adapters
from gptlit.checkpoints.init_from import Origin, write_checkpoint
from gptlit.corpora.catalog import CORPORA, Corpus
from gptlit.download import Inline
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.characters import CharTokenizer
from tests.checkpoints import test_llama2c, test_nanochat
from tests.checkpoints.reference_models import random_llama
from tests.checkpoints.test_nanogpt import as_nanogpt
from tests.conftest import Result

Call = Callable[..., Result]
ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("benchmarks", "data", "examples", "lightning_logs")
LINKED = [*sorted(ROOT.glob("*.md")), *PAGES[2:], *(ROOT / f / "README.md" for f in FOLDERS)]

# Commands that a test can't run, and why. Those of gptlit are parsed instead.
NOT_RUN = {
    "git clone": "downloads",
    "make": "installs; tests/test_make.py",
    ".venv/bin/python -m pytest": "runs the tests themselves",
    "pip install": "downloads",
    "pre-commit install": "changes the repository",
    "tensorboard --logdir": "a server that does not end",
    "gptlit serve": "a server that does not end; tests/serve/test_command.py",
    "curl": "asks a server; tests/serve/test_docs.py",
    "torchrun": "two nodes",
    "srun": "SLURM",
    "gptlit fit --config medium.yaml --trainer.devices 4": "four GPUs",
    "gptlit fit --config finetune_gpt2.yaml": "downloads 0.5 GB",
    "gptlit fit --config tiny.yaml --trainer.accelerator cpu --trainer.devices 2": (
        "starts the tests' process a second time; tests/training/test_ranks.py"
    ),
    'gptlit predict --prompt "ROMEO:" --num_samples 4 --trainer.accelerator cpu': (
        "starts the tests' process a second time; tests/predict/test_command.py"
    ),
    "gptlit study learning_rates.yaml": "nine runs",
    "gptlit study distill.yaml": "six runs",
    "gptlit fit --data.path my.txt --minutes 5": "five minutes; tests/runs/test_time_budget.py",
    "gptlit fit --config my.yaml --minutes 5": "five minutes; tests/cli/test_advising.py",
    "gptlit fit --data.path <(": "a shell's process substitution; tests/corpora/test_inputs.py",
}
NAMED = ("git", "make", "pip", "pre-commit", "tensorboard", "torchrun", "srun", "curl",
         ".venv/bin/python")  # fmt: skip

SPEECHES = """\
ROMEO:
To be, or not to be: that is the question, O king! What say the quick brown fox and his jazz?

JULIET:
Nel mezzo del cammin di nostra vita, my love shall go; and thy day or night is nigh?

THE Quick Vexed Wizard of ALL that glitters:
'Tis but a step; the journey of a thousand miles begins, XYZ BCDFGKMPW - so I do vow it.

"""
SIZES = {"n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8}
SHORT = ["--data.batch_size=2", "--samples.max_new_tokens=3", "--trainer.val_check_interval=2"]
TINY = [*(f"--model.{name}={size}" for name, size in SIZES.items()), *SHORT]
steps = itertools.count(4, 2)


def blocks(page: Path) -> list[tuple[str, str]]:
    """The language and the text of each fenced block of a page."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(block: str) -> list[str]:
    """The commands of a block, one line each, without comments."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    without = (re.sub(r"(^|\s+)#\s.*$", "", line).strip() for line in lines)
    return [part for line in without if line for part in line.split(" && ")]


def smaller(words: list[str]) -> list[str]:
    """The arguments of a command of gptlit, with options that make it tiny."""
    verb, *rest = words
    if verb == "predict":
        quiet = "--explain" in rest
        return [*words, *([] if quiet else ["--max_new_tokens=5"])]
    if verb == "study":
        return words if "--dry_run" in rest else [*words, *SHORT, "--trainer.max_steps=2"]
    if verb not in ("fit", "summary"):
        # of a model with a smaller block
        return [
            "8" if before == "--stride" else word
            for before, word in itertools.pairwise(["", *words])
        ]
    if "--ckpt_path" in rest:
        return [*words, f"--trainer.max_steps={next(steps)}"]
    short = SHORT if "--model.init_from" in rest else TINY
    return [*words, *short, "--trainer.max_steps=2"]


def whole_text(n_copies: int) -> str:
    """Speeches with all letters, and random words, enough of them for a BPE of 512 tokens."""
    pick = random.Random(0)
    words = (
        "".join(pick.choices("aeioulnrst", k=pick.randint(2, 7))) for _ in range(40 * n_copies)
    )
    return SPEECHES * n_copies + " ".join(words) + "\n"


def make_files(folder: Path, n_copies: int) -> None:
    """The files that the pages name, in a folder."""
    text = whole_text(n_copies)
    for name in ("my.txt", "other.txt", "unseen.txt"):
        (folder / name).write_text(text)
    (folder / "books").mkdir()
    (folder / "books" / "one.txt").write_text(text)
    (folder / "prompts.txt").write_text("ROMEO:\nJULIET:\n")
    (folder / "other.csv").write_text("it,ce\n1,3.0\n2,2.5\n")
    (folder / "reviews.csv").write_text("stars,review\n" + f'5,"{SPEECHES[:60]}"\n' * 40)
    (folder / "posts.jsonl").write_text('{"body": "To be, or not to be"}\n' * 80)
    alphabet = {letter: id_ for id_, letter in enumerate("\n abcde")}
    meta = {"vocab_size": 7, "itos": {i: c for c, i in alphabet.items()}, "stoi": alphabet}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    torch.save(as_nanogpt(GPT(GPTConfig(7, **SIZES))), folder / "ckpt.pt")
    letters = CharTokenizer("".join(sorted({*(text + "<|_>?!"), *map(chr, range(97, 123)), "W"})))
    asked = [{"question": f"Who is it, {n}?", "answer": f"It is {n}."} for n in "abcdef" * 8]
    (folder / "chat.jsonl").write_text("\n".join(map(json.dumps, asked)))
    rated = [
        {"prompt": "ROMEO:\n", "chosen": f"{n}\n", "rejected": f"{n} and\n"} for n in "abc" * 9
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rated)))
    adapted = GPT(GPTConfig(7, **SIZES, lora_r=2))
    adapters.write(adapted.config, adapted.state_dict(), folder / "my_adapter", "base.ckpt")
    base = GPT(GPTConfig(letters.vocab_size, **SIZES | {"block_size": 64}))
    write_checkpoint(Origin("x", base.config, base.state_dict(), letters), folder / "base.ckpt")
    test_llama2c.write_weights(
        folder / "stories15M.bin", random_llama(*test_llama2c.SIZES, tied=True), 0
    )
    test_llama2c.write_tokenizer(folder / "tokenizer.bin")
    test_nanochat.write(folder, test_nanochat.random_weights())


@pytest.fixture(scope="module")
def corpora() -> Iterator[None]:
    """Small texts in place of the published ones."""
    text = whole_text(24)  # tiny.yaml validates on a hundredth, in windows of 128
    made = (hashlib.sha256(text.encode()).hexdigest(), len(text), Inline(text), "speeches")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("shakespeare", "tinyshakespeare", "dante"):
            patch.setitem(CORPORA, name, Corpus(f"{name}.txt", *made))
        patch.delenv("GPTLIT_DATA_DIR", raising=False)
        yield


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, corpora: None) -> Path:
    """A folder with a trained run and the files that the pages name."""
    from gptlit.__main__ import main

    folder = tmp_path_factory.mktemp("start")
    make_files(folder, n_copies=12)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["fit", "tiny", *TINY, "--trainer.max_steps=2", "--snapshot_every=1"]) == 0
        for name in ("a.ckpt", "b.ckpt"):
            shutil.copy("lightning_logs/version_0/checkpoints/last.ckpt", name)
    return folder


def is_not_run(command: str) -> bool:
    return any(command.startswith(each) for each in NOT_RUN)


def check_without_running(command: str, gptlit: Call) -> None:
    """Parse a command of gptlit; of others, check that the repository has what they name."""
    program, *rest = shlex.split(command)
    if program in ("gptlit", "torchrun", "srun"):
        words = shlex.split(re.sub(r"<\(.*\)", "my.txt", command))
        verb, *options = words[words.index("gptlit") + 1 :]
        parsed = {"predict": "--help", "serve": "--help", "study": "--dry_run"}.get(
            verb, "--print_config"
        )
        assert gptlit(verb, *options, parsed).code == 0, command
    elif program == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif program == "tensorboard":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        assert any(each.startswith(program) for each in project["dependencies"])
    elif rest[:2] == ["-m", "pytest"]:
        assert all((ROOT / path).exists() for path in rest[2:])
    else:
        assert program in NAMED


def run_command(command: str, gptlit: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of gptlit in-process."""
    words = shlex.split(command.removeprefix(".venv/bin/"))
    if ">" in words:
        words, (_, file) = words[: words.index(">")], words[words.index(">") :]
    else:
        file = ""
    with monkeypatch.context() as patch:
        while "=" in words[0]:
            patch.setenv(*words.pop(0).split("=", 1))
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ROMEO:\n/help\n")))
        assert words.pop(0) == "gptlit"
        result = gptlit(*smaller(words))
    assert result.code == 0, f"{command}\n{result.err}"
    if file:
        assert result.out
        Path(file).write_text(result.out)


def run_python(block: str, names: dict[str, Any]) -> None:
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # Lightning's advice
        exec(compile(block, "block", "exec"), names)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_order(
    page: Path, start: Path, tmp_path: Path, gptlit: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(start, tmp_path, dirs_exist_ok=True)
    names: dict[str, Any] = {}
    for language, block in blocks(page):
        if language == "python":
            run_python(block, names)
        elif language == "yaml":
            name = re.match(r"# (\w+\.yaml)\n", block)
            assert yaml.safe_load(block)
            Path(name[1] if name else "block.yaml").write_text(block)
            if not name:
                assert gptlit("fit", "--config=block.yaml", "--print_config").code == 0
        elif language == "bash":
            for command in commands(block):
                if is_not_run(command):
                    check_without_running(command, gptlit)
                elif not command.startswith("cd "):
                    run_command(command, gptlit, monkeypatch)


def test_every_command_on_the_list_is_in_a_page() -> None:
    shown = [
        command
        for page in PAGES
        for language, block in blocks(page)
        if language == "bash"
        for command in commands(block)
    ]
    assert not [each for each in NOT_RUN if not any(c.startswith(each) for c in shown)]


def test_the_front_page_shows_what_a_run_prints(start: Path, gptlit: Call) -> None:
    """By the labels of its lines; numbers and paths differ."""
    (shown,) = (block for language, block in blocks(PAGES[0]) if language == "text")
    result = gptlit("fit", "tiny", *TINY, "--max_steps=2")
    labels = re.findall(r"^  ([a-z]+)  ", shown, flags=re.MULTILINE)
    assert len(labels) >= 8
    printed = result.out + result.err
    assert not [label for label in labels if not re.search(rf"^  {label}  ", printed, re.MULTILINE)]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: f"{page.parent.name}/{page.stem}")
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """Paths begin at the repository's root, or at the package."""
    named = re.findall(r"`(\w+)(/[\w/.]*\w)`", page.read_text())
    roots = (ROOT, ROOT / "gptlit")
    made_by_a_run = ("data", "lightning_logs", "optim")  # the last in names of metrics
    missing = [
        folder + rest
        for folder, rest in named
        if any((root / folder).exists() for root in roots) and folder not in made_by_a_run
        if not any((root / (folder + rest)).exists() for root in roots)
    ]
    assert not missing


def test_the_figures_of_the_front_page_are_in_benchmarks() -> None:
    table = PAGES[0].read_text().partition("\n## Compared with others\n")[2].partition("\n## ")[0]
    rows = [line.split("|")[2:] for line in table.splitlines() if line.startswith("| ")][2:]
    shown = re.findall(r"\d[\d,.]+\d", " ".join(cell for row in rows for cell in row))
    recorded = (ROOT / "BENCHMARKS.md").read_text()
    assert len(shown) >= 10
    assert not [figure for figure in shown if not re.search(rf"\b{figure}\b", recorded)]


def test_the_front_page_is_short_and_every_page_is_linked_from_it() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 170
    assert all(f"(docs/{page.name})" in readme for page in (ROOT / "docs").glob("*.md"))
    images = (ROOT / "docs" / "images").iterdir()
    assert not [path.name for path in images if path.stat().st_size > 120_000]
