"""Figures for TensorBoard: when they are drawn, what they show, and after a resume."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from gptlit import load
from gptlit.charts.heat_map import Png
from gptlit.checkpoints import checkpoint
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.runs import event_files, figures, loggers
from tests.conftest import TINY, Result, Run, curves

Call = Callable[..., Result]
RUNS = Path("lightning_logs")
OPTIONS = [
    *TINY,
    "--trainer.val_check_interval=4",
    "--trainer.max_steps=12",
    "--samples.prompts=[]",
]
DRAWN = [*OPTIONS, "--figures.every=5"]
IMAGES = {"loss_by_position", "passage", "attention", "positions", "positions_cosine"}


def shown(folder: Path) -> dict[str, list[int]]:
    """Return the steps of each figure, counted from 0."""
    found: dict[str, list[int]] = {}
    for event in event_files.logged(folder, 99):
        for value in event.summary.value:
            if value.tag.startswith(("figures/", "weights/")):
                found.setdefault(value.tag, []).append(event.step)
    return found


def test_figures_are_drawn_at_validations_and_change_nothing(gptlit: Call, text_file: Path) -> None:
    data = f"--data.path={text_file}"
    assert gptlit("fit", *OPTIONS, data).code == 0
    assert not shown(RUNS / "version_0")
    more = ["--figures.weights=true", "--model.dropout=0"]
    assert gptlit("fit", *DRAWN, data, *more).code == 0
    tags = shown(RUNS / "version_1")
    # not at step 4; at 8, and then not before 13
    assert set(map(tuple, tags.values())) == {(7,)}
    net, tokenizer = load(RUNS / "version_1/checkpoints/last.ckpt")
    wanted = {f"figures/{name}" for name in {*IMAGES, "next_token_entropy"}}
    assert set(tags) == wanted | {f"weights/{name}" for name, _ in net.named_parameters()}
    one, other = (checkpoint.read(RUNS / f"version_{n}/checkpoints/last.ckpt") for n in (0, 1))
    for name, weight in one["state_dict"].items():
        assert torch.equal(weight, other["state_dict"][name])
    for event in event_files.logged(RUNS / "version_1", 99):
        for value in event.summary.value:
            if content := value.image.encoded_image_string:
                size = value.image.width, value.image.height
                assert Image.open(io.BytesIO(content)).size == size
    projector = RUNS / "version_1/projector"
    rows = np.loadtxt(projector / "tensors.tsv", delimiter="\t")
    assert np.allclose(rows, net.wte.weight.detach().numpy(), rtol=1e-3)
    labels = (projector / "metadata.tsv").read_text().splitlines()
    assert labels[0] == "id\ttoken"
    assert [line.split("\t")[1] for line in labels[1:3]] == ["\\n", "·"]
    assert len(labels) == tokenizer.vocab_size + 1


def test_a_resumed_run_draws_what_is_missing(gptlit: Call, text_file: Path) -> None:
    data = f"--data.path={text_file}"
    assert gptlit("fit", *DRAWN, data, "--model.ema=0.9").code == 0
    half = ["--trainer.max_steps=8", "--model.decay_steps=12", "--snapshot_every=8"]
    assert gptlit("fit", *DRAWN, data, "--model.ema=0.9", *half).code == 0
    path = RUNS / "version_1/checkpoints/step_8.ckpt"
    # a validation that is repeated logs them no second time
    records = torch.load(path, weights_only=True)[loggers.KEY]
    assert {f"figures/{name}" for name in IMAGES} <= loggers.restore(RUNS / "version_1", records, 8)
    steps = ["--trainer.max_steps=12", "--model.decay_steps=null"]
    assert gptlit("fit", f"--ckpt_path={path}", *steps).code == 0
    assert shown(RUNS / "version_1") == shown(RUNS / "version_0")
    assert curves(RUNS / "version_1") == curves(RUNS / "version_0")


def test_figures_are_logged_once_for_a_step(tmp_path: Path) -> None:
    writer = loggers.Curves(tmp_path, 0, {}, name="a", version="b")
    for step in (3, 3, 5):
        image = Png(b"image", 2, 3)
        writer.log_figures({"figures/x": image}, {"figures/y": torch.arange(9)}, step)
    assert shown(Path(writer.log_dir)) == {"figures/x": [3, 5], "figures/y": [3, 5]}


def test_losses_by_position_are_those_of_the_validation_text(run: Run) -> None:
    net, _ = load(run.folder / "checkpoints" / "last.ckpt")
    ids = torch.randint(
        0, net.config.vocab_size, (5, 9), generator=torch.Generator().manual_seed(1)
    )
    nats, entropies = figures.scored(net, ids)
    with torch.no_grad():
        logits = net.eval()(ids[:, :-1])
    wanted = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    assert torch.allclose(nats.flatten(), wanted, atol=1e-5)
    spread = torch.distributions.Categorical(logits=logits).entropy()
    assert torch.allclose(entropies, spread, atol=1e-5)


def test_a_deep_model_shows_some_of_its_layers() -> None:
    net = GPT(GPTConfig(vocab_size=5, n_layer=30, n_head=1, n_embd=2, block_size=4))
    ((name, image),) = figures.attention(net, torch.tensor([1, 2, 3]), ["a", "b", "c"])
    assert name == "figures/attention"
    assert image.height < 12 * 40 + 60
    without = GPT(
        GPTConfig(vocab_size=5, n_layer=1, n_head=1, n_embd=2, block_size=4, mixer="none")
    )
    assert not [*figures.attention(without, torch.tensor([1, 2]), ["a", "b"])]


def test_a_negative_interval_is_refused(gptlit: Call, text_file: Path) -> None:
    refused = gptlit("fit", *OPTIONS, f"--data.path={text_file}", "--figures.every=-1")
    assert refused.code == 2
    assert "--figures.every -1: must be 0 or more" in refused.err


@pytest.mark.parametrize(("text", "label"), [("a b", "a·b"), ("\n", "\\n"), ("\u4e2d", "\\u4e2d")])
def test_labels_have_only_signs_of_the_font(text: str, label: str) -> None:
    class Spelling:
        def piece(self, id_: int) -> bytes:
            return text.encode()

    assert figures.legible(Spelling(), 0) == label  # type: ignore[arg-type]
