"""Values without an option's name, and options without a group."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from gptlit.checkpoints import checkpoint
from gptlit.cli.arguments import add_option_names, full_names, option_of_run
from gptlit.cli.configs import find_config, shipped_configs
from gptlit.messages import UsageError
from gptlit.predict.options import parse, parser
from tests.conftest import TINY, Result, Run

Call = Callable[..., Result]
KNOWN = {"model.lr", "model.min_lr", "data.seed", "samples.seed", "seed_everything", "lr_find"}


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        ("a b", "--x=a --x=b"),
        ("a --lr 3 b --lr=4 c", "--x=a --lr 3 --x=b --lr=4 --x=c"),
        ("--switch a", "--switch --x=a"),
        ("--switch False a", "--switch False --x=a"),
        ("--list a b --lr -1 c", "--list a b --lr -1 --x=c"),
        ("-c small.yaml a", "-c small.yaml --x=a"),
        ("--lr --switch", "--lr --switch"),
    ],
)
def test_words_without_an_option(typed: str, named: str) -> None:
    words = add_option_names(typed.split(), lambda word: "--x", {"--switch"}, {"--list"})
    assert words == named.split()


@pytest.mark.parametrize(
    ("typed", "refused"),
    [
        ("fit tiny {t} {t}", "are 2 values where a run takes one text (a folder, or a glob in"),
        ("fit --data.path {t} {t} {t} {t}", "{t}, {t}, {t}, ...: are 4 values"),  # a shell's glob
        ("summary {t} --data.path={t}", "{t}, {t}: are 2 values"),
        ("fit {t} tinyshakespeare", "{t}, tinyshakespeare: are 2 values"),
        ("validate best last", "best, last: are 2 values where a run takes one checkpoint"),
    ],
)
def test_a_word_replaces_no_given_value(
    gptlit: Call, text_file: Path, typed: str, refused: str
) -> None:
    result = gptlit(*typed.format(t=text_file.name).split())
    assert result.code == 2
    (line,) = result.err.splitlines()
    assert refused.format(t=text_file.name) in line


@pytest.mark.parametrize(
    ("typed", "suggested"),
    [
        ("generat", "Did you mean generate?"),
        ("fit --zzz 3", "--zzz: unknown option. gptlit fit --help all lists the options."),
        ("data --zzz 3", "--zzz: unknown option. gptlit data --help all lists the options."),
        ("fit --epochs 3", "--epochs: unknown option. Did you mean --trainer.max_epochs?"),
        ("fit --steps 3", "Did you mean --trainer.max_steps?"),
        ("fit --text a.txt", "Did you mean --data.path?"),
        ("fit --learning_rate 3", "Did you mean --model.lr?"),
        ("fit --n_heads 3", "Did you mean --model.n_head?"),
        ("predict --max_tokens 3", "Did you mean --max_new_tokens?"),
        ("predict --checkpoint a.ckpt", "Did you mean --ckpt_path?"),
    ],
)
def test_names_of_other_programs_are_suggested(gptlit: Call, typed: str, suggested: str) -> None:
    result = gptlit(*typed.split())
    assert (result.code, result.out) == (2, "")
    assert suggested in result.err


def test_the_option_of_a_word_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").touch()
    Path("texts").mkdir()
    found = {
        word: option_of_run(word)
        for word in ("tiny", "tiny.yaml", "own/new.yml", "session4", "last", "a/b.ckpt", "mine.txt",
                     "texts", "tinyshakespeare", "dante")
    }  # fmt: skip
    assert list(found.values()) == ["--config"] * 4 + ["--ckpt_path"] * 2 + ["--data.path"] * 2 + [
        "--data.corpus",
        "--config",
    ]
    Path("dante").mkdir()
    with pytest.raises(UsageError, match="may mean --config dante or --data.path dante"):
        option_of_run("dante")


def test_names_without_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--lr=1", "--model.min_lr", "2", "--lr_find", "--unheard", "--lr", "3"]
    wanted = ["--model.lr=1", "--model.min_lr", "2", "--lr_find", "--unheard", "--model.lr", "3"]
    assert full_names(words, KNOWN) == wanted
    assert capsys.readouterr().err == "gptlit: --lr: taken as --model.lr\n" * 2
    with pytest.raises(UsageError, match="mean --data.seed or --samples.seed or --seed_everything"):
        full_names(["--seed", "3"], KNOWN)


def test_a_shipped_config_without_yaml_ending(gptlit: Call) -> None:
    assert find_config("tiny") == find_config("tiny.yaml") == shipped_configs()["tiny.yaml"]
    assert find_config("session4") == shipped_configs()["sources/session4.yaml"]


def test_a_run_given_by_words_alone(gptlit: Call, text_file: Path) -> None:
    options = [word.removeprefix("--config=") for word in TINY]
    result = gptlit("train", *options, text_file, "--max_steps", 2, "--lr=0.002")
    assert result.code == 0, result.err
    assert "--max_steps: taken as --trainer.max_steps" in result.err
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert saved["data"]["path"] == str(text_file)
    assert (saved["trainer"]["max_steps"], saved["model"]["lr"]) == (2, 0.002)
    assert saved["model"]["warmup_steps"] == 20  # from tiny.yaml
    evaluated = gptlit("validate", "last")
    assert evaluated.code == 0
    assert evaluated.out == gptlit("validate", "--ckpt_path=last").out


def test_prompts_given_by_words_alone(gptlit: Call, run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    wanted = gptlit("predict", "--ckpt_path", path, "--prompt=the", "--prompt=king", "--greedy")
    assert wanted.code == 0
    for verb in ("generate", "sample", "predict"):
        assert gptlit(verb, path, "the", "--greedy", "king").out == wanted.out


def test_help_as_a_verb(gptlit: Call) -> None:
    assert gptlit("help").out == gptlit("--help").out
    assert gptlit("help", "generate").out == gptlit("predict", "--help").out != ""


def test_escapes_that_a_shell_leaves(gptlit: Call, run: Run) -> None:
    typed = [r"--stop=\n\n", "--stop", r"a\\n\q", r"--force=\t", "--ban", r"\n"]
    options, _ = parse(parser(), typed)
    assert (options.stop, options.force, options.ban) == (["\n\n", r"a\n\q"], "\t", ["\n"])
    path = run.folder / "checkpoints" / "last.ckpt"
    free = gptlit("predict", "--ckpt_path", path, "--max_new_tokens=200").out
    assert "\n" in free.strip("\n")
    stopped = gptlit("predict", "--ckpt_path", path, "--max_new_tokens=200", "--stop", r"\n")
    assert "\n" not in stopped.out.strip("\n")
    prompt = gptlit("predict", "--ckpt_path", path, "--prompt", r"the\n")
    assert r"'\\' not in the vocabulary" in prompt.err
    assert "type $'\\n' in bash" in prompt.err


def test_the_block_size_of_weights_wins_over_a_shipped_config(gptlit: Call, run: Run) -> None:
    path = run.folder / "checkpoints" / "last.ckpt"
    begin = ["fit", f"--data.path={run.text}", f"--model.init_from={path}"]
    begin += ["--trainer.max_steps=1", "--samples.max_new_tokens=1", "--data.val_fraction=0.1"]
    result = gptlit(*begin)  # small.yaml has 256
    assert result.code == 0, result.err
    assert "block_size 8" in result.err
    saved = yaml.safe_load(Path("lightning_logs/version_0/config.yaml").read_text())
    assert saved["model"]["block_size"] == 8
    trained, _ = checkpoint.load(Path("lightning_logs/version_0/checkpoints/last.ckpt"))
    assert trained.config.block_size == 8
    assert gptlit("fit", "--ckpt_path=last", "--trainer.max_steps=2").code == 0
    Path("own.yaml").write_text("model: {block_size: 9}")
    for given in ("--model.block_size=9", "--config=own.yaml"):
        refused = gptlit(*begin, given)
        assert refused.code == 2
        assert "--model.block_size 9" in refused.err
