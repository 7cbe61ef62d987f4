"""`gptlit export`: writes a checkpoint in the formats of other programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gptlit.checkpoints import checkpoint
from gptlit.checkpoints.weight_files import new_folder
from gptlit.exports import gguf_file, hub_folder, modelfile, onnx_graphs, plain_files
from gptlit.files import writing
from gptlit.messages import UsageError, errors_naming, naming_flags, note
from gptlit.parser import OneLineErrors, from_environment

Format = Literal["hf", "gguf", "onnx", "safetensors", "torch", "hugging_face"]
Dtype = Literal["f32", "f16", "bf16", "q8_0"]


def parser() -> OneLineErrors:
    """Return the parser of `gptlit export`."""
    parser = OneLineErrors(prog="gptlit export", allow_abbrev=False)
    add = parser.add_argument
    add("checkpoint", type=str, help="A checkpoint's path, or best or last of the newest run.")
    add("folder", type=str, help="Folder to write; must be new or empty.")
    formats = (
        "hf: transformers' AutoModelForCausalLM and AutoTokenizer, by a class of transformers that "
        "computes the same, or else by code in the folder. gguf: llama.cpp and ollama. onnx: "
        "graphs with and without a cache. safetensors or torch: the weights by gptlit's names, "
        "options and tokenizer. hugging_face is another name of hf."
    )
    add("--format", type=Format, default="hf", help=formats)
    types = "Type of the weights: f32, f16, bf16, or q8_0 of gguf, which takes 8 bits."
    add("--dtype", type=Dtype, default="f32", help=types)
    return parser


@naming_flags()
def main(argv: Sequence[str]) -> None:
    """Run `gptlit export` with these arguments.

    Raises:
        UsageError: An argument or a checkpoint is invalid, or the format can't hold the model.
    """
    options = parser().parse_args([*from_environment("export"), *argv])
    form = "hf" if options.format == "hugging_face" else options.format
    if options.dtype == "q8_0" and form != "gguf":
        reason = f"--format {form} has f32, f16 and bf16; --format gguf has q8_0"
        raise UsageError(reason, "dtype", options.dtype)
    if options.dtype != "f32" and form == "onnx":
        raise UsageError("--format onnx has f32 only", "dtype", options.dtype)
    with errors_naming(lambda name: "gptlit export" if name == "path" else f"--{name}"):
        model, tokenizer = checkpoint.load(options.checkpoint)
    folder = Path(options.folder).expanduser()
    with writing("gptlit export:", folder), new_folder(folder) as new:
        if form == "gguf":
            gguf_file.fill(model, tokenizer, new, options.dtype)
            text = modelfile.content(gguf_file.FILENAME, model.config.block_size)
            (new / modelfile.FILENAME).write_text(text, encoding="utf-8")
        elif form == "onnx":
            onnx_graphs.fill(model, tokenizer, new)
        elif form == "hf":
            hub_folder.fill(model, tokenizer, new, options.dtype)
        else:
            plain_files.fill(model, tokenizer, new, form, options.dtype)
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    note(f"{folder}: {names}")
    if form == "gguf":
        for line in modelfile.commands(folder, "ROMEO:"):
            note(line)
