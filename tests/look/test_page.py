"""The page of `gptlit look` in a real browser: what it shows, and how it answers."""

import itertools
import math
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from gptlit.insight.attention import attention_maps
from gptlit.insight.passages import score, scores_of
from gptlit.look import content, page
from gptlit.model.gpt import GPT
from gptlit.tokenizers.words import WordTokenizer
from tests.browser import Browser, Page
from tests.look.test_content import IDS, TOKENIZER, net

NAMES = ["start", "b", "c", "c", "␣", "g", "a"]


@pytest.fixture(scope="module")
def model() -> GPT:
    return net(n_layer=3)


@pytest.fixture
def path(model: GPT, tmp_path: Path) -> Path:
    values = content.content(model, TOKENIZER, IDS, True)
    path = tmp_path / "look.html"
    path.write_text(page.html("</script><b>", "a & b", values))
    return path


@pytest.fixture
def shown(browser: Browser, path: Path) -> Page:
    return browser.open(path.as_uri())


def token(i: int) -> str:
    return f'[data-token="{i}"]'


def rows(shown: Page, id_: str) -> list[tuple[str, str]]:
    text = f"[...document.querySelectorAll('#{id_} li')].map(r => r.innerText.split('\\n'))"
    return [(row[0], row[-1]) for row in shown.evaluate(text)]


def percents(shares: torch.Tensor) -> list[str]:
    shown = [
        (share, f"{share:.0%}" if share >= 0.0995 else f"{share:.1%}") for share in shares.tolist()
    ]
    return [text if share >= 5e-4 else "<0.1%" for share, text in shown]


def fact(shown: Page, term: str) -> str:
    facts = shown.text("#facts").split("\n")
    return facts[facts.index(term) + 1]


def test_it_loads_nothing_else_and_has_no_errors(shown: Page, path: Path) -> None:
    assert shown.errors == []
    assert shown.requests == [path.as_uri()]
    assert not re.findall(r"(?:src|href)=|url\(|@import|https?://", path.read_text())
    assert shown.evaluate("document.title") == shown.text("h1") == "</script><b>"
    assert shown.text("header p") == "a & b"
    # nor would it, if a text in it asked for that
    shown.evaluate("document.body.append(Object.assign(new Image(), { src: 'https://a.b/c' }))")
    refused = "fetch('https://a.b/d').then(() => false, () => true)"
    assert shown.evaluate(refused)
    assert len(shown.errors) >= 2
    assert all("Content Security Policy" in error for error in shown.errors)


def test_hovering_and_focusing_a_token_show_its_alternatives(shown: Page, model: GPT) -> None:
    scores = score(model, torch.tensor(IDS), 9)
    for show, i in ((shown.hover, 5), (shown.focus, 2), (shown.click, 4)):
        show(token(i))
        assert shown.text("#chosen") == f"Token ‘{NAMES[i]}’"
        assert fact(shown, "rank") == str(scores.ranks[i - 1].item())
        nats = scores.logprobs[i - 1].item()
        assert fact(shown, "surprise") == f"{-nats / math.log(2):.2f} bits"
        assert fact(shown, "probability") == percents(scores.logprobs[i - 1, None].exp())[0]
        bits = scores.entropies[i - 1].item() / math.log(2)
        assert fact(shown, "entropy") == f"{bits:.2f} bits"
        names = ["⏎", "␣", *"abcdefg"]
        wanted = [names[id_] for id_ in scores.best[i - 1].tolist()]
        assert rows(shown, "best") == [
            *zip(wanted, percents(scores.best_logprobs[i - 1].exp()), strict=True)
        ]
        assert shown.text("#best .own .token") == NAMES[i]
        near = rows(shown, "near")
        assert len(near) == 8
        assert [float(cosine) for _, cosine in near] == sorted(
            (float(cosine) for _, cosine in near), reverse=True
        )
    # a token that is only hovered over is shown until the mouse leaves
    shown.hover(token(1))
    assert shown.text("#chosen") == "Token ‘b’"
    shown.hover("h1")
    assert shown.text("#chosen") == "Token ‘␣’"


