"""One server for the tests of the API and of the page."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import Run
from tests.serve.serving import Serving, serving

LIMITS = ["--max_tokens=5000", "--max_prompt=300", "--max_requests=40"]


@pytest.fixture(scope="session")
def ckpt(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose predictions are further from uniform than those of the short run."""
    content = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)
    content["state_dict"]["net.ln_f.weight"] *= 6
    path = tmp_path_factory.mktemp("sharp") / "version_0" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(content, path)
    return path


@pytest.fixture(scope="session")
def served(ckpt: Path) -> Iterator[Serving]:
    with serving([str(ckpt), *LIMITS]) as found:
        yield found
