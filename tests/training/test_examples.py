"""Runs on conversations and preferences: exact losses, exact resumes, and what they learn."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from gptlit.checkpoints import checkpoint
from gptlit.messages import UsageError
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.training.module import LitGPT
from tests.conftest import (
    TINY,
    WORDS,
    Result,
    Run,
    assert_same_run,
    read_metrics,
    some_time_passes,
)

Call = Callable[..., Result]
RUN = Path("lightning_logs/version_0")


@pytest.fixture
def conversations(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jsonl"
    pick = random.Random(0)
    lines = [
        json.dumps({"question": f"{word}?", "answer": f"{word} {pick.choice(WORDS)}"})
        for word in WORDS * 8
    ]
    path.write_text("\n".join(lines))
    return path


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    """Pairs in which the shorter line is better."""
    path = tmp_path / "pairs.jsonl"
    pick = random.Random(0)
    lines = []
    for _ in range(120):
        words = [pick.choice(WORDS) for _ in range(5)]
        pair = {"chosen": f"{words[0]}.\n", "rejected": " ".join(words)}
        lines.append(json.dumps({"prompt": f"{pick.choice(WORDS)} ", **pair}))
    path.write_text("\n".join(lines))
    return path


def test_the_loss_of_a_conversation_is_that_of_its_answers(
    gptlit: Call, conversations: Path
) -> None:
    words = [*TINY, f"--data.path={conversations}", "--data.format=chat", "--model.block_size=56"]
    done = gptlit("fit", *words, "--trainer.max_steps=4")
    assert done.code == 0, done.err
    model, tokenizer = checkpoint.load(RUN / "checkpoints" / "last.ckpt")
    validated = gptlit("validate", f"--ckpt_path={RUN / 'checkpoints' / 'last.ckpt'}").out
    shown = dict(line.split()[:2] for line in validated.splitlines())
    nats, n_tokens, n_bytes = 0.0, 0, 0
    examples = [json.loads(line) for line in conversations.read_text().splitlines()][-9:]
    for example in examples:
        prompt = f"<|user|>\n{example['question']}\n<|assistant|>\n"
        answer = f"{example['answer']}\n<|end|>"
        ids = torch.tensor([tokenizer.start_id, *tokenizer.encode(prompt + answer)])
        with torch.no_grad():
            losses = F.cross_entropy(model(ids[None, :-1])[0], ids[1:], reduction="none")
        nats += float(losses[len(prompt) :].sum())
        n_tokens, n_bytes = n_tokens + len(answer), n_bytes + len(answer.encode())
    assert float(shown["val/loss"]) == pytest.approx(nats / n_tokens, abs=1e-5)
    bits = nats / n_bytes / torch.tensor(2.0).log().item()
    assert float(shown["val/bits_per_byte"]) == pytest.approx(bits, abs=1e-5)


@pytest.mark.parametrize("kind", ["chat", "pairs", "pairs with lora"])
def test_a_resumed_run_equals_an_uninterrupted_one(
    gptlit: Call, conversations: Path, preferences: Path, kind: str, wide: Path
) -> None:
    words = [*TINY, f"--data.path={conversations}", "--data.format=chat", "--model.block_size=56"]
    if kind != "chat":
        words = dpo(preferences, wide, *(["--model.lora_r=4"] if "lora" in kind else []))
    words += ["--model.decay_steps=6", "--trainer.val_check_interval=2"]
    assert gptlit("fit", *words, "--trainer.max_steps=6").code == 0
    assert gptlit("fit", *words, "--trainer.max_steps=4").code == 0
    resumed = Path("lightning_logs/version_1")
    some_time_passes(resumed)
    last = resumed / "checkpoints" / "last.ckpt"
    done = gptlit("fit", f"--ckpt_path={last}", "--trainer.max_steps=6")
    assert done.code == 0, done.err
    # the best checkpoint can be one from before the resume, with its number of steps
    assert_same_run(RUN, resumed, but="max_steps")


def dpo(pairs: Path, base: Path, *more: str) -> list[str]:
    return [
        *TINY, f"--data.path={pairs}", "--data.format=pairs", "--model.dpo_beta=0.3",
        f"--model.init_from={base}", "--model.block_size=40", "--model.lr=0.003", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def wide(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose context has room for a pair."""
    from gptlit.__main__ import main

    folder = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = [*TINY, f"--data.path={run.text}", "--model.block_size=40"]
        assert main(["fit", *words, "--trainer.max_steps=60"]) == 0
    return folder / RUN / "checkpoints" / "last.ckpt"


