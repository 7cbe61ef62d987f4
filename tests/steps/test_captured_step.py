"""Training steps captured as graphs equal eager ones, with a stand-in for CUDA on the CPU."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gptlit.checkpoints import checkpoint
from gptlit.devices.graphs import WARM_UP
from gptlit.generation import captured
from gptlit.optim import optimizers
from gptlit.optim.ema import Average
from gptlit.optim.optimizers import Recipe
from gptlit.steps import chunked_loss
from gptlit.steps.captured_step import MOST_SHAPES, CapturedStep
from tests.conftest import TINY, Result, timeless
from tests.recorded_graphs import RecordedGraphs

Call = Callable[..., Result]
Graphs = list[RecordedGraphs]
RUNS = Path("lightning_logs")
STEPS = 12
# without biases: the gradient of a key's bias is 0 but for rounding, which Adam would scale up
BASE = [
    *TINY,
    f"--trainer.max_steps={STEPS}",
    "--trainer.val_check_interval=5",
    "--trainer.gradient_clip_val=0.5",
    "--trainer.log_every_n_steps=1",
    "--model.warmup_steps=4",
    "--model.lr=0.01",
    "--model.bias=false",
    "--samples.prompts=[]",  # which would be written by graphs as well
]
MUON = ["--model.optimizer=muon", "--model.muon_lr=0.01"]
OPTIONS = {
    "adamw": ["--model.dropout=0.1"],
    "adam": ["--model.optimizer=adam", "--model.tie_weights=false"],
    "sgd": ["--model.optimizer=sgd", "--model.lr=0.1", "--model.dropout=0.2"],
    "muon": [*MUON, "--model.ema=0.9", "--model.dropout=0.1", "--model.token_shift=2"],
    "muon as published": [*MUON, "--model.muon_beta2=null"],
    "accumulated": [
        "--data.batch_size=2",
        "--trainer.accumulate_grad_batches=2",
        "--model.dropout=0.1",
        "--model.ema=0.99",
    ],
    # several epochs, of 9 batches: limits are rounded up to whole steps
    "epochs": [
        "--data.batch_size=2",
        "--trainer.accumulate_grad_batches=3",
        "--trainer.limit_train_batches=8",
        "--trainer.val_check_interval=6",
    ],
    "objective": ["--model.label_smoothing=0.1", "--model.z_loss=1e-3", "--model.norm=rms"],
    "bf16": ["--trainer.precision=bf16-mixed", "--model.dropout=0.1"],
    "noise": ["--model.token_dropout=0.1", "--model.token_noise=0.05"],
    "unclipped": ["--trainer.gradient_clip_val=null", "--model.schedule=wsd"],
}


def fit(gptlit: Call, text: Path, compile_: str, *options: object) -> Result:
    result = gptlit("fit", *BASE, f"--data.path={text}", *options, f"--model.compile={compile_}")
    assert result.code == 0, result.err
    return result


def assert_close(one: Any, other: Any, where: str = "", rtol: float = 2e-4) -> None:
    """Assert equality up to rounding, which the first steps of Adam and of Muon scale up."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_close(one[key], other[key], f"{where}[{key!r}]", rtol)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_close(*pair, f"{where}[{index}]", rtol)
    elif isinstance(one, Tensor):
        torch.testing.assert_close(
            one, other, rtol=rtol, atol=rtol / 10, msg=lambda m: f"{where} {m}"
        )
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=rtol, abs=rtol / 10), where
    else:
        assert one == other, where


def numbers(run: Path) -> list[dict[str, float]]:
    rows = timeless(run)
    return [{name: float(value) for name, value in row.items() if value} for row in rows]


def assert_alike(one: Path, other: Path, rtol: float = 2e-4) -> None:
    """Assert that two runs logged and saved the same up to rounding."""
    assert_close(numbers(one), numbers(other), rtol=rtol)
    contents = [checkpoint.read(run / "checkpoints" / "last.ckpt") for run in (one, other)]
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "loops", "averaged"):
        assert_close(*(content.get(part) for content in contents), part, rtol)
    epochs = [content[checkpoint.KEY]["epoch_loss"] for content in contents]
    assert_close(*epochs, "epoch_loss", rtol)


