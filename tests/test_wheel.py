"""The built wheel holds what the package needs away from its repository, and renders a card from there."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "goldens" / "manifest_grace.json"
SCRIPT = """
import json, pathlib, sys
import hf_curate
from hf_curate.hub.card import Card, templates
manifest = json.loads(pathlib.Path(sys.argv[1]).read_text("utf-8"))
print(pathlib.Path(hf_curate.__file__).parents[1])
print(templates())
print(Card(manifest).render())
"""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=folder)
    if done.returncode:
        reached = "Could not find a version that satisfies the requirement hatchling" not in done.stderr
        if reached and "ConnectionError" not in done.stderr and "Failed to establish" not in done.stderr:
            pytest.fail(done.stderr)
        pytest.skip("pip cannot reach an index that has hatchling, which the build needs")
    with zipfile.ZipFile(next(folder.glob("hf_curate-*.whl"))) as wheel:
        wheel.extractall(folder / "site")
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_templates_models_traces_and_types(unpacked: Path) -> None:
    package = unpacked / "hf_curate"
    assert (package / "py.typed").is_file()
    assert (package / "demo" / "traces.parquet").is_file()
    assert len(list((package / "demo").glob("*/model.safetensors"))) == 2
    assert {p.name for p in (package / "_cards").iterdir()} == {p.name for p in (ROOT / "cards").iterdir()}
    source = {
        p.relative_to(ROOT) for p in (ROOT / "hf_curate").rglob("*") if p.is_file() and "__pycache__" not in p.parts
    }
    assert {p.relative_to(unpacked) for p in package.rglob("*") if p.is_file()} >= source
    assert [path.name for path in unpacked.iterdir() if path.is_dir() and not path.name.endswith("dist-info")] == [
        "hf_curate"
    ]


@pytest.mark.slow
def test_a_card_renders_from_the_wheel_alone(unpacked: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-c", SCRIPT, str(GOLDEN)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    place, cards, *card = done.stdout.splitlines()
    assert Path(place) == unpacked
    assert Path(cards) == unpacked / "hf_curate" / "_cards"
    assert "### How it was constructed" in "\n".join(card)
    assert "1,495 of 7,473 rows" in "\n".join(card)
