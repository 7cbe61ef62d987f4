"""The README.md of an exported folder: its text, sizes, figures, a sample, and how to use it."""

import contextlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gptlit import __version__
from gptlit.checkpoints.checkpoint import KEY
from gptlit.corpora.catalog import CORPORA
from gptlit.exports import gguf_file, modelfile, own_code
from gptlit.generation.generate import generate
from gptlit.messages import UsageError
from gptlit.model.gpt import GPT
from gptlit.terminal import printable
from gptlit.tokenizers.base import Tokenizer

FILENAME = "README.md"
SAMPLE_TOKENS = 200
# figures of the last validation, and what they are
FIGURES = {
    "val/loss": "loss per token, in nats",
    "val/perplexity": "perplexity",
    "val/bits_per_byte": "bits per byte",
}
# classes whose folders gptlit imports
READ_BACK = ("GPT2LMHeadModel", "LlamaForCausalLM", "Qwen3ForCausalLM", own_code.ARCHITECTURE)


@dataclass
class Exported:
    """A folder that a card describes.

    Args:
        name: Its name on the Hub, or else the folder's own.
        form: hf or gguf.
        architecture: Class of transformers, or architecture of llama.cpp.
        dtype: Type of its weights.
    """

    name: str
    form: str
    architecture: str
    dtype: str


def prompt_of(content: dict[str, Any], tokenizer: Tokenizer) -> str:
    """Return the first prompt of a run's samples; "" if there is none that can be encoded.

    Args:
        content: Content of a checkpoint.
        tokenizer: Its tokenizer.
    """
    with contextlib.suppress(yaml.YAMLError, KeyError, TypeError, IndexError, UsageError):
        prompt = yaml.safe_load(content[KEY]["run"])["samples"]["prompts"][0]
        tokenizer.encode(prompt)
        return str(prompt)
    return ""


