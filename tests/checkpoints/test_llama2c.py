"""Files of llama2.c, against an independent model and an independent tokenizer."""

import math
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gptlit.checkpoints import checkpoint
from gptlit.checkpoints.llama2c import read_llama2c
from gptlit.cli.convert import import_
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT
from tests.checkpoints.reference_models import Weights, llama_logits, random_llama

PIECES = ["t", "h", "e", " ", "s", "u", "n", "th", " th", " the", "he", "un", " s", " sun"]
# later merges have lower scores; single characters are never merged to
SCORES = [*[-1e9] * 7, -1.0, -2.0, -3.0, -2.5, -4.0, -5.0, -6.0]
V = 259 + len(PIECES)
SIZES = (2, 16, 4, 2, 24, V)
IDS = torch.tensor([3, 200, 4, 1, 259, 9])


def write_weights(path: Path, weights: Weights, version: int) -> None:
    def stacked(name: str) -> list[Tensor]:
        return [weights[f"model.layers.{n}.{name}.weight"] for n in range(2)]

    attention = [each for name in "qkvo" for each in stacked(f"self_attn.{name}_proj")]
    mlp = [each for name in ("gate", "down", "up") for each in stacked(f"mlp.{name}_proj")]
    norms = [stacked(name) for name in ("input_layernorm", "post_attention_layernorm")]
    top = [weights["model.norm.weight"], weights["model.embed_tokens.weight"]]
    head = [weights["lm_head.weight"]] if "lm_head.weight" in weights else []
    sizes = (16, 24, 2, 4, 2, V, 8)
    if version == 0:
        sizes = (*sizes[:5], -V if head else V, 8)
        begin = struct.pack("<7i", *sizes)
        unused = [torch.full((8, 2), torch.nan)] * 2  # cosines and sines
        order = [top[1], *norms[0], *attention, *norms[1], *mlp, top[0], *unused, *head]
    else:
        begin = struct.pack("<Ii7iB", 0x616B3432, version, *sizes, not head).ljust(256, b"\0")
        order = [*norms[0], *norms[1], *top, *attention, *mlp, *head]
    path.write_bytes(begin + b"".join(each.numpy().astype("<f4").tobytes() for each in order))


def write_tokenizer(path: Path) -> None:
    tokens = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    with path.open("wb") as file:
        file.write(struct.pack("<i", 4))
        for token, score in zip(tokens, [0.0] * 259 + SCORES, strict=True):
            file.write(struct.pack("<fi", score, len(token.encode())) + token.encode())


def encoded(text: str) -> list[int]:
    """Encode as llama2.c does: bytes or characters, then the best pair, repeatedly."""
    ids = []
    for character in f" {text}" if text else "":
        single = [259 + PIECES.index(character)] if character in PIECES else None
        ids += single or [byte + 3 for byte in character.encode()]
    while True:
        best = (-math.inf, -1, -1)
        for at in range(len(ids) - 1):
            if min(ids[at], ids[at + 1]) >= 259:
                joined = PIECES[ids[at] - 259] + PIECES[ids[at + 1] - 259]
                if joined in PIECES and SCORES[PIECES.index(joined)] > best[0]:
                    best = (SCORES[PIECES.index(joined)], at, 259 + PIECES.index(joined))
        if best[1] < 0:
            return ids
        ids[best[1] : best[1] + 2] = [best[2]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    write_tokenizer(tmp_path / "tokenizer.bin")
    return tmp_path


@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("tied", [True, False])
@torch.no_grad()
def test_weights_and_tokenizer(folder: Path, version: int, tied: bool) -> None:
    weights = random_llama(*SIZES, tied=tied)
    write_weights(folder / "model.bin", weights, version)
    import_(["llama2c", str(folder / "model.bin")])
    model, tokenizer = checkpoint.load(folder / "model.ckpt")
    assert isinstance(model, GPT)
    assert model.config.tie_weights == tied
    expected = llama_logits(weights, IDS, 4, eps=1e-5, base=10_000.0, pairs="neighbours")
    torch.testing.assert_close(model.eval()(IDS[None])[0], expected, atol=1e-4, rtol=1e-4)
    for text in ("the sun", "then  the un", "sunthe", "è the\nsun", " ", ""):
        assert tokenizer.encode(text).tolist() == encoded(text), text
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.start_id == 1


def test_torn_and_other_files_are_refused(folder: Path) -> None:
    path = folder / "model.bin"
    write_weights(path, random_llama(*SIZES), 1)
    whole = path.read_bytes()

    def refused(content: bytes, reason: str) -> None:
        path.write_bytes(content)
        with pytest.raises(UsageError, match=rf"^gptlit import llama2c: .*{reason}"):
            import_(["llama2c", str(path)])

    refused(whole[:-4], rf"bytes; by its sizes it should have {len(whole):,}")
    refused(whole[:100], "torn, or not a file of llama2.c")
    refused(whole[:4] + struct.pack("<i", 2) + whole[8:], "version 2: only float32 weights")
    # sizes beyond any memory
    large = struct.pack("<7i", *[2**31 - 1] * 3, 1, 1, 2**31 - 1, 8)
    refused(whole[:8] + large + whole[36:], "n_embd|bytes; by its sizes")
    refused(np.full(1000, -1, dtype="<i4").tobytes(), "must be a whole number above 0")
    path.write_bytes(whole)
    tokenizer = folder / "tokenizer.bin"
    for content, reason in (
        (tokenizer.read_bytes()[:-3], "torn"),
        (tokenizer.read_bytes() + b"x", "has more than the model's"),
        (struct.pack("<i", 4) + struct.pack("<fi", 0.0, -5) * V, "torn, or not a tokenizer"),
    ):
        tokenizer.write_bytes(content)
        with pytest.raises(UsageError, match=rf"tokenizer.bin: {reason}"):
            read_llama2c(path, None, folder)
        write_tokenizer(tokenizer)
    tokenizer.unlink()
    with pytest.raises(UsageError, match=r"tokenizer\.bin: no such file"):
        read_llama2c(path, None, folder)
