"""The checks before a run pass a correct model, and each fails on the fault that it looks for."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from gptlit.cli import preflight
from gptlit.cli.preflight import Batch
from gptlit.model import attention
from gptlit.model.gpt import GPT, GPTConfig, TokenShift
from gptlit.optim.optimizers import Recipe
from gptlit.training.module import LitGPT
from tests.conftest import TINY, Result, Run

Call = Callable[..., Result]
FAST = Recipe(lr=1e-2, warmup_steps=5)


def gpt(**options: object) -> GPT:
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 6}
    return GPT(GPTConfig(**{**sizes, **options})).eval()  # type: ignore[arg-type]  # any option


def batches(n: int = 4, vocab_size: int = 11) -> Iterator[Batch]:
    drawn = torch.Generator().manual_seed(0)
    for _ in range(n):
        windows = torch.randint(vocab_size, (3, 7), generator=drawn)  # (B, T + 1)
        yield windows[:, :-1], windows[:, 1:]


def batch() -> Batch:
    return next(batches())


def uncausal(q: Tensor, k: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, v)


# ---------------------------------------------------------------------- each check


def test_shapes() -> None:
    assert preflight.shapes(gpt(), batch()).passed
    model = gpt()
    model.config = GPTConfig(vocab_size=12)
    line = str(preflight.shapes(model, batch()))
    assert line == "FAIL  shapes      logits (3, 6, 11), not (3, 6, 12)"


def test_logits_that_are_not_finite() -> None:
    model = gpt()
    with torch.no_grad():
        model.ln_f.weight.fill_(math.inf)
    assert not preflight.shapes(model, batch()).passed


def test_shift() -> None:
    inputs, targets = batch()
    result = preflight.shift(gpt(), (inputs, targets))
    assert (result.passed, result.finding) == (
        True,
        "targets are inputs shifted by one, 15 compared",
    )
    unshifted = preflight.shift(gpt(), (inputs, inputs))
    assert not unshifted.passed
    assert "of 15 targets are not the input that follows" in unshifted.finding
    targets = targets.clone()
    targets[0, 2:] = -100  # not scored, so not compared
    assert "12 compared" in preflight.shift(gpt(), (inputs, targets)).finding


def test_ids_outside_the_vocabulary() -> None:
    result = preflight.shift(gpt(vocab_size=5), batch())
    assert not result.passed
    assert "vocabulary 5" in result.finding


def test_first_loss_by_initialisation() -> None:
    silent = preflight.first_loss(gpt(zero_init=True, tie_weights=False), batch())
    assert (silent.passed, silent.finding) == (
        True,
        f"{math.log(11):.3f}; ln(V) {math.log(11):.3f}",
    )
    assert preflight.first_loss(gpt(), batch()).passed
    assert preflight.first_loss(gpt(init="torch"), batch()).passed is None
    assert preflight.first_loss(gpt(), batch(), new=False).passed is None
    model = gpt()
    with torch.no_grad():
        model.wte.weight.mul_(100)
    assert preflight.first_loss(model, batch()).passed is False


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"zero_init": True},
        {"mixer": "none"},
        {"token_shift": 2, "qk_norm": True, "norm_place": "post"},
        {"positions": "rotary", "norm": "rms", "activation": "swiglu", "n_kv_head": 1},
        {"n_layer": 0, "block_size": 6},
    ],
)
def test_causal_models_pass(options: dict) -> None:
    assert preflight.causality(gpt(**options), batch()).passed


@pytest.mark.parametrize("options", [{}, {"zero_init": True}])
def test_a_model_that_sees_later_tokens_fails(
    options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose branches start at zero fails too."""
    monkeypatch.setitem(attention.BACK_ENDS, "sdpa", uncausal)
    result = preflight.causality(gpt(**options), batch())
    assert not result.passed
    assert "moves logits before it" in result.finding


def test_a_model_that_sees_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.Embedding, "forward", lambda self, idx: self.weight[idx * 0])
    assert "moves no logit" in preflight.causality(gpt(), batch()).finding


@pytest.mark.parametrize("options", [{}, {"zero_init": True, "tie_weights": False}])
def test_gradients_reach_every_parameter(options: dict) -> None:
    model = gpt(**options)
    n_tensors = sum(1 for _ in model.parameters())
    result = preflight.gradients(model, batch(), FAST)
    assert (result.passed, result.finding) == (True, f"reach all {n_tensors} parameter tensors")


def test_a_parameter_that_no_gradient_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenShift, "forward", lambda self, x, cache: x)
    result = preflight.gradients(gpt(token_shift=2), batch(), FAST)
    assert not result.passed
    assert result.finding == "none reaches h.0.attn.shift.shares.0 and 7 more"


def test_memorising() -> None:
    result = preflight.memorises(gpt(), batches(), FAST)
    assert result.passed, result.finding
    assert "loss 0.00" in result.finding


def test_a_model_without_a_mixer_is_skipped() -> None:
    assert preflight.memorises(gpt(mixer="none"), batches(), FAST).passed is None