def text(content: dict[str, Any], model: GPT, tokenizer: Tokenizer, exported: Exported) -> str:
    """Return a model card in Markdown, with the options of its page on the Hub in front.

    Args:
        content: Content of the checkpoint.
        model: Its model, which writes a sample.
        tokenizer: Its tokenizer.
        exported: The folder that is described.
    """
    prompt = prompt_of(content, tokenizer)
    sample = generate(model, tokenizer, prompt, max_new_tokens=SAMPLE_TOKENS)
    evaluated = content[KEY].get("evaluated", {})
    parts = [
        _front(content, exported, prompt, evaluated),
        f"# {printable(exported.name, one_line=True)}",
        f"A GPT of {model.num_parameters():,} parameters, trained by gptlit {__version__} "
        f"for {content['global_step']:,} steps and exported as {exported.architecture} "
        f"in {exported.dtype}.",
        _about_text(content),
        _sizes(model, tokenizer),
        _figures(evaluated),
        f"## Sample\n\nPrompt {_code(prompt)}, seed 1337, temperature 0.8:\n\n{_fenced(sample)}",
        "## Use\n\n" + "\n\n".join(_uses(exported, prompt)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _corpus(content: dict[str, Any]) -> tuple[str, str]:
    """Return the name of the text, and the licence if it is known."""
    described = content[KEY]["text"]
    name, known = described["name"], CORPORA.get(described["name"])
    if known is not None and known.sha256 == described["sha256"]:
        return name, known.licence
    # of a user's own file without the folders of that machine
    return printable(Path(name).name or "unknown", one_line=True), ""


def _front(
    content: dict[str, Any], exported: Exported, prompt: str, evaluated: dict[str, float]
) -> str:
    name, _ = _corpus(content)
    is_hf = exported.form == "hf"
    options: dict[str, Any] = {
        # the weights are their author's to license
        "license": "unknown",
        "library_name": "transformers" if is_hf else "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gptlit", "text-generation", *([] if is_hf else ["gguf", "llama.cpp"])],
    }
    if is_hf and exported.architecture == own_code.ARCHITECTURE:
        options["tags"].append("custom_code")
    if prompt:
        options["widget"] = [{"text": prompt}]
    metrics = [
        {"type": name.partition("/")[2], "value": round(evaluated[name], 4), "name": about}
        for name, about in FIGURES.items()
        if name in evaluated
    ]
    if metrics:
        dataset = {"name": name, "type": "text", "split": "validation"}
        task = {"type": "text-generation"}
        result = {"task": task, "dataset": dataset, "metrics": metrics}
        options["model-index"] = [{"name": exported.name, "results": [result]}]
    dumped = yaml.safe_dump(options, sort_keys=False, allow_unicode=True, width=100)
    return f"---\n{dumped}---"


def _about_text(content: dict[str, Any]) -> str:
    name, licence = _corpus(content)
    if not content["global_step"]:
        return "The weights were imported, not trained here."
    under = f"Its licence: {licence}." if licence else "Its licence isn't known to gptlit."
    return (
        f"Text: {_code(name)}, sha256 {content[KEY]['text']['sha256']}. {under} The weights have "
        "no licence yet: replace `license: unknown` in the first lines by the one you choose."
    )


def _sizes(model: GPT, tokenizer: Tokenizer) -> str:
    config = model.config
    rows = {
        "layers": config.n_layer,
        "heads, of which keys and values": f"{config.n_head}, {config.kv_heads}",
        "width, of which in a head": f"{config.n_embd}, {config.head_size}",
        "width of the MLP": f"{config.hidden}, {config.activation}",
        "positions": config.positions,
        "norm": f"{config.norm}, {config.norm_place}",
        "context": f"{config.block_size} tokens",
        "vocabulary": f"{config.vocab_size:,} tokens",
        "tokenizer": tokenizer.kind,
    }
    return "## Sizes\n\n" + _table(("size", "value"), {k: str(v) for k, v in rows.items()})


def _figures(evaluated: dict[str, float]) -> str:
    rows = {about: f"{evaluated[n]:.4f}" for n, about in FIGURES.items() if n in evaluated}
    if not rows:
        return ""
    head = f"## Figures\n\nOn the whole validation split, at step {evaluated['step']:,}:\n\n"
    return head + _table(("figure", "value"), rows)


def _table(head: tuple[str, str], rows: dict[str, str]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |"]
    return "\n".join(lines + [f"| {name} | {value} |" for name, value in rows.items()])


def _code(text: str) -> str:
    """Return a text as inline code of Markdown, also if it has backticks."""
    shown = printable(text, one_line=True)
    if "`" in shown or shown != shown.strip():
        return f"`` {shown} ``"
    return f"`{shown}`" if text else "(none)"


def _fenced(text: str, language: str = "text") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{printable(text)}\n{fence}"


def _uses(exported: Exported, prompt: str) -> list[str]:
    """Return three ways to write with the model, each a name and a block."""
    prompt = prompt or "The"
    return [
        f"{tool}:\n\n{_fenced(lines, language)}"
        for tool, language, lines in (
            _of_gguf(exported, prompt) if exported.form == "gguf" else _of_hf(exported, prompt)
        )
    ]


def _of_gguf(exported: Exported, prompt: str) -> list[tuple[str, str, str]]:
    file, shown = f"{exported.name}/{gguf_file.FILENAME}", shlex.quote(prompt)
    if "/" in exported.name:  # on the Hub
        name, settings = exported.name, "-n 200 --temp 0.8"
        in_python = f"""\
from llama_cpp import Llama

model = Llama.from_pretrained({name!r}, {gguf_file.FILENAME!r})
print(model({prompt!r}, max_tokens=200, temperature=0.8)["choices"][0]["text"])"""
        return [
            ("ollama", "bash", f"ollama run hf.co/{name} {shown}"),
            ("llama.cpp", "bash", f"llama-completion -hf {name} -p {shown} {settings}"),
            ("llama-cpp-python", "python", in_python),
        ]
    in_python = f"""\
from llama_cpp import Llama

model = Llama({file!r})
result = model({prompt!r}, max_tokens=200, temperature=0.8)
print(result["choices"][0]["text"])"""
    of_llama = f"llama-completion -m {shlex.quote(file)} -p {shown} -n 200 --temp 0.8"
    return [
        ("ollama", "bash", "\n".join(modelfile.commands(Path(exported.name), prompt))),
        ("llama.cpp", "bash", of_llama),
        ("llama-cpp-python", "python", in_python),
    ]


def _of_hf(exported: Exported, prompt: str) -> list[tuple[str, str, str]]:
    is_own = exported.architecture == own_code.ARCHITECTURE
    trust = ", trust_remote_code=True" if is_own else ""
    warned = f" (runs {own_code.FILENAME} of the folder: read it first)" if is_own else ""
    name, shown = shlex.quote(exported.name), shlex.quote(prompt)
    in_transformers = f"""\
from transformers import pipeline

write = pipeline("text-generation", {exported.name!r}{trust})
print(write({prompt!r}, max_new_tokens=200, do_sample=True)[0]["generated_text"])"""
    in_torch = f"""\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained({exported.name!r}{trust})
tokenizer = AutoTokenizer.from_pretrained({exported.name!r})
ids = tokenizer({prompt!r}, return_tensors="pt").input_ids
print(model(ids).logits[0, -1].topk(5))"""
    in_gptlit = f"""\
gptlit import hugging_face {name} --output model.ckpt
gptlit predict --ckpt_path model.ckpt --prompt {shown}"""
    uses = [
        (f"transformers{warned}", "python", in_transformers),
        ("PyTorch", "python", in_torch),
    ]
    if exported.architecture in READ_BACK:
        uses.append(("gptlit", "bash", in_gptlit))
    if not is_own:
        uses.append(("vLLM", "bash", f"vllm serve {name}"))
    return uses