def test_the_keyboard_reaches_all(shown: Page, model: GPT) -> None:
    shown.focus(token(6))
    shown.press("ArrowLeft")
    assert shown.text("#chosen") == "Token ‘g’"
    shown.press("End")
    assert shown.text("#chosen") == "After the text"
    logits = model(torch.tensor([IDS]))[0, -1]
    assert rows(shown, "best")[0][1] == percents(logits.softmax(-1).topk(1).values)[0]
    shown.press("Home")
    assert shown.text("#chosen") == "The start"
    assert shown.evaluate("unpredicted.checkVisibility()")
    reached = []
    for _ in range(5):
        shown.press("Tab")
        reached.append(shown.evaluate("document.activeElement.closest('[id]').id"))
    assert reached == ["layer", "head", "map", "overview", "grid"]


def test_layer_and_head_change_the_map(shown: Page, model: GPT) -> None:
    maps = attention_maps(model, torch.tensor(IDS))
    pictures = set()

    def reads() -> list[str]:
        return re.findall(r"[\d.<]+%", shown.text("#reading"))

    def wanted(weights: torch.Tensor) -> list[str]:
        return percents((weights.topk(3).values * 255).round() / 255)

    shown.focus(token(6))
    for layer, head in ((0, 0), (1, 1), (2, 0)):
        for name, value in (("layer", layer), ("head", head)):
            shown.evaluate(
                f"(e => {{ e.value = {value}; e.dispatchEvent(new Event('change')); }})({name})"
            )
        pictures.add(shown.evaluate("map.canvas.toDataURL()"))
        assert reads() == wanted(maps[layer, head, 6])
        pressed = "document.querySelector('[aria-pressed=true]').ariaLabel"
        assert shown.evaluate(pressed) == f"Layer {layer + 1}, head {head + 1}"
    assert len(pictures) == 3
    shown.click('#overview [data-layer="1"][data-head="0"]')
    assert shown.evaluate("[layer.value, head.value]") == ["1", "0"]
    shown.press("ArrowUp")
    shown.press("ArrowRight")
    assert shown.evaluate("[layer.value, head.value]") == ["0", "1"]
    assert shown.evaluate("document.activeElement.ariaLabel") == "Layer 1, head 2"
    shown.evaluate("(e => { e.value = 2; e.dispatchEvent(new Event('change')); })(head)")
    mean = (maps[0] * 255).round().mean(0)[6] / 255
    assert reads() == percents(mean.topk(3).values)


def test_a_cell_of_the_map(shown: Page, model: GPT) -> None:
    maps = attention_maps(model, torch.tensor(IDS))
    share = (maps[2, 0, 5, 2] * 255).round() / 255
    wanted = f"‘g’ reads ‘c’: {percents(share[None])[0]}"
    shown.middle_of("#map")
    left, top = shown.evaluate(
        "[map.canvas.getBoundingClientRect().x + map.margin + 2.5 * map.cell,"
        " map.canvas.getBoundingClientRect().y + map.top + 5.5 * map.cell]"
    )
    shown.mouse("mouseMoved", left, top)
    assert shown.text("#reading") == wanted
    shown.focus(token(5))
    shown.focus("#map")
    shown.press("ArrowRight", 2)
    assert shown.text("#reading") == wanted
    # the colour of a cell is that of its weight
    back, front = (shown.evaluate(f"rgb('{name}')") for name in ("--background", "--0"))
    colour = shown.evaluate(
        "[...image(2, 0, palette()).getContext('2d').getImageData(2, 5, 1, 1).data]"
    )
    strength = math.sqrt(share.item())
    assert colour[:3] == pytest.approx(
        [b + (f - b) * strength for b, f in zip(back, front, strict=True)], abs=1
    )


def test_colours_of_the_text(shown: Page, model: GPT) -> None:
    """The strongest colour is that of the highest value."""
    scores = score(model, torch.tensor(IDS))
    maps = attention_maps(model, torch.tensor(IDS))
    strongest = """(() => {
        const share = (span) => parseFloat(/\\* ([\\d.]+)/.exec(span.style.background)?.[1] ?? -1);
        return spans.map(share).indexOf(Math.max(...spans.map(share)));
    })()"""
    logits = model(torch.tensor([IDS]))[0]
    entropies = scores_of(logits, torch.tensor([*IDS[1:], 0])).entropies
    wanted = {
        "surprise": scores.logprobs.argmin().item() + 1,
        "entropy": entropies.argmax().item() + 1,
        "attention": maps[2, 0, 6].argmax().item(),
    }
    for name, position in wanted.items():
        shown.click(f"[value={name}]")
        assert shown.evaluate(strongest) == position, name
    assert shown.text("#most").endswith("%")


