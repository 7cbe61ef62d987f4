"""gptlit against Hugging Face's transformers, at tiny random sizes and with no download.

In an environment of its own, by `make parity`: transformers beside Lightning slows every command.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gptlit.checkpoints.tokenizer_files import GPT2_PATTERN, TIKTOKEN_GPT2_PATTERN, read, write
from gptlit.checkpoints.weight_files import read_folder
from gptlit.exports.hub_folder import write_hugging_face
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.base import Tokenizer, TokenizerOptions
from gptlit.tokenizers.bytepair import BytePairTokenizer
from gptlit.tokenizers.characters import CharTokenizer
from gptlit.tokenizers.words import WordTokenizer, count_words
from tests.generation.by_keywords import search

transformers = pytest.importorskip("transformers", reason="runs with `make parity`")
WITHIN = 1e-5
TEXT = (
    "ROMEO: But, soft! what light through yonder window breaks?\n"
    "It is the east, and Juliet is the sun.  Don't they'll 1595 12345?\n\n"
    "\tLa gloria di colui che tutto move, così è più — caffè\r\n naïve 日本 🙂 \u00a0 \u2003end \n"
)
TEXTS = [
    TEXT,
    "",
    " ",
    "\n",
    " \n \n  ROMEO:  It is the",
    "sun",
    "It is the ",
    "the   sun\n\n\n  is",
    "\tsun \u00a0 It",
    "sun <UNK> It <EOS>\n(<PAD>) <|endoftext|> end",
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


def made(config: GPTConfig) -> GPT:
    """A model without weights of zero or one."""
    model = GPT(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def some_ids(vocab_size: int, block_size: int) -> Tensor:
    return torch.randint(vocab_size, (3, block_size))


@torch.no_grad()
def apart(ours: GPT, theirs: Any) -> float:
    """The greatest difference of any logit."""
    ids = some_ids(ours.config.vocab_size, ours.config.block_size)
    return float((ours(ids) - theirs.eval()(ids).logits).abs().max())


CHARACTERS = CharTokenizer("".join(sorted(set("".join(TEXTS)))))
TINY = GPTConfig(vocab_size=CHARACTERS.vocab_size, n_layer=2, n_head=2, n_embd=16, block_size=12)
HF_ONLY: list[dict[str, Any]] = [
    {},
    {"activation": "gelu_tanh"},
    {"activation": "relu", "mlp_ratio": 2},
    {"activation": "relu2", "norm_eps": 1e-3},
    {"bias": False, "tie_weights": False},
    {"n_positions": 20, "dropout": 0.1, "mlp_hidden": 24},
    {"n_layer": 0},
]


@pytest.mark.parametrize("options", HF_ONLY, ids=str)
def test_an_exported_model_gives_equal_logits(tmp_path: Path, options: dict[str, Any]) -> None:
    model = made(dataclasses.replace(TINY, **options))
    write_hugging_face(model, CHARACTERS, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(theirs) is transformers.GPT2LMHeadModel
    assert apart(model, theirs) < WITHIN


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation_function": "gelu"},
        {"activation_function": "gelu_pytorch_tanh"},
        {"tie_word_embeddings": False, "n_inner": 40, "layer_norm_epsilon": 1e-6},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_an_imported_model_gives_equal_logits(
    tmp_path: Path, options: dict[str, Any], form: str
) -> None:
    sizes = {"vocab_size": 40, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **options))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    theirs.save_pretrained(tmp_path)
    if form == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    config, state, _ = read_folder(tmp_path)
    model = GPT(config).eval()
    model.load_state_dict(state)
    assert apart(model, theirs) < WITHIN


def test_there_and_back_through_transformers_is_bit_identical(tmp_path: Path) -> None:
    model = made(dataclasses.replace(TINY, activation="gelu_tanh"))
    write_hugging_face(model, CHARACTERS, tmp_path / "ours")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    config, state, tokenizer = read_folder(tmp_path / "theirs")
    assert config == model.config
    assert tokenizer is None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
def test_rotary_rms_swiglu_is_llama(n_kv_head: int) -> None:
    config = GPTConfig(
        vocab_size=40,
        n_layer=2,
        n_head=4,
        n_kv_head=n_kv_head,
        n_embd=32,
        mlp_hidden=48,
        block_size=12,
        positions="rotary",
        norm="rms",
        norm_eps=1e-6,
        activation="swiglu",
        bias=False,
        tie_weights=False,
    )
    model = made(config)
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=n_kv_head,
            max_position_embeddings=12,
            rms_norm_eps=1e-6,
            tie_word_embeddings=False,
        )
    )
    theirs.load_state_dict(as_llama(model))
    assert apart(model, theirs) < WITHIN


def as_llama(model: GPT) -> dict[str, Tensor]:
    """A model's weights by the names of LlamaForCausalLM."""
    state, size = model.state_dict(), model.config.head_size
    heads = [model.config.n_head, model.config.kv_heads, model.config.kv_heads]
    theirs = {
        "model.embed_tokens.weight": state["wte.weight"],
        "model.norm.weight": state["ln_f.weight"],
        "lm_head.weight": state["lm_head.weight"],
    }
    for layer in range(model.config.n_layer):
        ours, block = f"h.{layer}.", f"model.layers.{layer}."
        parts = state[f"{ours}attn.c_attn.weight"].split([size * n for n in heads])
        gate_and_up = state[f"{ours}mlp.c_fc.weight"].chunk(2)
        named = {
            **{f"self_attn.{name}_proj": part for name, part in zip("qkv", parts, strict=True)},
            "self_attn.o_proj": state[f"{ours}attn.c_proj.weight"],
            "mlp.gate_proj": gate_and_up[0],
            "mlp.up_proj": gate_and_up[1],
            "mlp.down_proj": state[f"{ours}mlp.c_proj.weight"],
            "input_layernorm": state[f"{ours}ln_1.weight"],
            "post_attention_layernorm": state[f"{ours}ln_2.weight"],
        }
        theirs |= {f"{block}{name}.weight": tensor for name, tensor in named.items()}
    return theirs


