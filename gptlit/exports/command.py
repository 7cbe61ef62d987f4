"""`gptlit export`: writes a checkpoint in the formats of other programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gptlit.checkpoints import checkpoint
from gptlit.checkpoints.weight_files import new_folder
from gptlit.exports import hub_folder, plain_files
from gptlit.files import writing
from gptlit.messages import UsageError, errors_naming, naming_flags, note
from gptlit.parser import OneLineErrors, from_environment

Format = Literal["hf", "safetensors", "torch", "hugging_face"]
Dtype = Literal["f32", "f16", "bf16"]
DTYPES = {
    "hf": ("f32", "f16", "bf16"),
    "safetensors": ("f32", "f16", "bf16"),
    "torch": ("f32", "f16", "bf16"),
}


def parser() -> OneLineErrors:
    """Return the parser of `gptlit export`."""
    parser = OneLineErrors(prog="gptlit export", allow_abbrev=False)
    add = parser.add_argument
    add("checkpoint", type=str, help="A checkpoint's path, or best or last of the newest run.")
    add("folder", type=str, help="Folder to write; must be new or empty.")
    formats = (
        "hf: transformers' AutoModelForCausalLM and AutoTokenizer, by a class of transformers that "
        "computes the same, or else by code in the folder. safetensors or torch: the weights by "
        "gptlit's names, options and tokenizer. hugging_face is another name of hf."
    )
    add("--format", type=Format, default="hf", help=formats)
    add("--dtype", type=Dtype, default="f32", help="Type of the weights: f32, f16 or bf16.")
    return parser


@naming_flags()
def main(argv: Sequence[str]) -> None:
    """Run `gptlit export` with these arguments.

    Raises:
        UsageError: An argument or a checkpoint is invalid, or the format can't hold the model.
    """
    options = parser().parse_args([*from_environment("export"), *argv])
    form = "hf" if options.format == "hugging_face" else options.format
    if options.dtype not in (allowed := DTYPES[form]):
        raise UsageError(f"--format {form} has {', '.join(allowed)}", "dtype", options.dtype)
    with errors_naming(lambda name: "gptlit export" if name == "path" else f"--{name}"):
        model, tokenizer = checkpoint.load(options.checkpoint)
    folder = Path(options.folder).expanduser()
    with writing("gptlit export:", folder), new_folder(folder) as new:
        if form == "hf":
            hub_folder.fill(model, tokenizer, new, options.dtype)
        else:
            plain_files.fill(model, tokenizer, new, form, options.dtype)
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    note(f"{folder}: {names}")
