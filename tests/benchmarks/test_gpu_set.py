"""The one script for a GPU runs here at a tiny size, checks what it compares, and prints its tables last."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STRANGERS = ("datasets", "trl", "math_verify", "tyro")
"""Packages that a machine with a GPU may lack."""
BLOCKED = f"""
import runpy, sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {STRANGERS}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Lacking())
sys.argv[:1] = []
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_the_gpu_set_runs_at_a_tiny_size_without_the_packages_that_are_not_there(tmp_path: Path) -> None:
    script = ROOT / "benchmarks" / "gpu.py"
    command = [sys.executable, "-c", BLOCKED, str(script), "--tiny", "--rounds", "1", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    for shape in ("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-8B"):
        for way in ("forward", "representation", "outer"):
            assert any(line.startswith(f"{shape}, {way} ") for line in lines), (shape, way)
    assert lines[-2].startswith("one bfloat16 product"), "tables come last"
    [path] = tmp_path.glob("gpu_*.json")
    found = json.loads(path.read_text("utf-8"))
    assert set(found["Qwen3-8B"]["ratio"]) == {"forward", "representation", "outer"}
    errors = found["candidate"]["relative error"]
    assert errors["three bfloat16 products"] < 1e-6 < 1e-4 < errors["one bfloat16 product"]


def test_without_a_gpu_the_set_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    with pytest.raises(SystemExit, match=r"no CUDA device: --tiny runs the same on a CPU, for the tests\.$"):
        runpy.run_path(str(ROOT / "benchmarks" / "gpu.py"), run_name="__main__")
