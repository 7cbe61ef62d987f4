import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable

import pytest

from gptlit.__main__ import VERBS
from gptlit.cli import help_pages
from gptlit.terminal import format_value
from tests.cli import help_options
from tests.conftest import Result

Call = Callable[..., Result]
WITH_PARSER = [verb for verb in VERBS if verb not in ("study", "summary")]


def listed(page: str) -> list[str]:
    """Return the options and arguments that a page lists, in order."""
    flags = re.findall(r"^  (?:-c, )?(--[\w.\[\]]+|[a-z]+(?= {3}|$))", page, re.MULTILINE)
    return [flag.replace("[no_]", "").split("[")[0].removeprefix("--") for flag in flags]


def entry(page: str, name: str) -> str:
    """Return a page's text on an option, with single spaces."""
    lines = page.splitlines()
    flag = rf"  (-c, )?(--(\[no_\])?)?{re.escape(name)}(?![\w.])"
    first = next(index for index, line in enumerate(lines) if re.match(flag, line))
    end = next(index for index in range(first + 1, len(lines)) if not lines[index][2:3].isspace())
    return " ".join(" ".join(lines[first:end]).split())


def test_options_are_those_of_the_parsers() -> None:
    same = help_options.FILE.read_text(encoding="utf-8") == help_options.content()
    assert same, "an option was changed: run `make help-pages`, and commit what it writes"


@pytest.mark.parametrize("width", [59, 79, 99])
@pytest.mark.parametrize("which", ["", "all"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_page_fits_its_width(verb: str, which: str, width: int) -> None:
    page = help_pages.text(verb, VERBS[verb].about, which, width)
    usage = page.splitlines()[0]
    assert usage.startswith(f"usage: gptlit {verb} ")
    assert len(usage) < 60
    too_long = [line for line in page.splitlines() if len(line) > width]
    assert all(" " not in line.strip() for line in too_long)
    assert f"\nexample:\n  gptlit {verb} " in page
    if not which:
        assert ("\nAll options: gptlit" in page) == (
            verb not in ("study", "serve", "runs", "plot", "compare", "import", "merge", "export")
        )


@pytest.mark.parametrize("verb", VERBS)
def test_a_page_has_about_twenty_options_in_groups(verb: str) -> None:
    page = help_pages.text(verb, VERBS[verb].about, "", 79)
    names = help_pages.PAGES[verb].names.split()
    assert len(names) < 24
    assert Counter(listed(page)) == Counter(names) or verb == "study"
    if verb in ("fit", "predict"):
        assert len(names) >= 20
        assert len(re.findall(r"^[\w ]+:$", page, re.MULTILINE)) == 6 + (verb == "fit")


@pytest.mark.parametrize("verb", WITH_PARSER)
def test_a_page_has_the_parsers_defaults(verb: str) -> None:
    page = help_pages.text(verb, VERBS[verb].about, "", 79)
    actions = {each.dest: each for each in help_options.actions(help_options.parser_of(verb))}
    for name in help_pages.PAGES[verb].names.split():
        default = actions[name].default
        default = list(default) if isinstance(default, tuple) else default
        found = entry(page, name)
        if default is None:
            assert "[default" not in found
        else:
            assert "[default: " + (format_value(default) or '""') in found


@pytest.mark.parametrize("verb", WITH_PARSER)
def test_all_lists_every_option_once(verb: str) -> None:
    parser = help_options.parser_of(verb)
    page = help_pages.text(verb, VERBS[verb].about, "all", 79)
    assert Counter(listed(page)) == Counter(each.dest for each in help_options.actions(parser))


def test_groups_of_fit() -> None:
    page = help_pages.text("fit", VERBS["fit"].about, "all", 79)
    groups = re.findall(r"^(\w+):$", page, re.MULTILINE)
    assert groups == ["run", "data", "model", "learning", "samples", "Trainer", "example"]
    learning = page.partition("\nlearning:\n")[2].partition("\n\n")[0]
    assert "--model.lr FLOAT" in learning
    assert "[default: 0.001, small.yaml: 0.006]" in learning
    assert "--model.n_layer" not in learning


def test_ways_to_ask(gptlit: Call) -> None:
    page, whole = gptlit("fit", "--help"), gptlit("fit", "--help", "all")
    assert page.code == whole.code == 0
    assert "--trainer.detect_anomaly" in whole.out
    assert "--trainer.detect_anomaly" not in page.out
    for words in (
        ("fit", "-h"),
        ("train", "--help"),
        ("help", "fit"),
        ("fit", "x", "--help", "--debug"),
    ):
        assert gptlit(*words).out == page.out
    for words in (("fit", "--help=all"), ("help", "train", "all"), ("fit", "-h", "all")):
        assert gptlit(*words).out == whole.out
    assert "sizes" in gptlit("study", "--help").out


@pytest.mark.parametrize("verb", VERBS)
def test_help_with_a_group_lists_the_options_of_that_group(gptlit: Call, verb: str) -> None:
    in_groups = []
    for group in help_pages.groups_of(verb):
        page = help_pages.text(verb, VERBS[verb].about, group, 79)
        assert re.findall(r"^(\w[\w ]*):$", page, re.MULTILINE) == [group, "example"]
        in_groups += listed(page)
        for words in ((verb, "--help", group.upper()), (verb, f"--help={group}")):
            assert gptlit(*words).out.startswith(f"usage: gptlit {verb} ")
            assert f"\n{group}:\n" in gptlit(*words).out
    assert in_groups == listed(help_pages.text(verb, VERBS[verb].about, "all", 79))


def test_ways_to_ask_for_a_group(gptlit: Call) -> None:
    page = gptlit("fit", "--help", "model")
    assert page.code == 0
    assert "--model.n_layer" in page.out
    assert "--model.n_kv_head" in page.out  # not on the short page
    assert "--data.corpus" not in page.out
    for words in (("fit", "--help=model"), ("help", "train", "Model"), ("fit", "x", "-h", "MODEL")):
        assert gptlit(*words).out == page.out
    assert "--top_k" in gptlit("predict", "--help", "choosing", "tokens").out
    assert "\nThose of a group: gptlit fit --help run\n" in gptlit("fit", "--help").out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("fit", "--help", "modle"),
            "--help modle: must be one of run, data, model, learning, samples, Trainer, all, or "
            "nothing. Did you mean model?",
        ),
        (
            ("help", "data", "mine"),
            "--help mine: must be one of text, tokenizer, splits, cleaning, all, or nothing.",
        ),
        (("study", "--help=x"), "--help x: must be one of options, all, or nothing."),
    ],
)
def test_another_word_after_help_is_refused(
    gptlit: Call, words: tuple[str, ...], message: str
) -> None:
    refused = gptlit(*words)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"gptlit: error: {message}\n"


def test_pages_need_no_torch() -> None:
    code = f"""
import sys
from gptlit.__main__ import main
for verb in {list(VERBS)}:
    assert main([verb, "--help"]) == main([verb, "--help", "all"]) == 0
sys.exit(7 if {{"torch", "lightning", "jsonargparse"}} & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
