"""GraceScorer.warmed_up(): a copy is trained, the original is not, and the record says on what."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import saved, tiny
from transformers import AutoModelForCausalLM

from hf_curate import GraceScorer, score, select
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import CurateError, MissingPackageError, ScoreError
from hf_curate.scorers.audit import AUDIT_STREAM
from hf_curate.scorers.traces import TraceReader
from hf_curate.scorers.warm_up import WARM_UP_STREAM
from hf_curate.weights import folder_digest, weights_digest

RECORD = "hf_curate_warm_up.json"


@pytest.fixture(scope="module")
def pool() -> Dataset:
    return load_traces().select_columns(["prompt", "completion"]).select(range(50))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return GraceScorer(MODEL).reader.tokenizer


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    return saved(tmp_path / "base", tiny(vocabulary=20), tokenizer)


def test_a_warmed_up_scorer_scores_with_a_trained_copy_and_says_so(tmp_path: Path, pool: Dataset) -> None:
    before = folder_digest(Path(MODEL))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = GraceScorer.warmed_up(MODEL, pool, 0.05, seed=3, out=tmp_path / "warm", alpha=0.5)
        scored = score(pool, made)
    assert folder_digest(Path(MODEL)) == before
    record = made.record()["model"]["warm_up"]
    assert record == json.loads((tmp_path / "warm" / RECORD).read_text())
    expected = {"method": "full", "fraction": 0.05, "rows": 3, "unreadable_rows": 0, "pool_rows": 50, "seed": 3}
    expected |= {"pool_fingerprint": pool._fingerprint}
    expected |= {"learning_rate": 1e-4, "epochs": 1, "batch_rows": 16, "steps": 1}
    assert {name: record[name] for name in expected} == expected
    assert record["base"] == {"id": Path(MODEL).name, "sha": None, "digest": before}
    assert "AdamW" in record["optimizer"]
    assert made.alpha == 0.5
    assert (tmp_path / "warm" / "model.safetensors").is_file()
    plain = GraceScorer(MODEL, alpha=0.5)
    assert made.identity != plain.identity
    assert scored["grace_value"][:] != score(pool, plain)["grace_value"][:]
    assert select(scored, made, budget="20%").manifest["model"]["warm_up"] == record
    assert str(tmp_path) not in json.dumps(made.record())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    tmp_path: Path, folder: Path, pool: Dataset
) -> None:
    torch.manual_seed(1)
    digests = []
    for number, seed in enumerate((0, 0, 1)):
        made = GraceScorer.warmed_up(folder, pool, 0.2, seed=seed, out=tmp_path / f"warm{number}")
        digests.append(made.record()["model"]["digest"])
        torch.rand(3)
    assert digests[0] == digests[1] != digests[2]


def test_the_loss_goes_down(tmp_path: Path, folder: Path, pool: Dataset) -> None:
    made = GraceScorer.warmed_up(folder, pool, 1.0, out=tmp_path / "warm", epochs=6, learning_rate=3e-3, batch_rows=10)
    record = made.record()["model"]["warm_up"]
    assert (record["rows"], record["steps"]) == (50, 30)
    assert record["loss_last"] < 0.8 * record["loss_first"]


def test_a_live_model_is_copied_and_not_trained(tmp_path: Path, pool: Dataset, tokenizer: Any) -> None:
    model = tiny(vocabulary=20)
    before = weights_digest(model)
    made = GraceScorer.warmed_up(model, pool, 0.2, out=tmp_path / "warm", tokenizer=tokenizer, learning_rate=1e-2)
    assert weights_digest(model) == before
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert made.source.kind == "folder"
    assert made(pool[0])["grace_value"] != GraceScorer(model, tokenizer=tokenizer)(pool[0])["grace_value"]


def test_rows_that_cannot_be_read_are_counted_and_not_trained_on(tmp_path: Path, folder: Path, pool: Dataset) -> None:
    mixed = Dataset.from_list([*pool.select(range(6)).to_list(), *[{"prompt": "1?", "completion": ""}] * 4])
    record = GraceScorer.warmed_up(folder, mixed, 1.0, out=tmp_path / "warm").record()["model"]["warm_up"]
    assert (record["rows"], record["unreadable_rows"], record["pool_rows"]) == (6, 4, 10)
    with pytest.raises(ScoreError, match="none of the 4 rows drawn for the warm-up can be read: empty trace"):
        GraceScorer.warmed_up(folder, mixed.select(range(6, 10)), 1.0, out=tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_are_trained_in_float32(
    dtype: str, tmp_path: Path, pool: Dataset, tokenizer: Any
) -> None:
    base = saved(tmp_path / "base", tiny(vocabulary=20).to(getattr(torch, dtype)), tokenizer)
    made = GraceScorer.warmed_up(base, pool, 0.1, out=tmp_path / "warm", learning_rate=1e-5)
    assert made.record()["model"]["dtype"] == "float32"
    was, now = GraceScorer(base).load().model, made.load().model
    moved = [float((a.float() != b).float().mean()) for a, b in zip(was.parameters(), now.parameters(), strict=True)]
    assert sum(moved) / len(moved) > 0.5, "an update of 1e-5 is lost when it is rounded to half precision"


def test_lora_saves_an_adapter_that_loads_onto_its_base(tmp_path: Path, folder: Path, pool: Dataset) -> None:
    pytest.importorskip("peft")
    before = folder_digest(folder)
    made = GraceScorer.warmed_up(folder, pool, 0.5, out=tmp_path / "warm", method="lora", learning_rate=1e-2)
    record = made.record()["model"]["warm_up"]
    assert record["method"] == "lora"
    assert record["lora"] == {"r": 8, "alpha": 32, "target_modules": "all-linear"}
    assert {path.name for path in (tmp_path / "warm").glob("*.safetensors")} == {"adapter_model.safetensors"}
    assert folder_digest(folder) == before
    assert made(pool[0])["grace_value"] != GraceScorer(folder)(pool[0])["grace_value"]
    torch.rand(3)
    again = GraceScorer.warmed_up(folder, pool, 0.5, out=tmp_path / "again", method="lora", learning_rate=1e-2)
    assert again.record()["model"]["digest"] == made.record()["model"]["digest"]


@pytest.mark.parametrize("method", ["full", "lora", None])
def test_an_adapter_is_refused_with_how_to_merge_it(
    method: str | None, tmp_path: Path, folder: Path, pool: Dataset, tokenizer: Any
) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    adapter = saved(tmp_path / "adapter", model, tokenizer)
    merge = r"is an adapter, .* merge it first with model.merge_and_unload\(\).save_pretrained\(folder\)"
    with pytest.raises(CurateError, match=f"'adapter' {merge}"):
        GraceScorer.warmed_up(adapter, pool, 0.1, out=tmp_path / "warm", method=method)
    with pytest.raises(CurateError, match=merge):
        GraceScorer.warmed_up(model, pool, 0.1, out=tmp_path / "warm", method=method, tokenizer=tokenizer)
    assert not (tmp_path / "warm").exists()


def test_the_rows_trained_on_are_drawn_apart_from_baselines_and_audits(
    tmp_path: Path, folder: Path, pool: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    rows = {row["prompt"]: index for index, row in enumerate(pool)}
    reads = TraceReader.read
    monkeypatch.setattr(TraceReader, "read", lambda self, row: read.append(rows[row["prompt"]]) or reads(self, row))
    GraceScorer.warmed_up(folder, pool, 0.2, seed=3, out=tmp_path / "warm")
    drawn = {
        name: sorted(np.random.default_rng(seed).permutation(50)[:10].tolist())
        for name, seed in {"warm-up": [3, WARM_UP_STREAM], "audit": [3, AUDIT_STREAM], "baseline": 3}.items()
    }
    assert len(rows) == 50
    assert read == drawn["warm-up"]
    assert drawn["audit"] != drawn["warm-up"] != drawn["baseline"]


def test_lora_without_peft_says_what_to_install(
    tmp_path: Path, folder: Path, pool: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"a LoRA warm-up needs.*pip install 'hf_curate\[peft\]'"):
        GraceScorer.warmed_up(folder, pool, 0.5, out=tmp_path / "warm", method="lora")


def test_lora_on_a_live_model_is_refused(tmp_path: Path, pool: Dataset, tokenizer: Any) -> None:
    with pytest.raises(CurateError, match="a live model has no name"):
        GraceScorer.warmed_up(
            tiny(vocabulary=20), pool, 0.5, out=tmp_path / "warm", method="lora", tokenizer=tokenizer
        )


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fraction": 0}, "fraction=0 must be above 0 and at most 1"),
        ({"fraction": 1.01}, "fraction=1.01"),
        ({"fraction": -0.5}, "fraction=-0.5"),
        ({"fraction": float("nan")}, "fraction=nan"),
        ({"method": "dora"}, "method='dora' is not 'lora' or 'full'"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_rows": 0}, "batch_rows=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"alpha": 2}, "alpha=2"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_before_anything_is_written(
    settings: dict[str, Any], says: str, tmp_path: Path, folder: Path, pool: Dataset
) -> None:
    with pytest.raises(CurateError, match=says):
        GraceScorer.warmed_up(folder, pool, out=tmp_path / "warm", **settings)
    assert not (tmp_path / "warm").exists()


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path, folder: Path, pool: Dataset) -> None:
    (tmp_path / "warm").mkdir()
    (tmp_path / "warm" / "mine.txt").write_text("mine")
    with pytest.raises(CurateError, match="the folder 'warm' is not empty"):
        GraceScorer.warmed_up(folder, pool, out=tmp_path / "warm")
    assert [path.name for path in (tmp_path / "warm").iterdir()] == ["mine.txt"]
