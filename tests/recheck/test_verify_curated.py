"""verify_curated: what was saved passes; whatever is changed afterwards fails in the claim that it belongs to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rollouts
from datasets import Dataset, load_dataset
from pools import Scorer, plain, pool

import hf_curate
from hf_curate import Selection, score, select, verifier, verify_curated
from hf_curate.cli import main
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import CurateError, ManifestError, ModelError
from hf_curate.recheck.verdicts import FAILED, NOT_CHECKED, VERIFIED

ALL = ["manifest", "rows", "source", "budget", "summary", "selector", "scores", "card"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces of the demo in a file, scored by the demo's model, chosen from and saved."""
    folder = tmp_path_factory.mktemp("verify")
    load_traces().select(range(60)).to_parquet(folder / "traces.parquet")
    data = load_dataset("parquet", data_files=str(folder / "traces.parquet"), split="train")
    scorer = hf_curate.GraceScorer(MODEL, dtype="float32")
    scored = score(data, scorer)  # type: ignore[arg-type]
    select(scored, scorer, "25%", source=str(folder / "traces.parquet")).save(folder / "repo", "c")
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved / "repo", tmp_path / "repo")
    return tmp_path / "repo"


def states(verdicts: Any) -> dict[str, str]:
    return {one.claim: one.state for one in verdicts}


def test_what_was_saved_is_verified_in_every_claim(saved: Path) -> None:
    found = verify_curated(saved / "repo", "c", source=str(saved / "traces.parquet"), model=MODEL, rows=6)
    assert states(found) == dict.fromkeys(ALL, VERIFIED), str(found)
    assert found.ok
    assert found.complete
    assert "6 rows scored again, largest difference" in found["scores"].why
    assert str(found).splitlines()[0] == "c, split train: 8 verified, 0 failed, 0 not checked"


def test_without_the_local_source_and_model_they_are_not_checked_and_nothing_fails(saved: Path) -> None:
    found = verify_curated(saved / "repo", "c")
    left = {"source", "selector", "scores"}
    assert {claim for claim, state in states(found).items() if state == NOT_CHECKED} == left
    assert found.ok
    assert not found.complete
    assert "--source" in found["source"].why
    assert "--model FOLDER" in found["scores"].why


