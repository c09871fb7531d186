"""`hf-curate demo`: one run in a process of its own, and its table worked out again from the shipped traces."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import warm
from datasets import load_dataset

import hf_curate.demo
from hf_curate import load_curated
from hf_curate.demo.run import run_demo
from hf_curate.errors import CurateError
from hf_curate.hub.manifest import read_manifest, shard_name

KINDS = ("broken", "filler", "propagated", "wrong_answer")
ROWS = 160  # 20 % of 800


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "hf_curate.cli", "demo"]
    done = warm.run(command, timeout=300, cwd=folder)
    return done, folder / "hf-curate-demo"


@pytest.fixture(scope="module")
def traces() -> list[dict[str, str]]:
    return pq.read_table(hf_curate.demo.TRACES).to_pylist()


def table(text: str) -> dict[str, list[int]]:
    """Selector -> the numbers of its row."""
    rows = [line for line in text.splitlines() if line[-1:].isdigit() and "->" not in line]
    found = {}
    for line in rows:
        words = line.split()
        numbers = [int(word) for word in words[-6:] if word.isdigit()]
        if len(numbers) == 6:
            found[" ".join(words[:-6])] = numbers
    return found


def counted(rows: list[int], traces: list[dict[str, str]]) -> list[int]:
    """Rows kept, damaged ones among them, and these by kind."""
    kinds = Counter(traces[row]["damage"] for row in rows)
    return [len(rows), len(rows) - kinds["none"], *(kinds[kind] for kind in KINDS)]


@pytest.mark.slow
def test_the_demo_prints_the_table_of_its_own_run(
    demo: tuple[subprocess.CompletedProcess[str], Path], traces: list[dict[str, str]]
) -> None:
    done, folder = demo
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    found = table(done.stdout)
    assert list(found) == [
        *(f"GRACE, {proxy}" for proxy in ("representation", "outer", "last", "exact")),
        "random",
        "longest",
        "lowest loss",
    ]
    random = np.random.default_rng(0).permutation(len(traces))[:ROWS].tolist()
    assert found["random"] == counted(random, traces)
    # The tokenizer has one token for each character.
    length = sorted(range(len(traces)), key=lambda i: -len(traces[i]["prompt"] + traces[i]["completion"]))
    assert found["longest"] == counted(length[:ROWS], traces)
    saved = load_dataset(str(folder), "grace-20pct", split="train")
    assert found["GRACE, representation"] == counted(saved["source_row"][:], traces)  # type: ignore[index]
    assert all(numbers[0] == ROWS and sum(numbers[2:]) == numbers[1] for numbers in found.values())


@pytest.mark.slow
def test_the_lowest_losses_of_the_table_are_those_of_a_plain_forward(
    demo: tuple[subprocess.CompletedProcess[str], Path], traces: list[dict[str, str]]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(hf_curate.demo.MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(hf_curate.demo.MODEL)
    losses = []
    for row in traces:
        text, start = row["prompt"] + row["completion"], len(row["prompt"])
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        with torch.no_grad():
            each = torch.nn.functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="none")
        offset = ids.shape[1] - len(text)  # special tokens in front
        # Of the completion, line ends and the mark "#" belong to no step and not to the answer.
        wanted = [i + offset - 1 for i in range(start, len(text)) if text[i] not in "\n#"]
        losses.append(float(each[wanted].double().mean()))
    order = sorted(range(len(traces)), key=lambda i: losses[i])
    kept = table(demo[0].stdout)["lowest loss"]
    assert kept == counted(order[:ROWS], traces)


@pytest.mark.slow
def test_the_demo_leaves_a_folder_like_a_hub_dataset_repo(
    demo: tuple[subprocess.CompletedProcess[str], Path], traces: list[dict[str, str]]
) -> None:
    _, folder = demo
    manifest = read_manifest(folder / "grace-20pct" / "train.manifest.json")
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        f"grace-20pct/{shard_name(manifest, 0, 1)}",
        *(f"grace-20pct/train.{name}" for name in ("length.png", "manifest.json", "nested.png", "scores.png")),
        "grace-20pct/train.steps.png",
        "report.html",
    ]
    again = load_curated(folder, "grace-20pct")
    assert again.problems == []
    assert again.manifest["source"]["id"] == "local file traces.parquet"
    for row in again.dataset:
        original = traces[row["source_row"]]  # type: ignore[call-overload,index]
        assert {name: row[name] for name in original} == original  # type: ignore[call-overload]
    readme = (folder / "README.md").read_text("utf-8")
    assert "160 of 800 rows (20.0 %)" in readme
    assert str(folder.parent) not in readme + (folder / "grace-20pct" / "train.manifest.json").read_text("utf-8")


def test_the_demo_overwrites_nothing_but_its_own(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CurateError, match="not the folder of an earlier demo"):
        run_demo(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CurateError, match="not the folder of an earlier demo"):
        run_demo(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "notes.txt"]
