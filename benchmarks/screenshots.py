"""Screenshots of gptlit's pages for the documentation, by a headless chromium.

    OMP_NUM_THREADS=1 python -m benchmarks.screenshots [--runs FOLDER] [NAME...]

Without --runs a study of six small runs is made first (2 minutes). Writes docs/images/NAME.png, in
128 colours; without names all of them. A page is added by an entry in SHOTS, in TERMINAL, or in
WRITTEN if a command of gptlit writes it. Those of look and compare in the documentation are of
small.yaml with bpe:1024, and of tiny.yaml, with another rate, and with bpe:512
(`--runs lightning_logs`).
"""

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pytest
from PIL import Image

from gptlit.__main__ import main as gptlit
from tests.browser import Browser, Page, program
from tests.pseudo_terminal import seen
from tests.runs.test_tensorboard import tensorboard

IMAGES = Path(__file__).parent.parent / "docs" / "images"
STUDY = """\
config: gpt2_small.yaml
options: {trainer.max_steps: 300, trainer.val_check_interval: 50, model.n_layer: 2, model.n_head: 4,
          model.n_embd: 64, model.block_size: 64, data.batch_size: 16, model.warmup_steps: 20,
          figures.every: 50, figures.weights: true}
grid: {model.lr: [1e-3, 3e-3, 1e-2], model.positions: [learned, rotary]}
"""


# finds elements also within TensorBoard's shadow roots and frames
DEEP = """window.deep = (selector, root = document) => [...root.querySelectorAll('*')].flatMap(
  each => [...(each.matches(selector) ? [each] : []),
           ...[each.shadowRoot, each.contentDocument].flatMap(
             part => part ? deep(selector, part) : [])])"""
CLOSE_SETTINGS = (
    "[...document.querySelectorAll('button')].find(b => /Settings/.test(b.innerText)).click()"
)
# options that don't differ, and metrics besides the best
FEWER_COLUMNS = """deep('paper-checkbox').filter(c => c.checked && /^data|^epoch/.test(c.innerText))
  .forEach(c => c.click())"""
ACTUAL_SIZE = "deep('paper-checkbox').find(c => /actual/.test(c.innerText)).click()"
SETTLED = "new Promise(resolve => setTimeout(() => resolve(true), 3000))"


@dataclass(frozen=True)
class Shot:
    """A page of TensorBoard.

    Args:
        address: End of the address, from the query on.
        ready: JavaScript expression that is true when the page is complete.
        then: Expression that changes the page before the screenshot.
        size: Width and height in pixels.
    """

    address: str
    ready: str
    then: str = "true"
    size: tuple[int, int] = (1280, 700)


TAGS = "%5E(train%7Cval)%2Floss%24%7Cupdate_ratio%2Fattn.c_attn%7Cgrad_norm"
ONE_RUN = "regexInput=0.003.*learned"
SHOTS = {
    "tensorboard_scalars": Shot(
        f"?darkMode=false&smoothing=0&tagFilter={TAGS}#timeseries",
        "document.querySelectorAll('scalar-card').length == 4",
        CLOSE_SETTINGS,
        (1280, 1060),
    ),
    "tensorboard_hparams": Shot(
        "?darkMode=false#hparams", "deep('paper-checkbox').length > 20", FEWER_COLUMNS, (1440, 420)
    ),
    "tensorboard_text": Shot(f"?darkMode=false#text&{ONE_RUN}", "deep('pre').length > 1"),
    "tensorboard_images": Shot(
        f"?darkMode=false#images&{ONE_RUN}", "deep('img').length > 3", ACTUAL_SIZE
    ),
    "tensorboard_histograms": Shot(
        "?darkMode=false#histograms&regexInput=rotary", "deep('vz-histogram-timeseries').length > 2"
    ),
    "tensorboard_projector": Shot("?darkMode=false#projector", "deep('#labels3DMode').length"),
}


@dataclass(frozen=True)
class Written:
    """A page that a command of gptlit writes.

    Args:
        verb: Verb of the command, with its options but --output.
        runs: Runs of the folder that it takes.
        then: Expression that changes the page before the screenshot.
        scale: Size of the picture relative to the page.
    """

    verb: tuple[str, ...]
    runs: slice
    then: str = "true"
    scale: float = 0.72


