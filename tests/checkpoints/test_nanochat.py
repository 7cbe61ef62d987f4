"""nanochat's checkpoints, against an independent model; no code of theirs is run."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch

from gptlit.checkpoints import checkpoint
from gptlit.cli.convert import import_
from gptlit.messages import UsageError
from tests.checkpoints.reference_models import Weights, nanochat_logits

SPECIAL = {"<|bos|>": 257, "<|user_start|>": 258}
V, C, HEADS, KV = 259, 16, 4, 2
OPTIONS: dict[str, Any] = {
    "sequence_len": 8,
    "vocab_size": V,
    "n_layer": 2,
    "n_head": HEADS,
    "n_kv_head": KV,
    "n_embd": C,
}
IDS = torch.tensor([3, 200, 4, 1, 257, 9])


def encoding() -> tiktoken.Encoding:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"th": 256}
    return tiktoken.Encoding("rustbpe", pat_str=r"\w+|\W", mergeable_ranks=ranks,
                             special_tokens=SPECIAL)  # fmt: skip


def random_weights() -> Weights:
    shapes = {"transformer.wte.weight": (V, C), "lm_head.weight": (V, C)}
    for n in range(2):
        at, kv_rows = f"transformer.h.{n}.", KV * C // HEADS
        shapes |= {
            f"{at}attn.c_q.weight": (C, C),
            f"{at}attn.c_k.weight": (kv_rows, C),
            f"{at}attn.c_v.weight": (kv_rows, C),
            f"{at}attn.c_proj.weight": (C, C),
            f"{at}mlp.c_fc.weight": (4 * C, C),
            f"{at}mlp.c_proj.weight": (C, 4 * C),
        }
    return {f"_orig_mod.{name}": torch.randn(shape) for name, shape in shapes.items()}


def write(folder: Path, weights: Weights, **more: Any) -> Path:
    torch.save(weights, folder / "model_000012.pt")
    meta = {"step": 12, "model_config": OPTIONS | more}
    (folder / "meta_000012.json").write_text(json.dumps(meta))
    (folder / "tokenizer.pkl").write_bytes(pickle.dumps(encoding()))
    return folder / "model_000012.pt"


@torch.no_grad()
def test_weights_and_tokenizer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weights = random_weights()
    import_(["nanochat", str(write(tmp_path, weights, window_pattern="L"))])
    model, tokenizer = checkpoint.load(tmp_path / "model_000012.ckpt")
    named = {name.removeprefix("_orig_mod."): each for name, each in weights.items()}
    expected = nanochat_logits(named, IDS, HEADS, torch.finfo(torch.float32).eps)
    torch.testing.assert_close(model.eval()(IDS[None])[0], expected, atol=1e-4, rtol=1e-4)
    assert tokenizer.encode("the th").tolist() == encoding().encode("the th")
    assert tokenizer.special_ids == SPECIAL


def refused(path: Path, reason: str, *more: str) -> None:
    with pytest.raises(UsageError, match=rf"^gptlit import nanochat: .*{reason}"):
        import_(["nanochat", str(path), *more])


def test_other_versions_are_refused_by_the_part(tmp_path: Path) -> None:
    weights = random_weights()
    refused(write(tmp_path, weights, window_pattern="SSL"), "window_pattern 'SSL'")
    later = weights | {"_orig_mod.resid_lambdas": torch.ones(2)}
    refused(write(tmp_path, later), "resid_lambdas: a part that gptlit's GPT doesn't have")
    del weights["_orig_mod.lm_head.weight"]
    refused(write(tmp_path, weights), "lack lm_head.weight")
    refused(write(tmp_path, random_weights(), n_embd=32), r"wte.weight is of shape \(259, 16\)")
    refused(write(tmp_path, random_weights(), n_head="4"), "n_head '4'")
    (tmp_path / "meta_000012.json").unlink()
    refused(tmp_path / "model_000012.pt", "meta_000012.json: no such file next to")


class Harmful:
    """Runs code where it is unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("code of a pickle was run",))


def test_no_code_of_a_tokenizer_is_run(tmp_path: Path) -> None:
    path = write(tmp_path, random_weights())
    other = tmp_path / "other.pkl"
    other.write_bytes(pickle.dumps(Harmful()))
    refused(path, "other.pkl: refused", str(other))
    # an Encoding with harm in its state
    state = {"name": "x", "pat_str": "x", "mergeable_ranks": {}, "special_tokens": Harmful()}
    made = encoding()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken.Encoding, "__getstate__", lambda self: state)
        other.write_bytes(pickle.dumps(made))
    refused(path, "other.pkl: refused", str(other))
    other.write_bytes(pickle.dumps({"name": "x"}))
    refused(path, "other.pkl: .*has no pat_str", str(other))
