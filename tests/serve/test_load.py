"""The load test of benchmarks/serve.py counts every token."""

import asyncio

from benchmarks.serve import load
from tests.serve.serving import Serving


def test_the_tokens_of_all_clients_are_counted(served: Serving) -> None:
    measured = asyncio.run(load(served.port, 3, 2, 5))
    assert (len(measured.first), measured.n_tokens) == (6, 30)
    assert max(measured.first) < measured.seconds
    measured.first, measured.seconds = [0.01] * 19 + [0.03], 0.5
    assert measured.row("3 clients", 30.0).split() == ["3", "clients", "10.0", "11.0", "60", "2.00"]
