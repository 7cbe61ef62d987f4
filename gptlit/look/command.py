"""`gptlit look`: a page that shows a model from the inside, on one text."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from gptlit.charts.themes import Theme
from gptlit.checkpoints import checkpoint, run_paths
from gptlit.checkpoints.init_from import PUBLISHED, start_from
from gptlit.files import write_atomically, writing
from gptlit.generation.prompts import encode_prompt, warn_dropped
from gptlit.look import content, page
from gptlit.messages import UsageError, errors_naming, note, opt
from gptlit.model.gpt import GPT
from gptlit.parser import OneLineErrors, with_environment
from gptlit.predict import prompts
from gptlit.terminal import printable, shortened
from gptlit.tokenizers.base import Tokenizer, Unknown

NAME = "look.html"
LONGEST_TITLE = 60  # characters of the text in it


def parser() -> OneLineErrors:
    """Return the parser of `gptlit look`."""
    parser = OneLineErrors(prog="gptlit look", allow_abbrev=False)
    add = parser.add_argument
    add("checkpoint", nargs="?", type=str, default="best", help="A checkpoint: a path, or best or "
        "last of the newest run; a run's folder, for its best; a folder in Hugging Face's format, "
        f"or {', '.join(PUBLISHED)}.")  # fmt: skip
    add("--prompt", type=str, default=None, help="Text that the model reads.")
    add("--prompt_file", type=str, default=None, help="File with the text; - is standard input.")
    add("--output", type=str, default=None, help=f"Page to write, an .html, replaced if it exists; "
        f"left out, {NAME} in the run's folder, or in the current one for other "
        "weights.")  # fmt: skip
    add("--unknown", type=Unknown, default="error", help="Characters that the model does not know: "
        "error or skip them.")  # fmt: skip
    add("--theme", type=Theme, default="auto", help="Colours of the page; auto is what the viewer "
        "prefers.")  # fmt: skip
    add("--data_dir", type=str, default="data", help="Folder for fetched files.")
    return parser


def main(argv: Sequence[str]) -> None:
    """Run `gptlit look` with these arguments.

    Raises:
        UsageError: An argument, the checkpoint or the text is invalid.
        RunError: The page can't be written.
    """
    asked = parser().parse_args(with_environment("look", argv))
    if asked.output is not None and Path(asked.output).suffix.lower() != ".html":
        raise UsageError("must end in .html", "output", asked.output)
    text = _text(asked)
    model, tokenizer, about, folder = _model(asked.checkpoint, Path(asked.data_dir))
    ids = encode_prompt(tokenizer, text, asked.unknown).tolist()
    if not ids:
        raise UsageError("has no token of the model; give a text that it knows", "prompt", text)
    warn_dropped(text, asked.unknown, tokenizer)
    start, most = content.start_of(tokenizer), content.most_tokens(model)
    if len(ids) > most:
        note(f"warning: {opt('prompt')} has {len(ids):,} tokens; the page shows its last {most}")
        ids, start = ids[-most:], None
    if start is not None and len(ids) < most:
        ids = [start, *ids]
    else:
        start = None
    values = content.content(model, tokenizer, ids, start is not None)
    title = shortened(printable(text.replace("\n", " ⏎ "), one_line=True), LONGEST_TITLE)
    output = Path(asked.output).expanduser() if asked.output else folder / NAME
    with writing(opt("output"), output):
        write_atomically(output, page.html(title, about, values, asked.theme).encode())
    print(output)


def _text(asked: Namespace) -> str:
    if asked.prompt is not None and asked.prompt_file is not None:
        raise UsageError(f"excludes {opt('prompt_file')}; leave one out", "prompt")
    given = None if asked.prompt is None else [asked.prompt]
    options = Namespace(prompt=given, prompt_file=asked.prompt_file, lines=False, chat=False)
    (text,) = prompts.read(options)
    if not text:
        reason = f"there is no text to look at; give one by {opt('prompt')}"
        raise UsageError(f"{reason} or {opt('prompt_file')}")
    return text


def _model(name: str, data_dir: Path) -> tuple[GPT, Tokenizer, str, Path]:
    """Return a model, its tokenizer and description, and the folder of its page."""
    path = Path(name).expanduser()
    if not path.exists() and (run_paths.RUNS / name).is_dir():
        path = run_paths.RUNS / name
    saved = [path / run_paths.CHECKPOINTS / f"{each}.ckpt" for each in run_paths.ALIASES]
    name = str(next(filter(Path.is_file, saved), name if not path.is_dir() else path))
    with errors_naming(_as_argument):
        if Path(name).is_dir() or name in PUBLISHED:
            if run_paths.is_run(path):
                raise UsageError(f"{path}: has no checkpoint; name a run that has saved one")
            origin = start_from(name, data_dir)
            model = GPT(origin.config)
            model.load_state_dict(origin.state)
            about, tokenizer, folder = f"weights {name}", origin.tokenizer, Path()
        else:
            file, saved_content = checkpoint.read_named(name)
            model, tokenizer = checkpoint.build(saved_content)
            about = checkpoint.introduction(file, saved_content)
            is_of_run = file.parent.name == run_paths.CHECKPOINTS
            folder = file.parent.parent if is_of_run else Path()
    config = model.config
    note(about)
    about += (
        f"; {model.num_parameters():,} parameters, {config.n_layer} layers, {config.n_head} heads, "
        f"{config.n_embd} channels, context {config.block_size}, vocabulary {config.vocab_size:,}"
    )
    return model.eval(), tokenizer, about, folder


def _as_argument(option: str) -> str:
    return "gptlit look" if option in ("ckpt_path", "model.init_from") else f"--{option}"
