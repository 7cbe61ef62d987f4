"""Windows of conversations and pairs: what is scored, how they are split and ordered."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptlit.data.datamodule import TextDataModule
from gptlit.data.loaders import IGNORED
from gptlit.messages import UsageError

LONG = "What is it that begins here, and ends in another window?"


def chat(folder: Path, **options: Any) -> TextDataModule:
    records = [{"question": f"{n}?", "answer": f"yes {n}{'.' * (n % 3)}"} for n in range(40)]
    records[3]["question"] = LONG
    return made(folder, records, format="chat", **options)


def pairs(folder: Path, **options: Any) -> TextDataModule:
    records = [
        {"prompt": f"{n}:", "chosen": f" a{n}", "rejected": f" b{n}{'!' * (n % 4)}"}
        for n in range(40)
    ]
    return made(folder, records, format="pairs", **options)


def made(folder: Path, records: list[Any], **options: Any) -> TextDataModule:
    path = folder / "x.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    sizes = {"block_size": 48, "batch_size": 4, "data_dir": str(folder / "data"), "seed": 3}
    module = TextDataModule(path=str(path), **{**sizes, **options})
    module.prepare_data()
    module.setup("fit")
    return module


def rows(loader: Any, module: TextDataModule) -> list[tuple[str, str]]:
    """The input and the scored text of each window."""
    decode = module.tokenizer.decode
    return [
        (decode(row.tolist()), decode(target[target != IGNORED].tolist()))
        for inputs, targets in loader
        for row, target in zip(inputs, targets, strict=True)
    ]


def test_only_answers_are_scored(tmp_path: Path) -> None:
    module = chat(tmp_path)
    seen = rows(module.train_dataloader(), module)
    for inputs, scored in seen:
        number = inputs.partition("?")[0].removeprefix("\n<|user|>\n")
        if number.isdigit():
            assert scored == f"yes {number}{'.' * (int(number) % 3)}\n<|end|>"
    # the long question fills a window, which is left out, since nothing in it is scored
    assert all(scored for _, scored in seen)
    assert not any(LONG[:8] in inputs for inputs, _ in seen)
    assert [scored for text, scored in seen if LONG[-8:] in text] == ["yes 3\n<|end|>"]
    assert not module.scores_all_targets


def test_bytes_are_those_of_scored_tokens(tmp_path: Path) -> None:
    for tokenizer in ("char", "bpe:300"):
        module = chat(tmp_path, tokenizer=tokenizer)
        [validation, _] = module.val_dataloader()
        scored = [text for _, text in rows(validation, module) if text]
        n_tokens = sum(int((targets != IGNORED).sum()) for _, targets in validation)
        n_bytes = sum(len(text.encode()) for text in scored)
        assert module.tokens.bytes_per_token("val") == pytest.approx(n_bytes / n_tokens)
    assert module.tokens.bytes_per_token("val") > 1.0


def test_splits_are_of_whole_examples(tmp_path: Path) -> None:
    for module, n_texts in ((chat(tmp_path), 2), (pairs(tmp_path), 4)):
        sizes = {name: module.tokens.pieces(name, True) for name in ("train", "val")}
        assert sum(map(len, sizes.values())) == 40 * n_texts // 2
        assert all(len(each) % (n_texts // 2) == 0 and len(each) for each in sizes.values())
        starts = [module.tokenizer.decode(module.tokens.ids[a : a + 2]) for a, _ in sizes["val"]]
        assert all(start == "<|" or start[0].isdigit() for start in starts)


def test_pairs_stay_together_in_any_order(tmp_path: Path) -> None:
    module = pairs(tmp_path)
    order = []
    for loader in (module.train_dataloader(), *module.val_dataloader()):
        seen = rows(loader, module)
        assert len(seen) % 2 == 0
        for (_, chosen), (_, rejected) in zip(seen[::2], seen[1::2], strict=True):
            assert chosen.startswith(" a")
            assert rejected.rstrip("!") == chosen.replace("a", "b")
            order.append(chosen)
    assert len(set(order[:36])) >= 34
    assert order[:10] != sorted(order[:10], key=lambda text: int(text[2:]))


def test_the_order_is_a_function_of_the_position(tmp_path: Path) -> None:
    module = pairs(tmp_path)
    whole = module.order.bounds(1, np.arange(module.order.n_windows))
    assert sorted(whole[:, 0].tolist()) == sorted(set(whole[:, 0].tolist()))
    for at in (0, 7, 20):
        assert np.array_equal(module.order.bounds(1, np.array([at, at + 1])), whole[at : at + 2])
    first, second = (next(iter(pairs(tmp_path).train_dataloader())) for _ in range(2))
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"windows": "random"}, "windows random: needs format text; examples have documents"),
        ({"eos": True}, "eos True: does not apply to format pairs"),
        ({"train_fraction": 0.5}, "train_fraction 0.5: does not apply"),
        ({"batch_size": 3}, "batch_size 3: must be even"),
        (
            {"block_size": 6},
            "block_size 6: example .* has [0-9]+ tokens, and a prompt",
        ),
        ({"cleaning": {"collapse_blank_lines": True}}, "format pairs: does not go with cleaning"),
    ],
)
def test_wrong_options(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        pairs(tmp_path, **options)
