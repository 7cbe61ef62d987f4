"""Load test of `gptlit serve`: many clients at once, compared with one.

    python benchmarks/serve.py [--checkpoint best] [--clients 1,8,64] [--tokens 100] [--rounds 4]

Each client streams texts one after another, each with a seed of its own. Prints the time until a
text's first token (p50 and p95), the tokens of all clients in a second, and the same tokens written
as one batch in Python, without a server. Client and server share the machine's cores.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import gptlit
from gptlit.generation.generate import generate_many
from gptlit.generation.settings import SamplingSettings

PROMPT = "ROMEO:"


@dataclass
class Measured:
    """Times of the texts of several clients.

    Args:
        first: Seconds from each request to its first token.
        n_tokens: Tokens of all texts.
        seconds: From the first request to the end of the last text.
    """

    first: list[float] = field(default_factory=list)
    n_tokens: int = 0
    seconds: float = 0.0

    @property
    def speed(self) -> float:
        """Tokens of all clients in a second."""
        return self.n_tokens / self.seconds

    def row(self, name: str, base: float) -> str:
        """Format the figures as a line of the table."""
        quantiles = statistics.quantiles(self.first, n=20, method="inclusive")
        times = f"{1e3 * statistics.median(self.first):8.1f}{1e3 * quantiles[18]:10.1f}"
        return f"{name:<12}{times}{self.speed:12,.0f}{self.speed / base:10.2f}"


@contextlib.contextmanager
def server(options: argparse.Namespace) -> Iterator[int]:
    """Run the server, and yield its port."""
    words = ["serve", options.checkpoint, "--port=0", f"--max_requests={max(options.clients)}"]
    words += [f"--threads={options.threads}"]
    command = [sys.executable, "-m", "gptlit", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline().rpartition(":")[2])
        finally:
            process.terminate()


async def write(port: int, seed: int, n_tokens: int, measured: Measured) -> None:
    """Stream one text, and record its times."""
    body = {"prompt": PROMPT, "max_tokens": n_tokens, "seed": seed, "stream": True}
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + content)
    is_first = True
    while line := await reader.readline():
        if line.startswith(b"data: {"):
            measured.n_tokens += 1
            if is_first:
                measured.first.append(time.perf_counter() - began)
            is_first = False
    writer.close()


async def load(port: int, n_clients: int, rounds: int, n_tokens: int) -> Measured:
    """Stream the texts of all clients, each `rounds` one after another."""
    measured = Measured()

    async def client(index: int) -> None:
        for number in range(rounds):
            await write(port, 1000 * index + number, n_tokens, measured)

    began = time.perf_counter()
    await asyncio.gather(*(client(index) for index in range(n_clients)))
    measured.seconds = time.perf_counter() - began
    assert measured.n_tokens == n_clients * rounds * n_tokens, "a text is not whole"
    return measured


def in_python(options: argparse.Namespace, n_texts: int) -> float:
    """Return the tokens in a second of one batch, without a server."""
    model, tokenizer = gptlit.load(options.checkpoint)
    settings = SamplingSettings(temperature=1.0, max_new_tokens=options.tokens)
    seeds = list(range(n_texts))
    began = time.perf_counter()
    for _ in range(options.rounds):
        generate_many(model, tokenizer, [PROMPT] * n_texts, seeds, settings)
    return options.rounds * n_texts * options.tokens / (time.perf_counter() - began)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="best")
    parser.add_argument(
        "--clients", type=lambda text: [*map(int, text.split(","))], default=[1, 8, 64]
    )
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(argv)
    with server(options) as port:
        asyncio.run(load(port, max(options.clients), 1, 8))  # warms up
        found = {}
        for n_clients in options.clients:
            rounds = options.rounds * max(1, 8 // n_clients)
            found[n_clients] = asyncio.run(load(port, n_clients, rounds, options.tokens))
    base = found[options.clients[0]].speed
    print(f"{'':<12}{'p50 ms':>8}{'p95 ms':>10}{'tokens/s':>12}{'x':>10}")
    for n_clients, measured in found.items():
        print(measured.row(f"{n_clients} client{'s' * (n_clients > 1)}", base))
    for n_clients in options.clients:
        speed = in_python(options, n_clients)
        print(f"{f'{n_clients} in Python':<30}{speed:12,.0f}{speed / base:10.2f}")


if __name__ == "__main__":
    main()
