"""One server for the tests of the API and of the page."""

from collections.abc import Iterator

import pytest

from tests.conftest import Run
from tests.serve.serving import Serving, serving

LIMITS = ["--max_tokens=5000", "--max_prompt=300", "--max_requests=40"]


@pytest.fixture(scope="session")
def served(run: Run) -> Iterator[Serving]:
    with serving([str(run.folder / "checkpoints" / "last.ckpt"), *LIMITS]) as found:
        yield found
