"""`gptlit export`: writes a checkpoint in the formats of other programs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gptlit.checkpoints import adapters, checkpoint
from gptlit.checkpoints.weight_files import new_folder
from gptlit.exports import (
    gguf_file,
    hub_folder,
    model_card,
    modelfile,
    onnx_graphs,
    plain_files,
)
from gptlit.exports.model_card import Exported
from gptlit.exports.pushing import Hub
from gptlit.files import writing
from gptlit.messages import UsageError, errors_naming, naming_flags, note
from gptlit.model.gpt import GPT
from gptlit.parser import OneLineErrors, from_environment
from gptlit.tokenizers.base import Tokenizer

Format = Literal["hf", "gguf", "onnx", "safetensors", "torch", "peft", "hugging_face"]
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
        "options and tokenizer. peft: the LoRA adapter alone. hugging_face is another name of hf."
    )
    add("--format", type=Format, default="hf", help=formats)
    types = "Type of the weights: f32, f16, bf16, or q8_0 of gguf, which takes 8 bits."
    add(
        "--push",
        type=str,
        default=None,
        help="Upload the folder to the Hub as user/name, with the token in the variable HF_TOKEN.",
    )
    public = (
        "Let everybody see what is uploaded; by default only its owner, since a model can repeat "
        "its text and an upload can't be taken back."
    )
    add("--public", type=bool, default=False, help=public)
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
    if options.dtype != "f32" and form in ("onnx", "peft"):
        raise UsageError(f"--format {form} has f32 only", "dtype", options.dtype)
    hub = None if options.push is None else Hub(options.push, options.public)
    if options.public and hub is None:
        raise UsageError("needs --push user/name", "public", True)
    with (
        errors_naming(lambda name: "gptlit export" if name == "path" else f"--{name}"),
        checkpoint.named_by("path"),
    ):
        content = checkpoint.read_named(options.checkpoint)[1]
        model, tokenizer = checkpoint.build(content)
    folder = Path(options.folder).expanduser()
    with writing("gptlit export:", folder), new_folder(folder) as new:
        architecture = ""
        if form == "peft":
            base = content.get("hyper_parameters", {}).get("init_from")
            config, weights = checkpoint.config_of(content), checkpoint.check_weights(content)
            adapters.write(config, weights, new, base if isinstance(base, str) else None)
        else:
            architecture = _fill(form, options.dtype, model, tokenizer, new)
        if form in ("hf", "gguf"):
            exported = Exported(
                options.push or folder.resolve().name, form, architecture, options.dtype
            )
            card = model_card.text(content, model, tokenizer, exported)
            (new / model_card.FILENAME).write_text(card, encoding="utf-8")
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    note(f"{folder}: {names}")
    if form == "gguf":
        for line in modelfile.commands(folder, model_card.prompt_of(content, tokenizer) or "The"):
            note(line)
    if hub is not None:
        note(f"pushed to {hub.push(folder)}, {'public' if hub.public else 'private'}")


def _fill(form: str, dtype: str, model: GPT, tokenizer: Tokenizer, folder: Path) -> str:
    """Write the files of a format; return the class or architecture of the other program."""
    if form == "hf":
        return hub_folder.fill(model, tokenizer, folder, dtype)
    if form == "gguf":
        text = modelfile.content(gguf_file.FILENAME, model.config.block_size)
        (folder / modelfile.FILENAME).write_text(text, encoding="utf-8")
        return gguf_file.fill(model, tokenizer, folder, dtype)
    if form == "onnx":
        onnx_graphs.fill(model, tokenizer, folder)
    else:
        plain_files.fill(model, tokenizer, folder, form, dtype)
    return ""