# ---------------------------------------------------------------------- tokenizers


def trained() -> BytePairTokenizer:
    return BytePairTokenizer.train([TEXT * 3], TokenizerOptions(kind="bpe", vocab_size=300))


def of_gpt2s_pattern(pattern: str) -> BytePairTokenizer:
    import rustbpe

    trainer = rustbpe.Tokenizer()
    trainer.train_from_iterator(iter([TEXT * 3]), 300, pattern=GPT2_PATTERN)
    ranks = sorted(trainer.get_mergeable_ranks(), key=lambda pair: pair[1])
    pieces = [bytes(piece) for piece, _ in ranks]
    special = {"<|endoftext|>": len(pieces), "<|unused_301|>": len(pieces) + 1}
    return BytePairTokenizer("tiktoken", "gpt2", pattern, pieces, special)


def words(**options: Any) -> WordTokenizer:
    counts = count_words("".join(TEXTS), options.get("reversible", False))
    return WordTokenizer.train(counts, TokenizerOptions(kind="word", **options))


TOKENIZERS = {
    "bpe": trained,
    "tiktoken": lambda: of_gpt2s_pattern(TIKTOKEN_GPT2_PATTERN),
    "gpt2": lambda: of_gpt2s_pattern(GPT2_PATTERN),
    "char": lambda: CHARACTERS,
    "char, special": lambda: CharTokenizer(
        CHARACTERS.characters, ["<PAD>", "<UNK>", "<EOS>"], True
    ),
    "word": words,
    "word, special": lambda: words(min_frequency=2, special_tokens=["<PAD>"], eos=True),
    "word:reversible": lambda: words(reversible=True),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_an_exported_tokenizer_gives_equal_ids(tmp_path: Path, kind: str) -> None:
    ours: Tokenizer = TOKENIZERS[kind]()
    model = made(dataclasses.replace(TINY, vocab_size=ours.vocab_size))
    write_hugging_face(model, ours, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(theirs) == ours.vocab_size
    assert theirs.eos_token_id == (
        ours.special_tokens["<|endoftext|>"] if isinstance(ours, BytePairTokenizer) else ours.eos_id
    )
    marked = {*ours.special_ids.values()}
    assert {*theirs.all_special_ids} <= marked
    for text in TEXTS:
        ids = ours.encode(text).tolist()
        assert theirs.encode(text, add_special_tokens=False) == ids, text
        assert theirs.decode(ids) == ours.decode(ids)
    assert not marked & {*ours.encode(TEXTS[-1]).tolist()} - {ours.unknown_id}


def test_an_unknown_character_has_no_id_there_either(tmp_path: Path) -> None:
    write(CHARACTERS, tmp_path, 8)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(Exception, match="UNK"):
        theirs.encode("ж")


@pytest.mark.parametrize("kind", ["bpe", "tiktoken"])
def test_a_tokenizer_that_transformers_saved_is_read(tmp_path: Path, kind: str) -> None:
    ours = TOKENIZERS[kind]()
    (tmp_path / "ours").mkdir()
    write(ours, tmp_path / "ours", 8)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    back = read(tmp_path / "theirs", TINY.vocab_size)
    assert back is not None
    assert back.vocab_size == ours.vocab_size
    for text in TEXTS:
        assert back.encode(text).tolist() == ours.encode(text).tolist()


# ---------------------------------------------------------------------- beam search

CLOSED = CharTokenizer("abcdefg", ["<EOS>"], True)


@pytest.fixture
def both(tmp_path: Path) -> tuple[GPT, Any]:
    """A model with an end of sequence, and the same model in transformers."""
    model = made(dataclasses.replace(TINY, vocab_size=CLOSED.vocab_size, block_size=32)).double()
    with torch.no_grad():
        # flatter, and with more probability of the end, so that texts of all lengths compete
        model.ln_f.weight.mul_(0.3)
        model.ln_f.bias.copy_(0.5 * model.wte.weight[0])
    write_hugging_face(model, CLOSED, tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    theirs.generation_config.pad_token_id = CLOSED.eos_id
    return model, theirs.eval()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.0, -0.5])
@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize(
    ("ours", "as_theirs"),
    [
        ({}, {}),
        ({"repetition_penalty": 1.4}, {"repetition_penalty": 1.4}),
        ({"min_new_tokens": 6}, {"min_new_tokens": 6}),
        ({"ban": ["b"]}, {"bad_words_ids": [[2]]}),
        ({"stop": ["ca", "ee"]}, {"stop_strings": ["ca", "ee"]}),
    ],
    ids=str,
)
def test_beams_and_their_scores_are_equal(
    both: tuple[GPT, Any],
    tmp_path: Path,
    length_penalty: float,
    early_stopping: Any,
    ours: dict[str, Any],
    as_theirs: dict[str, Any],
) -> None:
    model, theirs = both
    if "stop_strings" in as_theirs:
        as_theirs = as_theirs | {"tokenizer": transformers.AutoTokenizer.from_pretrained(tmp_path)}
    common: dict[str, Any] = {
        "length_penalty": length_penalty,
        "early_stopping": early_stopping,
        "max_new_tokens": 12,
    }
    lengths = set()
    # one beam is greedy in transformers, which penalises logits instead of log probabilities
    one = [] if "repetition_penalty" in ours else [("ab", 1)]
    for prompt, n in (*one, ("gfedc", 2), ("a", 4), ("cab", 6)):
        found = search(model, CLOSED, prompt, num_beams=n, num_samples=n, **common, **ours)
        ids = torch.as_tensor(CLOSED.encode(prompt).astype("int64"))[None]
        given = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            num_beams=n,
            num_return_sequences=n,
            return_dict_in_generate=True,
            output_scores=True,
            **common,
            **as_theirs,
        )
        sequences = given.sequences[:, len(prompt) :].tolist()
        assert [text.ids for text in found] == [
            [id_ for id_ in row if id_ != CLOSED.eos_id] for row in sequences
        ]
        lengths |= {len(text.ids) for text in found}
        if n > 1:  # greedy has no score in transformers
            scores = given.sequences_scores.tolist()
            assert [text.score for text in found] == pytest.approx(scores, abs=1e-5)
    assert len(lengths) > 1