WRITTEN = {
    "look": Written(
        ("look", "--prompt=But, soft! what light through yonder window breaks?"),
        slice(-1, None),
        "select(14, false), choose(data.layers - 1, 1)",
    ),
    "compare": Written(("compare", "--max_new_tokens=120"), slice(3)),
}


# commands in a terminal of 80 columns
TERMINAL = {"terminal": ("fit", "--config", "tiny.yaml")}
SCREEN = """<meta charset="utf-8"><style>
body { margin: 0; background: #16181d; color: #e4e6ea }
pre { margin: 0; padding: 14px; width: max-content; font: 13px/1.2 "DejaVu Sans Mono", monospace }
</style><pre>$ gptlit COMMAND
TEXT</pre>"""


def save(page: Page, path: Path, scale: float = 1.0) -> None:
    """Save a screenshot with few colours; that of the whole page if it is scaled."""
    page.screenshot(path, whole=scale != 1)
    image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
    size = (round(image.width * scale), round(image.height * scale))
    image = image.resize(size, Image.Resampling.LANCZOS)
    image.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


def save_written(browser: Browser, runs: Path, name: str) -> None:
    """Save the screenshot of a page that a command writes."""
    shot = WRITTEN[name]
    of_folder = sorted(each for each in runs.iterdir() if each.is_dir())[shot.runs]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        assert gptlit([*shot.verb, f"--output={file}", *map(str, of_folder)]) == 0
        page = browser.open(file.as_uri(), 1200, 800)
        page.evaluate(shot.then)
        save(page, IMAGES / f"{name}.png", shot.scale)


def save_terminal(browser: Browser, name: str) -> None:
    """Save the screenshot of a command's output in a terminal."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        assert gptlit(["data", "shakespeare"]) == 0  # fetches the text
        with pytest.MonkeyPatch.context() as patch:
            text = seen(80, patch, *TERMINAL[name]).text
        screen = SCREEN.replace("COMMAND", " ".join(TERMINAL[name]))
        (file := Path(folder) / "screen.html").write_text(screen.replace("TEXT", escape(text)))
        page = browser.open(file.as_uri(), 680, 400)
        save(page, IMAGES / f"{name}.png", scale=0.9)


def save_shots(browser: Browser, address: str, names: Iterable[str]) -> None:
    """Save the screenshots of TensorBoard's pages."""
    read = "fetch('data/runs').then(r => r.json()).then(runs => runs.length == 6)"
    browser.open(address).wait_for(read, 60)
    for name in names:
        shot = SHOTS[name]
        page = browser.open(address + shot.address, *shot.size)
        page.evaluate(DEEP)
        page.wait_for(shot.ready, 60)
        page.evaluate(SETTLED)
        page.evaluate(shot.then)
        page.evaluate(SETTLED)
        save(page, IMAGES / f"{name}.png")


def main() -> None:
    every = [*SHOTS, *WRITTEN, *TERMINAL]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(every))
    parser.add_argument("--runs", type=Path)
    given = parser.parse_args()
    names = given.names or every
    path = program()
    if path is None:
        parser.error("needs chromium")
    with contextlib.ExitStack() as stack:
        runs = given.runs
        if runs is None and not {*names} <= {*TERMINAL}:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            stack.enter_context(contextlib.chdir(folder))
            (folder / "rates.yaml").write_text(STUDY)
            assert gptlit(["study", "rates.yaml"]) == 0
            runs = folder / "lightning_logs" / "rates"
        browser: Browser = stack.enter_context(contextlib.closing(Browser(path)))
        for name in filter(TERMINAL.__contains__, names):
            save_terminal(browser, name)
        for name in filter(WRITTEN.__contains__, names):
            save_written(browser, runs, name)
        if shots := [name for name in names if name in SHOTS]:
            save_shots(browser, stack.enter_context(tensorboard(runs)), shots)


if __name__ == "__main__":
    main()