def test_a_model_that_can_not_memorise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "MAX_STEPS", 30)
    result = preflight.memorises(gpt(n_embd=2, n_layer=1), batches(), FAST)
    assert result.passed is False
    assert "after 30 steps" in result.finding
    assert result.finding.endswith("lower --model.lr?")


def test_the_learning_rate_has_a_minimum() -> None:
    recipe = Recipe(lr=1e-5, min_lr=0, warmup_steps=1)
    assert [preflight.rate(recipe, step) for step in (0, 1, 2)] == [5e-4, 1e-3, 1e-3]
    assert preflight.rate(Recipe(lr=2e-3, warmup_steps=10_000), 100) == 2e-3


def test_windows_with_distinct_first_tokens() -> None:
    inputs, targets = preflight.distinct_windows(batches(40), wanted=16)
    assert sorted(inputs[:, 0].tolist()) == list(range(11))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    few, _ = preflight.distinct_windows(batches(40), wanted=4)
    assert len(few) == 4


def test_a_broken_checkpoint(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    import gptlit

    model, tokenizer = gptlit.load(run.folder / "checkpoints" / "last.ckpt")
    inputs = torch.randint(model.config.vocab_size, (2, 8))
    assert preflight.round_trip(model, (inputs, inputs), tokenizer).passed

    def lossy(self: GPT, *_: object, **__: object) -> dict[str, Tensor]:
        return {name: p.half().float() for name, p in nn.Module.state_dict(self).items()}

    monkeypatch.setattr(GPT, "state_dict", lossy)
    result = preflight.round_trip(model, (inputs, inputs), tokenizer)
    assert not result.passed
    assert "logits differ" in result.finding


def test_the_model_is_unchanged(run: Run) -> None:
    import gptlit

    _, tokenizer = gptlit.load(run.folder / "checkpoints" / "last.ckpt")
    model = gpt(vocab_size=tokenizer.vocab_size).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    lines: list[str] = []
    windows = batches(vocab_size=tokenizer.vocab_size)
    assert preflight.check_all(model, tokenizer, windows, FAST, print_line=lines.append), lines
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert lines[-1] == "preflight: pass"


# ---------------------------------------------------------------------- gptlit fit --preflight

CHECKS = ["shapes", "shift", "first loss", "causality", "gradients", "checkpoint", "memorises"]


def fit(gptlit: Call, text: Path, *options: object) -> Result:
    return gptlit("fit", *TINY, f"--data.path={text}", "--model.lr=1e-2", *options)


@pytest.mark.parametrize("flag", [["--preflight"], ["--preflight", "true"]])
def test_a_sound_config_passes(gptlit: Call, text_file: Path, flag: list[str]) -> None:
    result = fit(gptlit, text_file, *flag, "--data.batch_size=8")
    assert result.code == 0, result.out + result.err
    *checks, verdict = result.out.splitlines()
    assert [line[6:18].strip() for line in checks] == CHECKS
    assert all(line.startswith("pass") for line in checks)
    assert verdict == "preflight: pass"
    assert not Path("lightning_logs").exists()


def test_a_model_that_is_not_causal_fails(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.BACK_ENDS, "sdpa", uncausal)
    result = fit(gptlit, text_file, "--preflight")
    assert result.code == 1
    assert "FAIL  causality" in result.out
    assert result.out.endswith("preflight: fail\n")
    assert not Path("lightning_logs").exists()


def test_a_config_that_can_not_memorise_fails(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "MAX_STEPS", 100)
    narrow = ["--model.n_embd=2", "--model.n_head=1"]
    result = fit(gptlit, text_file, "--preflight", *narrow)
    assert result.code == 1
    assert "FAIL  memorises" in result.out


def test_nothing_is_trained(gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(LitGPT, "training_step", trained)
    assert fit(gptlit, text_file, "--preflight", "--model.mixer=none").code == 0


def test_the_option_in_the_environment_and_in_a_config(
    gptlit: Call, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("GPTLIT_FIT__PREFLIGHT", "true")
        printed = fit(gptlit, text_file, "--model.mixer=none").out
    assert "skip  memorises   can't" in printed
    assert printed.endswith("preflight: pass\n")
    Path("checked.yaml").write_text("preflight: true\nmodel: {mixer: none}\n")
    assert "preflight: pass" in fit(gptlit, text_file, "--config=checked.yaml").out


def test_the_option_is_not_saved_with_a_run(gptlit: Call, text_file: Path) -> None:
    assert fit(gptlit, text_file, "--preflight=false", "--trainer.max_steps=1").code == 0
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert "preflight" not in saved


def test_the_option_is_for_fit_only(gptlit: Call, run: Run) -> None:
    result = gptlit("validate", f"--ckpt_path={run.folder}/checkpoints/last.ckpt", "--preflight")
    assert result.code == 2
    assert "--preflight true: is an option of fit only" in result.err
