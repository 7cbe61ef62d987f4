"""Figures of a model while it trains, for TensorBoard: attention, positions, next tokens, weights.

Drawing is imported when the first figures are due.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from gptlit.data.datamodule import TextDataModule
from gptlit.files import write_atomically
from gptlit.generation.generate import in_eval_mode
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT
from gptlit.model.positions import LearnedPositions
from gptlit.runs.loggers import Curves, Images
from gptlit.terminal import printable
from gptlit.tokenizers.base import Tokenizer
from gptlit.training import fsdp2
from gptlit.training.module import LitGPT

SCORED_TOKENS = 4096  # of the validation text, in whole windows
LOGITS_AT_ONCE = 1 << 20
ATTENDING = 24  # tokens whose attention is drawn
PASSAGE = 400  # tokens whose probabilities are drawn
MOST_MAPS = 12  # layers and heads in the figure of attention
MOST_POSITIONS = 256  # in the figures of learned positions
BUCKETS = 24  # of positions in the window
WORST = 6.0  # nats of a token in the darkest colour
PROJECTED = 2048  # tokens in the projector, the first ones of the vocabulary
NEWEST_GLYPH = "\u0180"  # the font has none from here on


@dataclass(frozen=True)
class FigureOptions:
    """Figures for TensorBoard: attention maps, loss by position, probabilities of a passage.

    Args:
        every: Least number of steps between two sets of figures, which are drawn after
            validations; 0 for none.
        weights: Also log histograms of all weights.
    """

    every: int = 250
    weights: bool = False

    def __post_init__(self) -> None:
        if self.every < 0:
            raise UsageError("must be 0 or more", "figures.every", self.every)


class Figures(Callback):
    """Draws figures after validations, and writes the embedding for TensorBoard's projector.

    They show the weights that are kept, and go to the run's own events only.
    """

    def __init__(self, **options: Any) -> None:
        self.options = FigureOptions(**options)
        self._drawn_at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"drawn_at": self._drawn_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._drawn_at = state_dict["drawn_at"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step, every, curves = trainer.global_step, self.options.every, _curves(trainer)
        if not every or curves is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        # all ranks gather a sharded net's weights, or none does
        if not trainer.strategy.broadcast(step - self._drawn_at >= every):
            return
        self._drawn_at = step
        assert isinstance(pl_module, LitGPT)
        with pl_module.kept_weights():
            if (net := fsdp2.whole(pl_module.net)) is None:
                return
            images, histograms = figures_of(net, pl_module.text)
            if self.options.weights:
                histograms |= {f"weights/{n}": p.detach() for n, p in net.named_parameters()}
        curves.log_figures(images, histograms, step - 1)  # as the metrics: counted from 0

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        curves = _curves(trainer)
        if not self.options.every or curves is None:
            return
        assert isinstance(pl_module, LitGPT)
        with pl_module.kept_weights():
            if (net := fsdp2.whole(pl_module.net)) is not None:
                write_projector(net, pl_module.text.tokenizer, Path(curves.log_dir))


def _curves(trainer: L.Trainer) -> Curves | None:
    return next((each for each in trainer.loggers if isinstance(each, Curves)), None)


# ---------------------------------------------------------------------- the figures


def figures_of(net: GPT, text: TextDataModule) -> tuple[Images, dict[str, Tensor]]:
    """Return the images of a net, and the values of its histograms, by their tags."""
    from gptlit.charts import heat_map

    ids = passage(text, net.config.block_size).to(net.wte.weight.device)  # (windows, T + 1)
    nats, entropies = scored(net, ids)
    first = [legible(text.tokenizer, id_) for id_ in ids[0].tolist()]
    shades = (nats[0, :PASSAGE] / WORST).clamp(max=1).tolist()
    title = f"A passage of the validation text; darkest: probability below e^-{WORST:g}"
    images: Images = {
        "figures/loss_by_position": loss_by_position(nats.mean(dim=0).tolist()),
        "figures/passage": heat_map.shaded(first[1 : PASSAGE + 1], shades, title),
    }
    for name, image in attention(net, ids[0, :-1][:ATTENDING], first[:-1][:ATTENDING]):
        images[name] = image
    if isinstance(net.wpe, LearnedPositions):
        images |= learned_positions(net.wpe.weight.detach())
    return images, {"figures/next_token_entropy": entropies}


def passage(text: TextDataModule, block_size: int) -> Tensor:
    """Return the first windows of the validation text, or else of the training text, (n, T + 1)."""
    tokens = text.tokens
    pieces = tokens.pieces("val" if tokens.size("val") > block_size else "train")
    n = max(1, SCORED_TOKENS // block_size)
    parts, left = [], n * block_size + 1
    for begin, end in pieces:
        parts.append(np.asarray(tokens.ids[begin : min(end, begin + left)]))
        left -= len(parts[-1])
    ids = torch.from_numpy(np.concatenate(parts).astype(np.int64))
    return ids.unfold(0, block_size + 1, block_size)


@torch.no_grad()
def scored(net: GPT, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the losses and the entropies of the predictions of (n, T + 1) ids, each (n, T), in
    nats."""
    from gptlit.insight.passages import scores_of

    n_rows = max(128, LOGITS_AT_ONCE // net.config.vocab_size)
    with in_eval_mode(net):
        hidden = net.hidden(ids[:, :-1]).flatten(0, 1).split(n_rows)  # (n_rows, C) each
        following = ids[:, 1:].flatten().split(n_rows)
        pairs = zip(hidden, following, strict=True)
        parts = [scores_of(net.logits(rows), next_ids, 1) for rows, next_ids in pairs]
    nats = torch.cat([-part.logprobs for part in parts])
    entropies = torch.cat([part.entropies for part in parts])
    shape = len(ids), ids.size(1) - 1
    return nats.view(shape).cpu(), entropies.view(shape).cpu()


def legible(tokenizer: Tokenizer, id_: int) -> str:
    """Return a token's text in characters that the figures' font has."""
    from gptlit.charts.heat_map import LINE_BREAK, SPACE
    from gptlit.insight.passages import spelled

    piece = spelled(tokenizer, id_).replace("\n", LINE_BREAK).replace(" ", SPACE)
    return "".join(c if c < NEWEST_GLYPH else ascii(c)[1:-1] for c in printable(piece))


def attention(net: GPT, ids: Tensor, names: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield the figure of the attention in a passage; none for a net without attention."""
    from gptlit.charts import heat_map
    from gptlit.insight.attention import attention_maps

    maps = attention_maps(net, ids)[:, :MOST_MAPS]  # (n_layer, n_head, T, T)
    if len(maps):
        shown = np.linspace(0, len(maps) - 1, min(len(maps), MOST_MAPS)).round().astype(int)
        values = maps.float().cpu().numpy()[shown]
        yield "figures/attention", heat_map.maps(values, names, "layer", "head", [*shown])


def loss_by_position(nats: list[float]) -> Any:
    """Draw the mean loss at each position of a window, 1 token of context first."""
    from gptlit.charts.axes import Panel, Point, Series, axis
    from gptlit.charts.heat_map import Png
    from gptlit.charts.layout import arrange
    from gptlit.charts.png import png

    edges = np.unique(np.geomspace(1, len(nats) + 1, BUCKETS + 1).round().astype(int))
    parts = list(itertools.pairwise(edges.tolist()))
    points = [Point(math.sqrt(a * (b - 1)), float(np.mean(nats[a - 1 : b - 1]))) for a, b in parts]
    x = axis("tokens of context", [point.x for point in points], log=True)
    y = axis("loss in nats", [point.y for point in points], log=False)
    picture = arrange("Loss by position in the window", [Panel([Series("", points)], x, y)])
    return Png(png(picture, scale=1), picture.width, picture.height)


def learned_positions(table: Tensor) -> Images:
    """Draw the learned rows of positions, (T, C), and the cosines between them."""
    from gptlit.charts import heat_map

    rows = table[:: math.ceil(len(table) / MOST_POSITIONS)].float().cpu()
    even = torch.nn.functional.normalize(rows, dim=1)
    cosines = (even @ even.T).numpy()
    limit = max(3 * float(rows.std(correction=0)), 1e-9)
    step = math.ceil(len(table) / MOST_POSITIONS)
    down = "position" if step == 1 else f"each {step}th position"
    return {
        "figures/positions": heat_map.matrix(
            rows.numpy(), limit, "Learned positions", "channel", down
        ),
        "figures/positions_cosine": heat_map.matrix(
            cosines, 1.0, "Cosine between learned positions", down, down
        ),
    }


# ---------------------------------------------------------------------- the projector


def write_projector(net: GPT, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the embedding of the first tokens, with labels, for TensorBoard's projector."""
    rows = net.wte.weight.detach()[:PROJECTED].float().cpu().tolist()
    rows = rows[: tokenizer.vocab_size]
    tensors = "".join("\t".join(f"{value:.4g}" for value in row) + "\n" for row in rows)
    labels = "".join(f"{id_}\t{legible(tokenizer, id_)}\n" for id_ in range(len(rows)))
    config = (
        'embeddings {\n  tensor_name: "wte"\n  tensor_path: "projector/tensors.tsv"\n'
        '  metadata_path: "projector/metadata.tsv"\n}\n'
    )
    (folder / "projector").mkdir(exist_ok=True)
    write_atomically(folder / "projector" / "tensors.tsv", tensors.encode())
    write_atomically(folder / "projector" / "metadata.tsv", f"id\ttoken\n{labels}".encode())
    write_atomically(folder / "projector_config.pbtxt", config.encode())
