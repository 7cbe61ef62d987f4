"""Time and size of a page of `gptlit look`, by the model's size and the text's length.

    OMP_NUM_THREADS=1 python benchmarks/look.py [--sizes small,gpt2] [--rounds 3]

The models have random weights and GPT-2's shapes; the text is random. The time is that of the
values and the HTML, after the imports, the best of several rounds.
"""

import argparse
import time

import torch

from gptlit.look import content, page
from gptlit.model.gpt import GPT, GPTConfig
from gptlit.tokenizers.words import WordTokenizer

SIZES = {  # layers, heads, channels, context, vocabulary
    "small": (4, 4, 128, 256, 65),
    "gpt2": (12, 12, 768, 1024, 50_257),
    "gpt2-medium": (24, 16, 1024, 1024, 50_257),
}


def measured(model: GPT, tokenizer: WordTokenizer, n_tokens: int, rounds: int) -> tuple[float, int]:
    """Return the seconds that a page takes, and its bytes."""
    ids = torch.randint(model.config.vocab_size, (n_tokens,)).tolist()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        html = page.html("", "", content.content(model, tokenizer, ids, started=False))
        times.append(time.perf_counter() - began)
    return min(times), len(html.encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="small,gpt2,gpt2-medium")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    print("| model | tokens | seconds | kB |\n| --- | ---: | ---: | ---: |")
    for name in options.sizes.split(","):
        n_layer, n_head, n_embd, block_size, vocab_size = SIZES[name]
        config = GPTConfig(vocab_size, n_layer, n_head, n_embd=n_embd, block_size=block_size)
        model = GPT(config).eval()
        tokenizer = WordTokenizer([f"w{index}" for index in range(vocab_size)])
        for n_tokens in (16, 64, content.most_tokens(model)):
            seconds, n_bytes = measured(model, tokenizer, n_tokens, options.rounds)
            print(f"| {name} | {n_tokens} | {seconds:.2f} | {n_bytes / 1000:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
