"""Choose tokens by a rule of one's own: only those that are not much rarer than a typical one.

    python examples/own_sampler.py "ROMEO:"

A typical token has the probability exp(-entropy). The rule is a simple form of eta sampling (Hewitt
et al. 2022).
"""

import sys

import torch
from torch import Tensor

import gptlit
from gptlit.generation.decoding import Windows
from gptlit.generation.sampling import entropy


def next_token(logits: Tensor, generator: torch.Generator) -> Tensor:
    """(B,) token ids drawn from (B, V) logits."""
    probabilities = logits.softmax(dim=-1)
    least = 0.3 * torch.exp(-entropy(logits))[:, None]  # (B, 1)
    kept = probabilities.masked_fill(probabilities < least, 0)  # the likeliest always stays
    return torch.multinomial(kept, 1, generator=generator)[:, 0]


@torch.inference_mode()
def write(prompt: str, n_tokens: int, seed: int = 1337) -> str:
    """The prompt and its continuation."""
    model, tokenizer = gptlit.load("best")
    ids = torch.tensor(tokenizer.encode(prompt))  # (T,)
    windows = Windows(model, [ids])  # keeps the model's cache, and the window within block_size
    generator = torch.Generator().manual_seed(seed)
    written = []
    for _ in range(n_tokens):
        token = next_token(windows.logits(), generator)  # (1,)
        windows.append(token)
        written.append(int(token))
    return prompt + tokenizer.decode(written)


if __name__ == "__main__":
    print(write(sys.argv[1], 200))
