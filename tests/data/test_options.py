import dataclasses
import inspect
from pathlib import Path

import pytest

from gptlit.data.datamodule import TextDataModule
from gptlit.data.options import DataOptions
from gptlit.messages import UsageError
from gptlit.tokenizers.base import TokenizerOptions


def test_the_data_module_takes_the_options_by_name() -> None:
    names = [field.name for field in dataclasses.fields(DataOptions)]
    assert list(inspect.signature(TextDataModule).parameters) == names
    with pytest.raises(TypeError, match="val_fractions"):
        TextDataModule(val_fractions=0.2)


def test_the_hyperparameters_are_all_options_as_plain_data() -> None:
    given = {"path": "a.txt", "tokenizer": "word", "eos": True, "val_fraction": 0.2, "seed": 3}
    saved = TextDataModule(**given).hparams
    tokenizer = TokenizerOptions(kind="word", eos=True)
    expected = dataclasses.asdict(DataOptions()) | given
    expected |= {"path": str(Path("a.txt").absolute()), "tokenizer": dataclasses.asdict(tokenizer)}
    assert dict(saved) == expected
    assert TextDataModule(**saved).hparams == saved


@pytest.mark.parametrize("path", ["val_path", "test_path"])
def test_a_separate_text_is_held_out_instead_of_a_fraction(path: str) -> None:
    fraction = path.replace("path", "fraction")
    options = {fraction: 2.0}
    with pytest.raises(UsageError, match=f"^{fraction} 2.0: must be at least 0 and below 1"):
        DataOptions(**options)  # type: ignore[arg-type]
    splitting = DataOptions(**{path: "b.txt"}, **options).splitting  # type: ignore[arg-type]
    assert getattr(splitting, fraction) == 0
