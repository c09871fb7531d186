"""The lab is a package beside the examples, as `make evidence-small` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole of the tiny study was run."""
    from evidence.lab import Lab
    from evidence.study import TINY

    folder = tmp_path_factory.mktemp("evidence")
    assert Lab(TINY, folder).run() == len(TINY.cells())
    return folder