def test_another_model_is_refused_with_both_digests(saved: Path) -> None:
    other = Path(MODEL).parent / "tasks-0.4m"
    with pytest.raises(ModelError, match=r"has the digest [0-9a-f]{12}, and the manifest names [0-9a-f]{12}"):
        verify_curated(saved / "repo", "c", model=other)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and give the shards the name that goes with it."""
    from hf_curate.hub.manifest import manifest_bytes, shard_name

    path = folder / "c" / "train.manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    change(manifest)
    path.write_bytes(manifest_bytes(manifest))
    [shard] = (folder / "c").glob("*.parquet")
    shard.rename(folder / "c" / shard_name(manifest, 0, 1))


def edit_shard(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    [shard] = (folder / "c").glob("*.parquet")
    pq.write_table(change(pq.read_table(shard)), shard)


def with_column(table: pa.Table, name: str, change: Callable[[list[Any]], list[Any]]) -> pa.Table:
    place = table.column_names.index(name)
    values = pa.array(change(table[name].to_pylist()), type=table.schema.field(name).type)
    return table.set_column(place, table.schema.field(name), values)


def test_a_changed_text_fails_in_the_rows(copy: Path) -> None:
    edit_shard(copy, lambda table: with_column(table, "completion", lambda texts: ["changed", *texts[1:]]))
    found = verify_curated(copy, "c", rows=0)
    assert states(found)["rows"] == FAILED
    assert not found.ok


def test_other_rows_of_the_source_fail_in_the_source(copy: Path, saved: Path) -> None:
    other = load_dataset("parquet", data_files=str(saved / "traces.parquet"), split="train")
    place = copy.parent / "other.parquet"
    other.select(range(59, -1, -1)).to_parquet(place)  # type: ignore[union-attr]
    found = verify_curated(copy, "c", source=str(place), rows=0)
    assert found["source"].state == FAILED
    assert "holds other rows at these places" in found["source"].why
    other.select(range(50)).to_parquet(place)  # type: ignore[union-attr]
    assert "has 50 rows, and 60 were scored" in verify_curated(copy, "c", source=str(place), rows=0)["source"].why
    other.remove_columns("damage").to_parquet(place)  # type: ignore[union-attr]
    assert "lacks the columns damage" in verify_curated(copy, "c", source=str(place), rows=0)["source"].why


def test_a_changed_score_fails_where_it_is_scored_again_and_in_the_summary(copy: Path) -> None:
    edit_shard(
        copy, lambda table: with_column(table, "grace_value", lambda values: [value + 0.01 for value in values])
    )
    found = verify_curated(copy, "c", model=MODEL, rows=4)
    assert {claim for claim, state in states(found).items() if state == FAILED} == {"budget", "summary", "scores"}
    assert "4 rows differ" in found["scores"].why
    loose = verify_curated(copy, "c", model=MODEL, rows=4, tolerance=0.1)
    assert loose["scores"].state == VERIFIED


def test_another_setting_fails_in_the_scores_and_is_named(copy: Path) -> None:
    rewrite(copy, lambda manifest: manifest["selector"]["settings"].update(alpha=0.1))
    found = verify_curated(copy, "c", model=MODEL, rows=4)
    assert found["scores"].state == FAILED
    assert found["selector"].state == NOT_CHECKED


@pytest.mark.parametrize(
    ("change", "claim", "words"),
    [
        (lambda m: m["budget"].update(threshold=0.5), "budget", "threshold 0.5, and the lowest score kept is"),
        (lambda m: m["budget"].update(asked="50%"), "budget", "'50%' of 60 rows are 30, and 15 were kept"),
        (lambda m: m["budget"].update(min_score=9.0), "budget", "min_score 9, and the lowest"),
        (lambda m: m["scores"]["kept"].update(mean=0.0), "summary", "mean 0, in the data"),
    ],
)
def test_a_changed_number_of_the_manifest_fails_in_its_claim(
    copy: Path, change: Callable[[dict[str, Any]], None], claim: str, words: str
) -> None:
    rewrite(copy, change)
    found = verify_curated(copy, "c", rows=0)
    assert found[claim].state == FAILED
    assert words in found[claim].why


def test_an_edited_section_is_no_proof_of_anything(copy: Path) -> None:
    readme = copy / "README.md"
    readme.write_text(readme.read_text("utf-8").replace("15 of 60 rows", "15 of 70 rows"), "utf-8")
    assert verify_curated(copy, "c", rows=0)["card"].state == NOT_CHECKED
    readme.unlink()
    assert verify_curated(copy, "c", rows=0)["card"].state == NOT_CHECKED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class": "os.system"}, "is no scorer of this version"),
        ({"class": "CurateError"}, "is no scorer"),
        ({"class": None}, "is no scorer"),
        ({"settings": {"split_steps": "regex '.' flags=32"}}, "which no name calls"),
    ],
)
def test_what_cannot_be_made_again_is_not_checked_and_no_foreign_code_runs(
    copy: Path, change: dict[str, Any], words: str
) -> None:
    rewrite(copy, lambda manifest: manifest["selector"].update(change))
    found = verify_curated(copy, "c", model=MODEL, rows=2)
    assert found["scores"].state == NOT_CHECKED
    assert words in found["scores"].why


def test_a_model_beside_a_commit_or_for_a_scorer_without_one_is_refused(tmp_path: Path) -> None:
    select(pool(), Scorer(), "20%").save(tmp_path, "c")
    with pytest.raises(ModelError, match="the manifest names tiny/model@c1899de"):
        verify_curated(tmp_path, "c", model=MODEL)
    data = Dataset.from_dict({"prompt": ["a", "b", "c"], "rewards": [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]})
    scorer = hf_curate.AccuracyGreedyScorer()
    select(score(data, scorer), scorer, 2).save(tmp_path, "greedy")
    assert states(verify_curated(tmp_path, "greedy"))["scores"] == VERIFIED
    with pytest.raises(CurateError, match="reads no model"):
        verify_curated(tmp_path, "greedy", model=MODEL)


def test_a_plain_column_has_nothing_to_score_again(tmp_path: Path) -> None:
    select(plain(), "score", 2).save(tmp_path, "c")
    found = verify_curated(tmp_path, "c")
    assert found["scores"].state == found["source"].state == NOT_CHECKED
    assert found.ok


def test_a_random_choice_over_scores_is_scored_again_too(tmp_path: Path) -> None:
    data = Dataset.from_dict({"prompt": [f"p{i}" for i in range(20)]})
    scorer = hf_curate.RandomScorer(seed=3)
    select(score(data, scorer), scorer, 5).save(tmp_path, "c")
    found = verify_curated(tmp_path, "c")
    assert states(found)["selector"] == states(found)["scores"] == VERIFIED


@pytest.mark.parametrize("kind", ["GradAlign", "LearnAlign"])
def test_policy_gradients_are_checked_with_the_direction_that_they_were_compared_with(
    kind: str, tmp_path: Path
) -> None:
    folder = rollouts.saved_policy(tmp_path / "policy")
    if kind == "GradAlign":
        scorer = hf_curate.GradAlignScorer(folder, validation=rollouts.trusted(), dtype="float32")
        scorer.fit(rollouts.trusted(), out=tmp_path / "direction.safetensors")
    else:
        scorer = hf_curate.LearnAlignScorer(folder, dtype="float32")
        scorer.fit(rollouts.pool(), out=tmp_path / "direction.safetensors")
    scored = score(rollouts.pool(), scorer)
    select(scored, scorer, 4).save(tmp_path / "repo", "c")
    found = verify_curated(tmp_path / "repo", "c", model=folder)
    assert found["scores"].state == NOT_CHECKED
    assert "--direction FILE" in found["scores"].why
    found = verify_curated(tmp_path / "repo", "c", model=folder, direction=tmp_path / "direction.safetensors")
    assert states(found)["selector"] == states(found)["scores"] == VERIFIED, str(found)


def test_rewards_are_judged_again_by_the_recorded_contract(tmp_path: Path) -> None:
    data = Dataset.from_dict(
        {
            "prompt": [f"{i} + 1?" for i in range(6)],
            "answer": [str(i + 1) for i in range(6)],
            "responses": [[f"#### {i + 1}", f"#### {i + i % 2}", "no idea"] for i in range(6)],
            "rewards": [[1.0, float(i % 2), 0.0] for i in range(6)],
            "rollouts_outcomes": [["right", "right" if i % 2 else "wrong", "could not parse"] for i in range(6)],
        }
    )

    class Rolled(Scorer):
        columns = hf_curate.AccuracyGreedyScorer().columns
        column = "accuracy_greedy_score"

        def record(self) -> dict[str, Any]:
            own = hf_curate.AccuracyGreedyScorer()
            made = {"verifier": verifier("exact").record(), "settings": {"n": 3}}
            return {**own.record(), "rollouts": made}

    picked = select(score(data, hf_curate.AccuracyGreedyScorer()), Rolled(), 4)
    picked.save(tmp_path, "c")
    found = verify_curated(tmp_path, "c")
    assert states(found)["outcomes"] == states(found)["rewards"] == VERIFIED, str(found)
    assert "12 rollouts judged again by exact, 0 otherwise" in found["rewards"].why
    lied = ["right"] * 3
    table = picked.dataset.map(lambda row: {**row, "rollouts_outcomes": lied})
    Selection(table, picked.indices, picked.manifest).save(tmp_path, "lied")
    found = verify_curated(tmp_path, "lied")
    assert states(found)["outcomes"] == states(found)["rewards"] == states(found)["rows"] == FAILED
    manifest = {**picked.manifest, "verification": {**picked.manifest["verification"], "verifier": None}}
    Selection(picked.dataset, picked.indices, manifest).save(tmp_path, "unknown")
    assert verify_curated(tmp_path, "unknown")["rewards"].state == NOT_CHECKED


def test_the_command_prints_the_verdicts_and_answers_with_its_exit_code(
    saved: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--source", str(saved / "traces.parquet"), "--model", str(MODEL), "--rows", "3"]
    assert main(["verify", str(copy), "c", *given, "--strict"]) == 0
    out = capsys.readouterr().out
    assert out.count("\nverified     ") == 8
    assert main(["verify", str(copy), "c"]) == 0
    assert main(["verify", str(copy), "c", "--strict"]) == 1
    rewrite(copy, lambda manifest: manifest["scores"]["kept"].update(mean=0.0))
    capsys.readouterr()
    assert main(["verify", str(copy), "c", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert {one["claim"] for one in said["verdicts"] if one["state"] == FAILED} == {"summary"}
    assert main(["verify", str(copy), "nothing"]) == 2


def test_wrong_arguments_are_errors_that_say_what_to_give(copy: Path) -> None:
    with pytest.raises(CurateError, match="rows=-1 must be a whole number"):
        verify_curated(copy, "c", rows=-1)
    with pytest.raises(ManifestError, match="there is no curated config"):
        verify_curated(copy, "x")
    with pytest.raises(CurateError, match="there is no file"):
        verify_curated(copy, "c", source="missing.parquet")


def test_the_sample_is_drawn_by_the_seed(copy: Path) -> None:
    from hf_curate.recheck.checks import sample

    picked = hf_curate.load_curated(copy, "c")
    drawn = [sample(picked, 5, seed)["source_row"][:] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert np.isin(drawn[0], picked.indices).all()


def test_a_model_that_is_gone_from_the_hub_is_not_checked(tmp_path: Path) -> None:
    select(pool(), Scorer(), "20%").save(tmp_path, "c")
    found = verify_curated(tmp_path, "c", rows=2)
    assert found["scores"].state == found["selector"].state == NOT_CHECKED
    assert "tiny/model" in found["scores"].why


def test_rows_that_can_no_longer_be_scored_fail(saved: Path, copy: Path) -> None:
    edit_shard(copy, lambda table: with_column(table, "completion", lambda texts: [""] * len(texts)))
    found = verify_curated(copy, "c", model=MODEL, rows=9)
    assert found["scores"].state == FAILED
