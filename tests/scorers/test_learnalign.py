"""LearnAlignScorer: the row means of the whole matrix, exactly or projected; learnability; features as files."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Value
from rollouts import (
    by_row,
    forwards,
    gradients,
    policy,
    pool,
    reference,
    rollout_vectors,
    rows_of_every_kind,
    saved_policy,
    solved,
    tokenizer,
    trusted,
    with_a_rare_parameter,
    with_ids,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tolerances import COLUMN, POLICY, SAME_RUN

from hf_curate import score
from hf_curate.errors import CurateError, DirectionError, ScoreError
from hf_curate.scorers.learnalign import LearnAlignScorer, success_rate

SAME = SAME_RUN[torch.float32]
WAYS: list[dict[str, Any]] = [{}, {"projection_dim": 16}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("learnalign") / "policy")


def scores(scorer: LearnAlignScorer, rows: Any = None) -> list[float]:
    found = scorer((pool() if rows is None else Dataset.from_list(rows))[:])
    assert found["learnalign_error"] == [""] * len(found["learnalign_error"])
    return found["learnalign_score"]


def expected(scorer: LearnAlignScorer, rows: list[dict[str, Any]], which: str, above: float = 0.5) -> list[float]:
    values = [reference.learnability(row["rewards"], above) for row in rows]
    return reference.learnalign(gradients(rollout_vectors(scorer, rows, which), rows), values)


def error(found: list[float], wanted: list[float]) -> float:
    """Largest difference, relative to the largest value."""
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) / max(map(abs, wanted))


# -- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["linear", "all", r"h\.1\."])
@pytest.mark.parametrize("above", [0.5, 0.8])
def test_scores_are_the_row_means_of_the_whole_matrix_in_float64(which: str, above: float) -> None:
    rows = rows_of_every_kind()
    scorer = LearnAlignScorer(
        policy("GPT2").double(), tokenizer=tokenizer(), parameters=which, correct_above=above
    ).fit(pool())
    wanted = expected(scorer, rows, which, above)
    found = scores(scorer)
    assert error(found, wanted) < COLUMN
    assert [value == 0.0 for value in found] == [value == 0.0 for value in wanted]
    group = scorer.reader.read(rows[0])
    exact = scorer.learnability(group.rewards) * scorer._cosine(group, None)  # type: ignore[union-attr,arg-type]
    assert exact == pytest.approx(wanted[0], abs=POLICY[torch.float64] * max(map(abs, wanted)))


@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_the_row_means_of_the_whole_matrix_in_float32(tied: bool) -> None:
    model = policy(tie_word_embeddings=tied)
    scorer = LearnAlignScorer(model, tokenizer=tokenizer(), parameters="all").fit(pool())
    assert error(scores(scorer), expected(scorer, rows_of_every_kind(), "all")) < POLICY[torch.float32]


def test_a_row_outside_the_pool_is_scored_against_the_pool(folder: Path) -> None:
    row = solved(1, seed=31)[0]
    scorer = LearnAlignScorer(folder).fit(pool())
    rows = [*rows_of_every_kind(), row]
    vectors = gradients(rollout_vectors(scorer, rows, "linear"), rows)
    values = [reference.learnability(one["rewards"]) for one in rows]
    cosines = [reference.cosine(vectors[-1], vector) for vector in vectors[:-1]]
    wanted = values[-1] * sum(v * c for v, c in zip(values, cosines, strict=False)) / 12
    assert scorer(row)["learnalign_score"] == pytest.approx(wanted, rel=POLICY[torch.float32])


def test_unreadable_rows_are_not_among_the_rows_of_the_mean(folder: Path, tmp_path: Path) -> None:
    bad = [{**row, "rewards": [1.0]} for row in solved(3, seed=5)]
    clean = LearnAlignScorer(folder).fit(pool(), out=tmp_path / "clean")
    mixed = LearnAlignScorer(folder).fit(Dataset.from_list(rows_of_every_kind() + bad), out=tmp_path / "mixed")
    assert scores(mixed) == scores(clean)
    assert mixed.record()["direction"]["rows"]["failed"] == {"rewards and responses differ": 3}


@pytest.mark.parametrize(
    ("rewards", "above", "p"),
    [
        ([1.0, 0.0], 0.5, 0.5),
        ([0.5, 0.5000001], 0.5, 0.5),
        ([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.5, 0.125),
        ([-1.0, -1.0, 1.0], 0.0, 1 / 3),
        ([0.2, 0.4, 0.6], 0.9, 0.0),
        ([0.2, 0.4, 0.6], 0.1, 1.0),
    ],
)
def test_learnability_is_p_times_one_minus_p(folder: Path, rewards: list[float], above: float, p: float) -> None:
    assert success_rate(np.array(rewards), above) == pytest.approx(p)
    scorer = LearnAlignScorer(folder, correct_above=above)
    assert scorer.learnability(np.array(rewards)) == pytest.approx(p * (1 - p))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_problems_solved_always_or_never_score_exactly_zero_without_a_forward(folder: Path, way: Any) -> None:
    scorer = LearnAlignScorer(folder, **way).fit(pool())
    row = solved(1, seed=14)[0]
    scorer(row)
    silent = [[0.0] * 4, [1.0] * 4, [0.6, 0.7, 0.8, 0.9], [0.5, 0.4, 0.3, 0.2], [0.5] * 4]
    twins = {**row, "responses": row["responses"][:1] * 4, "rewards": [1.0, 0.0, 0.0, 1.0]}
    with forwards(scorer) as seen:
        found = [scorer({**row, "rewards": rewards}) for rewards in silent]
        twin = scorer(twins)
        assert not seen
        scorer({**row, "rewards": [0.0, 1.0, 1.0, 1.0]})
        assert seen
    assert found == [{"learnability": 0.0, "learnalign_score": 0.0, "learnalign_error": ""}] * 5
    assert twin == {"learnability": 0.25, "learnalign_score": 0.0, "learnalign_error": ""}


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_problem_that_reaches_no_parameter_of_the_set_scores_zero(way: Any) -> None:
    model, reached, missed = with_a_rare_parameter()
    scorer = LearnAlignScorer(model, tokenizer=tokenizer(), parameters="embed_tokens.rare", **way)
    found = scores(scorer.fit(Dataset.from_list(reached + missed)), reached + missed)
    assert found[3:] == [0.0, 0.0]
    assert all(found[:3])
    assert scorer.record()["direction"]["rows"]["with_signal"] == 3


# -- the same numbers however rows come -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_order_batches_forms_and_splits_of_rows_change_nothing(folder: Path, way: Any, tmp_path: Path) -> None:
    wanted = scores(LearnAlignScorer(folder, **way).fit(pool(), out=tmp_path / "one"))
    order = np.random.default_rng(1).permutation(12).tolist()
    turned = pool().select(order)
    scorer = LearnAlignScorer(folder, batch_tokens=60, **way).fit(turned, out=tmp_path / "two")
    back = np.array(turned.map(scorer, batched=True, batch_size=5)["learnalign_score"][:])[np.argsort(order)]
    np.testing.assert_allclose(back, wanted, rtol=SAME, atol=SAME * max(map(abs, wanted)))
    streamed = list(turned.to_iterable_dataset().map(scorer))
    assert [scorer(row)["learnalign_score"] for row in turned] == [row["learnalign_score"] for row in streamed]
    ids = with_ids(rows_of_every_kind())
    assert scores(LearnAlignScorer(folder, **way).fit(Dataset.from_list(ids), out=tmp_path / "three"), ids) == wanted


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_order_of_responses_and_a_scale_of_rewards_change_nothing(folder: Path, way: Any) -> None:
    scorer = LearnAlignScorer(folder, correct_above=0.0, **way)
    rows = [{**row, "rewards": [2 * r - 1 for r in row["rewards"]]} for row in rows_of_every_kind()]
    wanted = scores(scorer.fit(Dataset.from_list(rows)), rows)
    turned = [{**row, **{n: row[n][::-1] for n in ("responses", "rewards")}} for row in rows]
    scaled = [{**row, "rewards": [8.0 * reward for reward in row["rewards"]]} for row in rows]
    for other in (turned, scaled):
        np.testing.assert_allclose(scores(scorer, other), wanted, rtol=1e-4, atol=1e-6)


def test_score_fits_on_the_pool_and_gives_typed_columns(folder: Path) -> None:
    fitted = LearnAlignScorer(folder).fit(pool())
    scored = score(pool(), made := LearnAlignScorer(folder))
    assert scored["learnalign_score"][:] == scores(fitted)
    assert made.identity == fitted.identity
    types = {"learnability": Value("float32"), "learnalign_score": Value("float32")}
    wanted = Features({**types, "learnalign_error": Value("string")})
    assert made.columns == wanted
    assert Features({name: scored.features[name] for name in wanted}) == wanted
    assert scored["learnability"][:5] == [reference.learnability(row["rewards"]) for row in rows_of_every_kind()[:5]]


def test_the_record_says_that_a_zero_is_a_problem_solved_always_or_never(folder: Path) -> None:
    assert LearnAlignScorer(folder).record()["zero_without_signal"] == "0 < p < 1"


def test_without_a_fit_map_says_what_to_call(folder: Path) -> None:
    with pytest.raises(ScoreError, match=r"LearnAlignScorer is not fitted: scorer\.fit\(dataset\) before"):
        pool().map(LearnAlignScorer(folder), batched=True)
    with pytest.raises(ScoreError, match="is not fitted"):
        LearnAlignScorer(folder)({**pool()[0], "rewards": [1.0] * 4})
    with pytest.raises(ScoreError, match="is not fitted"):
        pool().map(LearnAlignScorer(folder), batched=True, num_proc=2)


# -- projected --------------------------------------------------------------------------------------------------------


def test_projected_scores_come_closer_to_the_exact_ones_with_more_features(folder: Path, tmp_path: Path) -> None:
    rows = Dataset.from_list(solved(6, seed=3))
    exact = np.array(LearnAlignScorer(folder).fit(rows, out=tmp_path / "exact")(rows[:])["learnalign_score"])
    errors = []
    for dim in (16, 64, 256, 1024):
        found = []
        for seed in range(4):
            made = LearnAlignScorer(folder, dim, seed=seed).fit(rows, out=tmp_path / f"{dim}-{seed}")
            found.append(np.array(made(rows[:])["learnalign_score"]))
        errors.append(float(np.mean([np.linalg.norm(one - exact) / np.linalg.norm(exact) for one in found])))
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < errors[0] / 2
    assert errors[3] < 0.15


def test_with_room_for_every_parameter_the_projected_scores_are_the_exact_ones(folder: Path) -> None:
    exact = LearnAlignScorer(folder).fit(pool())
    whole = LearnAlignScorer(folder, 10**6).fit(pool())
    assert error(scores(whole), scores(exact)) < 1e-5
    assert whole.record()["direction"]["features"] == exact.record()["direction"]["parameters"]["values"]


def features(folder: Path) -> dict[str, np.ndarray]:
    files = sorted(folder.glob("features-*.safetensors"))
    found: dict[str, list[np.ndarray]] = {}
    for path in files:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                found.setdefault(name, []).append(file.get_tensor(name))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def test_one_seed_gives_the_same_features_bit_for_bit_and_another_one_others(folder: Path, tmp_path: Path) -> None:
    names = {"one": 0, "again": 0, "other": 1}
    for name, seed in names.items():
        LearnAlignScorer(folder, 16, seed=seed).fit(pool(), out=tmp_path / name)
    one, again, other = (features(tmp_path / name) for name in names)
    assert set(one) == {"features", "keys", "learnability", "norms"}
    for name in one:
        np.testing.assert_array_equal(one[name], again[name])
    assert not np.array_equal(one["features"], other["features"])
    rows = rows_of_every_kind()
    values = [reference.learnability(row["rewards"]) for row in rows]
    stored = [value for value, row in zip(values, rows, strict=True) if value and len(set(row["responses"])) > 1]
    np.testing.assert_array_equal(one["learnability"], np.float32(stored))
    np.testing.assert_allclose(one["norms"], np.linalg.norm(one["features"], axis=1), rtol=1e-6)


def test_features_in_many_shards_give_the_same_scores(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = scores(LearnAlignScorer(folder, 16).fit(pool(), out=tmp_path / "one"))
    monkeypatch.setattr("hf_curate.scorers.features.SHARD_BYTES", 2 * 4 * 224)
    many = LearnAlignScorer(folder, 16).fit(pool(), out=tmp_path / "many")
    assert len(list((tmp_path / "many").glob("features-*"))) == 4
    assert scores(many) == wanted


def test_a_row_of_the_pool_is_looked_up_and_another_projected_to_the_same_number(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = solved(1, seed=3)[0]
    rows = [*rows_of_every_kind(), row]
    # equal means: the row that is left out of the second pool stands for itself in a mean taken from the first
    fitted = LearnAlignScorer(folder, 16).fit(Dataset.from_list(rows), out=tmp_path / "with")
    stored = fitted(row)
    with monkeypatch.context() as patch:
        patch.setattr("hf_curate.scorers.features.FeatureStore._stored", lambda *_: None)
        with forwards(fitted) as seen:
            assert fitted(row) == stored
        assert seen
    fresh = LearnAlignScorer(folder, 16, direction=tmp_path / "with")
    with monkeypatch.context() as patch:
        patch.setattr(LearnAlignScorer, "load", lambda *_: pytest.fail("the model was loaded"))
        assert fresh(row) == stored
        twin = {**row, "responses": row["responses"][::-1], "rewards": row["rewards"][::-1]}
    with forwards(fresh) as seen:
        assert fresh(twin)["learnalign_score"] == pytest.approx(stored["learnalign_score"], rel=1e-4)
        assert seen, "another order of responses is another row"


def test_features_made_with_other_settings_are_refused_with_both_values(folder: Path, tmp_path: Path) -> None:
    LearnAlignScorer(folder, 16).fit(pool(), out=tmp_path / "features")
    row = solved(1, seed=41)[0]
    for other, says in (
        ({"seed": 1}, "made with seed=0, and this scorer has seed=1: pass seed=0"),
        ({"projection_dim": 64}, "made with projection_dim=16, and this scorer has projection_dim=64"),
        ({"parameters": "all"}, "made with parameters='linear', and this scorer has parameters='all'"),
        ({"correct_above": 0.9}, "made with correct_above=0.5, and this scorer has correct_above=0.9"),
    ):
        settings: dict[str, Any] = {"projection_dim": 16} | other
        with pytest.raises(DirectionError, match=says):
            LearnAlignScorer(folder, direction=tmp_path / "features", **settings)(row)


@pytest.mark.parametrize("name", ["features-00000.safetensors", "mean.safetensors"])
def test_features_or_a_mean_with_other_numbers_are_refused_by_their_digest(
    folder: Path, tmp_path: Path, name: str
) -> None:
    LearnAlignScorer(folder, 16).fit(pool(), out=tmp_path / "features")
    path = tmp_path / "features" / name
    tensors = load_file(path)
    for key in ("features", "mean"):
        if key in tensors:
            tensors[key] *= 2
    save_file(tensors, path)
    with pytest.raises(DirectionError, match=f"{name} in 'features' has changed since it was written: fit again"):
        LearnAlignScorer(folder, 16, direction=tmp_path / "features")(pool()[0])


def test_a_folder_of_features_that_changed_is_refused(folder: Path, tmp_path: Path) -> None:
    import shutil

    out, row = tmp_path / "features", solved(1, seed=41)[0]
    fitted = LearnAlignScorer(folder, 16).fit(pool(), out=out)
    named = LearnAlignScorer(folder, 16, direction=out)
    travelled = pickle.loads(pickle.dumps(fitted))
    before = fitted(row)
    shutil.rmtree(out)
    LearnAlignScorer(folder, 16).fit(trusted(), out=out)
    with pytest.raises(DirectionError, match="changed since the scorer was made"):
        named(row)
    with pytest.raises(DirectionError, match="changed since the scorer was fitted"):
        travelled(row)
    again = fitted.fit(trusted(), out=out)(row)
    assert again != before
    assert again == LearnAlignScorer(folder, 16, direction=out)(row)


def test_damaged_features_are_an_error(folder: Path, tmp_path: Path) -> None:
    fitted = LearnAlignScorer(folder, 16).fit(pool(), out=tmp_path / "features")
    row = pool()[0]
    index = (tmp_path / "features" / "index.json").read_text()
    for name, content, says in (
        ("features-00000.safetensors", b"x", "cannot be read"),
        ("mean.safetensors", b"x", "cannot be read"),
        ("index.json", b"{", "holds no projected features"),
        ("index.json", b'{"schema": "other/1"}', "has the schema 'other/1'"),
        ("index.json", b'{"schema": "hf_curate/features/1"}', "not complete"),
    ):
        path = tmp_path / "features" / name
        before = path.read_bytes()
        path.write_bytes(content)
        with pytest.raises(DirectionError, match=says):
            pickle.loads(pickle.dumps(fitted))(row)
        path.write_bytes(before)
    assert (tmp_path / "features" / "index.json").read_text() == index
    (tmp_path / "features" / "mean.safetensors").unlink()
    with pytest.raises(DirectionError, match="cannot be read"):
        pickle.loads(pickle.dumps(fitted))(row)


# -- identity and settings --------------------------------------------------------------------------------------------


def test_the_identity_changes_with_the_pool_and_the_settings_of_the_fit(folder: Path) -> None:
    made = [LearnAlignScorer(folder, batch_tokens=tokens) for tokens in (None, 50)]
    for scorer in made:
        scorer.expect(pool())
    assert made[0].identity == made[1].identity == made[0].fit(pool()).identity
    others: list[tuple[Any, dict[str, Any]]] = [
        (trusted(), {}),
        (pool(), {"projection_dim": 16}),
        (pool(), {"projection_dim": 16, "seed": 1}),
        (pool(), {"projection_dim": 32}),
        (pool(), {"correct_above": 0.25}),
        (pool(), {"parameters": "all"}),
    ]
    found = {made[0].identity}
    for rows, settings in others:
        scorer = LearnAlignScorer(folder, **settings)
        scorer.expect(rows)
        found.add(scorer.identity)
    assert len(found) == len(others) + 1
    seeded = [LearnAlignScorer(folder, seed=seed) for seed in (0, 1)]
    for scorer in seeded:
        scorer.expect(pool())
    assert seeded[0].identity == seeded[1].identity, "an exact score has no seed"


def test_settings_that_make_no_sense_are_refused_at_once(folder: Path) -> None:
    for settings, says in (
        ({"projection_dim": 0}, "projection_dim=0"),
        ({"projection_dim": 2.5}, "projection_dim=2.5"),
        ({"projection_dim": True}, "projection_dim=True"),
        ({"correct_above": "x"}, "correct_above='x'"),
        ({"correct_above": float("nan")}, "correct_above=nan"),
        ({"correct_above": None}, "correct_above=None"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 1.5}, "seed=1.5"),
        ({"seed": "x"}, "seed='x'"),
    ):
        with pytest.raises(CurateError, match=says):
            LearnAlignScorer(folder, **settings)  # type: ignore[arg-type]
    assert by_row(LearnAlignScorer(folder, correct_above=np.float64(0.5)).fit(pool())(pool()[:]))