def test_preferences_are_learned(gptlit: Call, preferences: Path, wide: Path) -> None:
    done = gptlit("fit", *dpo(preferences, wide), "--trainer.max_steps=60")
    assert done.code == 0, done.err
    assert "equal rewards have ln(2) = 0.693" in done.out + done.err
    rows = read_metrics(RUN)
    accuracies = [float(row["val/reward_accuracy"]) for row in rows if row["val/reward_accuracy"]]
    assert accuracies[-1] > 0.9
    assert any(float(row["train/reward_margin"]) > 0 for row in rows if row["train/reward_margin"])
    last = RUN / "checkpoints" / "last.ckpt"
    judged = gptlit("validate", f"--ckpt_path={last}")
    assert judged.code == 0, judged.err
    shown = dict(line.split()[:2] for line in judged.out.splitlines())
    assert float(shown["val/reward_accuracy"]) == pytest.approx(accuracies[-1], abs=1e-6)
    assert "val/perplexity" not in shown
    # the text follows
    lengths = [written(gptlit, path) for path in (wide, last)]
    assert lengths[1] < 0.75 * lengths[0]


def written(gptlit: Call, path: Path) -> float:
    """Mean characters of lines that a checkpoint writes after a word of a pair's prompt."""
    words = ["--prompt=king ", "--num_samples=20", "--max_new_tokens=40", r"--stop=\n"]
    texts = gptlit("predict", f"--ckpt_path={path}", *words, "--echo=false").out.split("---\n")
    return sum(map(len, texts)) / len(texts)


def test_what_goes_together(gptlit: Call, preferences: Path, run: Run, wide: Path) -> None:
    for words, reason in (
        (dpo(preferences, wide, "--data.format=text"), "--data.path"),
        (dpo(run.text, wide, "--data.format=text"), "go together: --data.format pairs and"),
        ([*dpo(preferences, wide), "--model.dpo_beta=null"], "go together"),
        (dpo(preferences, wide, "--model.z_loss=0.1"), "--model.z_loss 0.1: does not go with"),
        (
            dpo(preferences, wide, "--model.init_from=null"),
            "--model.dpo_beta 0.3: compares with given",
        ),
        (dpo(preferences, wide, "--model.dpo_beta=0"), "--model.dpo_beta 0"),
    ):
        refused = gptlit("fit", *words, "--trainer.max_steps=2")
        assert refused.code == 2, words
        assert reason in refused.err, refused.err


@pytest.mark.filterwarnings("ignore")  # Lightning's, of a Trainer without the CLI's settings
def test_loaders_of_ones_own_have_no_pairs() -> None:
    model = LitGPT(n_layer=1, n_head=1, n_embd=8, block_size=4, dpo_beta=0.1, init_from="x")
    model.use_tokenizer(CharTokenizer("ab"))
    loader = torch.utils.data.DataLoader(torch.zeros(4, 5, dtype=torch.int64), batch_size=2)
    trainer = L.Trainer(max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False)
    with pytest.raises(UsageError, match=r"dpo_beta 0\.1: needs a TextDataModule"):
        trainer.fit(model, loader)


def test_a_question_longer_than_the_context_is_trained_on(gptlit: Call, tmp_path: Path) -> None:
    """Also where it comes first, and in batches of one window."""
    path = tmp_path / "long.jsonl"
    records = [{"question": f"{word} " * 12, "answer": word} for word in WORDS * 3]
    path.write_text("\n".join(map(json.dumps, records)))
    words = [*TINY, f"--data.path={path}", "--data.format=chat", "--data.batch_size=1"]
    done = gptlit("fit", *words, "--model.block_size=16", "--trainer.max_steps=30")
    assert done.code == 0, done.err
    assert all(float(row["train/loss"]) > 0 for row in read_metrics(RUN) if row["train/loss"])