@pytest.mark.parametrize("name", OPTIONS)
def test_captured_steps_equal_eager_ones(
    gptlit: Call,
    text_file: Path,
    recorded_graphs: Graphs,
    name: str,
) -> None:
    fit(gptlit, text_file, "false", *OPTIONS[name])
    assert not recorded_graphs
    result = fit(gptlit, text_file, "graph", *OPTIONS[name])
    assert "compile    graph (as given)" in result.out
    assert "warning" not in result.err
    (used,) = recorded_graphs
    n_batches = {"accumulated": 2 * STEPS, "epochs": 3 * STEPS}.get(name, STEPS)
    # one graph for each place in a step, and one for the update
    n_graphs = {"accumulated": 3, "epochs": 4}.get(name, 2)
    assert used.captures == n_graphs
    assert used.warm_ups == WARM_UP * n_graphs
    assert used.replays == n_batches + STEPS - used.warm_ups
    # a difference of a last bit can become one of a last bit of bfloat16
    assert_alike(RUNS / "version_0", RUNS / "version_1", 1e-2 if name == "bf16" else 2e-4)
    rates = [row["optim/lr"] for row in numbers(RUNS / "version_1") if "optim/lr" in row]
    assert len(set(rates)) > STEPS // 2


@pytest.mark.parametrize("kind", ["teachers", "chunks", "checkpointing", "lora"])
def test_other_objectives_are_captured_too(
    gptlit: Call,
    text_file: Path,
    recorded_graphs: Graphs,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options: list[str] = []
    if kind == "teachers":
        fit(gptlit, text_file, "false")
        teacher = RUNS / "version_0" / "checkpoints" / "last.ckpt"
        options = [f"--model.teachers=[{teacher}]", "--model.distill_temperature=2"]
    if kind == "chunks":
        monkeypatch.setattr(chunked_loss, "rows_at_once", lambda *_: 8)
        options = ["--model.label_smoothing=0.1", "--model.logit_softcap=20"]
    if kind == "checkpointing":
        options = ["--model.activation_checkpointing=true"]
    if kind == "lora":
        fit(gptlit, text_file, "false")
        base = RUNS / "version_0" / "checkpoints" / "last.ckpt"
        options = [f"--model.init_from={base}", "--model.lora_r=2", "--model.lora_dropout=0.2"]
        options += ["--model.ema=0.9", "--model.activation_checkpointing=true"]
    start = len(list(RUNS.glob("*")))
    fit(gptlit, text_file, "false", *options)
    result = fit(gptlit, text_file, "graph", *options)
    assert "not captured" not in result.err
    assert recorded_graphs[0].captures == 2
    assert_alike(RUNS / f"version_{start}", RUNS / f"version_{start + 1}")


@pytest.mark.parametrize(
    ("first", "second"), [("graph", "graph"), ("graph", "false"), ("false", "graph")]
)
def test_runs_resume_with_and_without_graphs(
    gptlit: Call,
    text_file: Path,
    recorded_graphs: Graphs,
    first: str,
    second: str,
) -> None:
    options = [*OPTIONS["muon"], "--snapshot_every=7"]
    fit(gptlit, text_file, "false", *options)
    fit(gptlit, text_file, first, *options)
    saved = RUNS / "version_1" / "checkpoints" / "step_7.ckpt"
    content = checkpoint.read(saved)
    (groups,) = [state["param_groups"] for state in content["optimizer_states"]]
    assert all(type(group["lr"]) is float for group in groups)
    resumed = gptlit("fit", f"--ckpt_path={saved}", f"--model.compile={second}")
    assert resumed.code == 0, resumed.err
    assert_alike(RUNS / "version_0", RUNS / "version_1")
    assert len(recorded_graphs) == (first, second).count("graph")


def test_a_resumed_captured_run_equals_a_whole_one_bit_for_bit(
    gptlit: Call,
    text_file: Path,
    recorded_graphs: Graphs,
) -> None:
    options = [*OPTIONS["accumulated"], "--snapshot_every=7"]
    fit(gptlit, text_file, "graph", *options)
    whole = timeless(RUNS / "version_0")
    weights = checkpoint.read(RUNS / "version_0/checkpoints/last.ckpt")["state_dict"]
    saved = RUNS / "version_0" / "checkpoints" / "step_7.ckpt"
    resumed = gptlit("fit", f"--ckpt_path={saved}")
    assert resumed.code == 0, resumed.err
    assert timeless(RUNS / "version_0") == whole
    again = checkpoint.read(RUNS / "version_0/checkpoints/last.ckpt")["state_dict"]
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    assert [used.captures for used in recorded_graphs] == [3, 3]


def test_a_run_that_was_not_fused_resumes_fused(
    gptlit: Call, text_file: Path, recorded_graphs: Graphs
) -> None:
    """As one of another device or precision, whose saved value would replace the optimizer's."""
    fit(gptlit, text_file, "false", "--snapshot_every=7")
    file = RUNS / "version_0" / "checkpoints" / "step_7.ckpt"
    content = torch.load(file, weights_only=True)
    for group in content["optimizer_states"][0]["param_groups"]:
        assert group["fused"] is True
        group["fused"] = None
    torch.save(content, file)
    resumed = gptlit("fit", f"--ckpt_path={file}", "--model.compile=graph")
    assert resumed.code == 0, resumed.err
    content = torch.load(RUNS / "version_0/checkpoints/last.ckpt", weights_only=True)
    assert all(group["fused"] for group in content["optimizer_states"][0]["param_groups"])
    assert recorded_graphs[0].captures == 2


def test_graphs_of_samples_end_with_the_run(
    gptlit: Call, text_file: Path, recorded_graphs: Graphs
) -> None:
    fit(gptlit, text_file, "graph", "--samples.prompts=['the']", "--model.dropout=0.1")
    assert [used.draws for used in recorded_graphs] == [True, False, False]
    assert not captured._KEPT


def test_a_failing_capture_trains_the_same(
    gptlit: Call,
    text_file: Path,
    recorded_graphs: Graphs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fit(gptlit, text_file, "false", *OPTIONS["muon"])

    def fail(self: RecordedGraphs, function: Callable[[], None]) -> Callable[[], None]:
        self.fails = True
        return RecordedGraphs.recorded(self, function)

    monkeypatch.setattr(RecordedGraphs, "recorded", RecordedGraphs.capture, raising=False)
    monkeypatch.setattr(RecordedGraphs, "capture", fail)
    result = fit(gptlit, text_file, "graph", *OPTIONS["muon"])
    line = "training steps are not captured as CUDA graphs: NotCapturable: as the test wants it"
    assert result.err.count(line) == 1
    assert_alike(RUNS / "version_0", RUNS / "version_1")
    assert [used.captures for used in recorded_graphs] == [1]


# ---------------------------------------------------------------------- the step itself


class Kit:
    """A small net with its optimizer, and batches of any length."""

    def __init__(self, average: bool = True) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Embedding(9, 6), nn.Tanh(), nn.Linear(6, 9, bias=False))
        self.unused = nn.Parameter(torch.ones(3))
        named = nn.ParameterDict({"h": nn.ParameterList([*self.net.parameters(), self.unused])})
        self.optimizer = optimizers.build(named, Recipe(optimizer="muon"), fused=True)
        self.average = Average(self.net, 0.9) if average else None
        self.reasons: list[str] = []

    def captured(self) -> CapturedStep:
        return CapturedStep(self.objective, self.optimizer, self.average, self.reasons.append)

    def objective(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = nn.functional.cross_entropy(self.net(inputs).flatten(0, 1), targets.flatten())
        return loss, loss.detach()

    def eager(self, number: int, length: int, clip: float = 0.3) -> None:
        loss, _ = self.objective(*batch(number, length))
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(optimizers.parameters(self.optimizer), clip)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()

    def step(self, captured: CapturedStep, number: int, length: int, clip: float = 0.3) -> None:
        captured.clip = clip
        captured.accumulate(*batch(number, length), 1, is_first=True, is_last=True)
        self.optimizer.step()

    def rate(self, number: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = 0.003 * (number + 1)

    def weights(self) -> list[Tensor]:
        averaged = list(self.average.averaged().values()) if self.average else []
        return [*(weight.detach().clone() for weight in self.net.parameters()), *averaged]


def batch(number: int, length: int = 5) -> tuple[Tensor, Tensor]:
    ids = torch.randint(9, (2, length + 1), generator=torch.Generator().manual_seed(number))
    return ids[:, :-1], ids[:, 1:]


def test_batches_of_some_shapes_are_captured_and_others_run_eagerly(
    recorded_graphs: Graphs, capsys: pytest.CaptureFixture[str]
) -> None:
    lengths = [3 + number % (MOST_SHAPES + 2) for number in range(6 * (MOST_SHAPES + 2))]
    one, other = Kit(), Kit()
    captured = other.captured()
    for number, length in enumerate(lengths):
        one.rate(number)
        other.rate(number)
        one.eager(number, length)
        other.step(captured, number, length)
        assert_close(other.weights(), one.weights(), str(number))
    assert recorded_graphs[0].captures == MOST_SHAPES + 1
    assert capsys.readouterr().err.count("batches have more than 4 shapes") == 1
    assert other.unused.grad is None
    assert torch.equal(other.unused, torch.ones(3))


def test_a_loaded_state_is_captured_anew(recorded_graphs: Graphs) -> None:
    """Loading replaces the tensors that graphs have read."""
    one, other = Kit(), Kit()
    captured = other.captured()
    for number in range(16):
        if number == 8:
            other.optimizer.load_state_dict(other.optimizer.state_dict())
        one.eager(number, 5)
        other.step(captured, number, 5)
    assert_close(other.weights(), one.weights())
    assert [used.captures for used in recorded_graphs] == [2, 2]
    assert [used.replays for used in recorded_graphs] == [2 * 5, 2 * 5]


@pytest.mark.parametrize("name", ["weight_decay", "momentum", "betas", "clip"])
def test_other_numbers_may_change(recorded_graphs: Graphs, name: str) -> None:
    """A graph would keep those of its capture."""
    one, other = Kit(), Kit()
    captured, clip = other.captured(), 0.3

    def change(value: Any) -> None:
        for group in (each for kit in (one, other) for each in kit.optimizer.param_groups):
            group[name] = value if name in group else None
            if group[name] is None:
                del group[name]

    for number in range(16):
        if number == 8:
            if name == "clip":
                clip = 0.05
            else:
                change((0.5, 0.6) if name == "betas" else 0.7)
        one.eager(number, 5, clip)
        other.step(captured, number, 5, clip)
        assert_close(other.weights(), one.weights(), str(number))
    assert [used.captures for used in recorded_graphs] == [2, 2]


def test_gradients_and_norm_are_those_of_the_step(recorded_graphs: Graphs) -> None:
    one, other = Kit(average=False), Kit(average=False)
    captured = other.captured()
    for number in range(8):
        # as Lightning does before a validation
        other.optimizer.zero_grad(set_to_none=True)
        loss, _ = one.objective(*batch(number))
        one.optimizer.zero_grad()
        loss.backward()
        minimised, _ = captured.accumulate(*batch(number), 1, is_first=True, is_last=True)
        gradients = [weight.grad for weight in one.net.parameters()]
        assert_close([weight.grad for weight in other.net.parameters()], gradients)
        assert_close(captured.norm, optimizers.total_norm(gradients))  # type: ignore[arg-type]
        assert minimised.item() == pytest.approx(loss.item())
        one.optimizer.step()
        other.optimizer.step()
    assert_close(other.weights(), one.weights())


def test_hooks_of_the_optimizer_end_capturing(recorded_graphs: Graphs) -> None:
    one, other = Kit(), Kit()
    captured = other.captured()
    seen: list[int] = []
    for number in range(8):
        if number == 6:
            other.optimizer.register_step_post_hook(lambda *_: seen.append(1))
        one.eager(number, 5)
        other.step(captured, number, 5)
    assert_close(other.weights(), one.weights())
    assert other.reasons == ["the optimizer has hooks"]
    assert len(seen) == 2


def test_the_stand_in_finds_a_rate_that_is_a_number(
    recorded_graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the other tests would show nothing."""
    one, other = Kit(), Kit()
    captured = other.captured()
    monkeypatch.setattr("gptlit.steps.captured_step.rates_on_device", lambda *_: nullcontext())
    for number in range(8):
        one.rate(number)
        other.rate(number)
        one.eager(number, 5)
        other.step(captured, number, 5)
    with pytest.raises(AssertionError):
        assert_close(other.weights(), one.weights())
