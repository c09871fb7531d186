"""Every test runs offline, in caches of its own, and on one torch thread.

The variables must be set before `datasets` or `huggingface_hub` are imported: they read them once. Subprocesses
inherit them.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

_CACHES = tempfile.mkdtemp(prefix="hf-curate-tests-")
atexit.register(shutil.rmtree, _CACHES, ignore_errors=True)

for _variable in ("HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE"):
    os.environ.pop(_variable, None)
os.environ |= {
    "HF_HOME": os.path.join(_CACHES, "home"),
    "HF_DATASETS_CACHE": os.path.join(_CACHES, "datasets"),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
}


def pytest_configure(config: pytest.Config) -> None:
    # ignored in the background of a shell, and tests send it to themselves
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("filterwarnings", "ignore:GRACE's authors score with a model:UserWarning")


FIRST = (
    "test_examples.py",
    "test_ray.py",
    "test_workers.py",
    "test_crash.py",
    "test_trl_selection.py",
    "test_probe.py",
)
"""Files that take long: one of them that begins last would leave the other processes without work."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


def pytest_collection_finish() -> None:
    """Libraries and tests stay: to go through all of them again and again was a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> Iterator[None]:
    """Tests share the machine's cores; sums over one thread come out the same everywhere."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def drawn_once() -> Iterator[None]:
    """What is drawn are the first numbers of their kind alone; that plots show their numbers is for test_plots, which
    calls the functions below this one."""
    from hf_curate.plots import draw

    real, drawn = draw.plot, {}

    def kind(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: kind(part) for name, part in value.items()}
        if isinstance(value, list):
            return [kind(value[0])] if value else []
        return type(value).__name__

    @functools.wraps(real)
    def plot(name: str, manifest: Any) -> bytes:
        try:
            parts = {key: kind(manifest[key]) for key in ("rows", "budget", "scores", "selector")}
            parts |= {key: kind(manifest.get(key)) for key in ("steps", "length", "pass_rate", "nested")}
            key = name + json.dumps(parts, sort_keys=True)
        except (KeyError, TypeError, AttributeError):
            return real(name, manifest)
        if sys.modules.get("matplotlib", "not yet") is None:  # a test has taken it away
            return real(name, manifest)
        if key not in drawn:
            drawn[key] = real(name, manifest)
        return drawn[key]

    draw.plot = plot
    yield
    draw.plot = real