def test_the_logit_lens(shown: Page, model: GPT) -> None:
    values = content.content(model, TOKENIZER, IDS, True)
    cells = "[...document.querySelectorAll('#grid tbody tr')].map(r => r.innerText.split('\\t'))"
    *layers, follows = shown.evaluate(cells)
    assert follows == ["follows", *NAMES[1:], ""]
    names = {str(id_): name for id_, name in values["tokens"].items()}
    for n, row in enumerate(reversed(layers)):
        assert row[0] == (f"layer {n}" if n else "embedding")
        assert row[1:] == [names[str(ids[0])] for ids in values["lens"][n]["ids"]]
    right = shown.evaluate(
        "[...document.querySelectorAll('#grid .right')]"
        ".map(cell => [cell.dataset.layer, cell.dataset.position].map(Number))"
    )
    wanted = [
        [n, i]
        for n, layer in enumerate(values["lens"])
        for i, following in enumerate(IDS[1:])
        if layer["ids"][i][0] == following
    ]
    assert sorted(right) == wanted != []
    shown.hover('#grid [data-layer="1"][data-position="4"]')
    about = shown.text("#lens-about")
    own = values["lens"][1]
    assert about.startswith(f"Layer 1, after ‘␣’: ‘{names[str(own['ids'][4][0])]}’ ")
    assert about.endswith(f"; ‘g’, which follows, {percents(torch.tensor([own['next'][4]]))[0]}")
    shown.focus("#grid td[tabindex='0']")
    shown.press("ArrowDown", 2)
    shown.press("ArrowRight")
    assert shown.text("#lens-about").startswith("Layer 1, after ‘b’: ")


@pytest.mark.parametrize("width", [360, 1000, 1600])
def test_widths_and_colours(browser: Browser, path: Path, tmp_path: Path, width: int) -> None:
    colours = []
    for dark in (False, True):
        shown = browser.open(path.as_uri(), width, 700, dark)
        assert shown.evaluate("document.documentElement.scrollWidth") <= width
        # at any place of the page no section covers another
        for at in (0, 300, 9999):
            boxes = shown.evaluate(f"""(scrollTo(0, {at}), [...document.querySelectorAll("section")]
                .map(each => each.getBoundingClientRect())
                .map(box => [box.left, box.top, box.right, box.bottom]))""")
            for one, other in itertools.combinations(boxes, 2):
                assert min(one[2], other[2]) <= max(one[0], other[0]) or (
                    min(one[3], other[3]) <= max(one[1], other[1])
                )
        shown.screenshot(tmp_path / "page.png")
        colours.append(sum(Image.open(tmp_path / "page.png").convert("RGB").getpixel((2, 2))))
        assert shown.errors == []
    assert colours[0] > 700 > 150 > colours[1]


def test_a_theme_that_is_chosen(browser: Browser, model: GPT, tmp_path: Path) -> None:
    path = tmp_path / "dark.html"
    path.write_text(page.html("a", "b", content.content(model, TOKENIZER, IDS, True), "dark"))
    shown = browser.open(path.as_uri(), dark=False)
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 25, 29)"


def test_a_text_of_tags_ends_no_element(browser: Browser, tmp_path: Path) -> None:
    tokenizer = WordTokenizer(["</script>", "<!--", "<script>", "a"])
    model = net(tokenizer.vocab_size)
    path = tmp_path / "look.html"
    ids = tokenizer.encode("a <script> <!-- </script> a").tolist()
    path.write_text(page.html("a", "b", content.content(model, tokenizer, ids, False)))
    shown = browser.open(path.as_uri())
    assert shown.errors == []
    assert shown.text("#strip") == "a <script> <!-- </script> anext"
    shown.focus(token(3))
    assert shown.text("#chosen") == "Token ‘</script>’"


def test_a_model_without_attention(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "look.html"
    path.write_text(page.html("a", "b", content.content(net(n_layer=0), TOKENIZER, [3], False)))
    shown = browser.open(path.as_uri())
    assert shown.errors == []
    assert shown.text("#chosen") == "Token ‘b’"
    assert "Attention" not in shown.text("main")
    assert shown.evaluate("document.querySelectorAll('#grid tbody tr').length") == 2
