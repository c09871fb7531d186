"""Fits and their files: made once, never overwritten, refused where they do not fit; what a fit says of itself."""

from __future__ import annotations

import json
import logging
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from datasets.fingerprint import Hasher
from rollouts import policy, pool, saved_policy, solved, tokenizer, trusted, with_ids
from safetensors.torch import save_file

from hf_curate import score
from hf_curate.errors import CurateError, DirectionError, ScoreError
from hf_curate.gradients.directions import Direction, read_record
from hf_curate.scorers.align import AlignScorer
from hf_curate.scorers.fitting import check_writable
from hf_curate.scorers.gradalign import GradAlignScorer
from hf_curate.scorers.learnalign import LearnAlignScorer
from hf_curate.scorers.policy import KEPT_VALUES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("directions") / "policy")


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A direction of `trusted` over all parameters."""
    out = tmp_path_factory.mktemp("made") / "val.safetensors"
    GradAlignScorer(folder, validation=trusted()).fit(trusted(), out=out)
    return out


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every pass over a dataset that a fit makes."""
    import hf_curate.scorers.features as features
    import hf_curate.scorers.fitting as fitting
    import hf_curate.scorers.learnalign as learnalign

    seen: list[str] = []
    real = fitting.read_groups

    def counted(reader: Any, dataset: Any, what: str) -> Any:
        seen.append(what)
        return real(reader, dataset, what)

    for room in (fitting, learnalign, features):
        monkeypatch.setattr(room, "read_groups", counted)
    return seen


SCORERS: dict[str, Callable[..., Any]] = {
    "GradAlign": lambda folder, **options: GradAlignScorer(folder, validation=trusted(), **options),
    "LearnAlign": LearnAlignScorer,
    "LearnAlign, projected": lambda folder, **options: LearnAlignScorer(folder, 8, **options),
    "Align": AlignScorer,
}


# -- made once --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORERS)
def test_a_fit_is_made_once_and_then_taken_from_its_file(
    name: str, folder: Path, tmp_path: Path, passes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Dataset.from_list(solved(3, seed=50 + len(name)))  # a pool of this test alone: the cache is shared
    first = SCORERS[name](folder).fit(rows)
    assert len(passes) == 1
    first.fit(rows)
    monkeypatch.setattr("hf_curate.scorers.model.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    second = SCORERS[name](folder, batch_tokens=50, device="cpu").fit(rows)
    assert len(passes) == 1
    assert second.fitted == first.fitted
    assert second.fitted.path.exists()
    monkeypatch.undo()


def test_other_rows_settings_or_weights_are_fitted_anew(folder: Path, tmp_path: Path, passes: list[str]) -> None:
    rows = solved(3, seed=160)
    other_reward = [{**rows[0], "rewards": [1.0, 0.0, 0.5, 0.0]}, *rows[1:]]
    fits: list[tuple[Any, Any]] = [
        (LearnAlignScorer(folder), rows),
        (LearnAlignScorer(folder), other_reward),
        (LearnAlignScorer(folder), rows[::-1]),
        (LearnAlignScorer(folder), with_ids(rows)),
        (LearnAlignScorer(folder, parameters="all"), rows),
        (LearnAlignScorer(folder, correct_above=0.25), rows),
        (LearnAlignScorer(folder, dtype="bfloat16"), rows),
        (LearnAlignScorer(folder, max_length=500), rows),
        (LearnAlignScorer(saved_policy(tmp_path / "other", seed=1)), rows),
        (AlignScorer(folder), rows),
    ]
    fitted = [scorer.fit(Dataset.from_list(its)).fitted for scorer, its in fits]
    assert len(passes) == len(fits)
    assert len({each.path for each in fitted}) == len({each.key for each in fitted}) == len(fits)
    extra = Dataset.from_list([{**row, "note": index} for index, row in enumerate(rows)])
    assert LearnAlignScorer(folder).fit(extra).fitted == fitted[0], "a column that is not read"
    assert len(passes) == len(fits)


@pytest.mark.parametrize("name", SCORERS)
def test_out_keeps_the_fit_where_it_was_asked_for_and_never_overwrites_another(
    name: str, folder: Path, tmp_path: Path, passes: list[str]
) -> None:
    rows, out = Dataset.from_list(solved(3, seed=70)), tmp_path / "deep" / "fit"
    scorer = SCORERS[name](folder).fit(rows, out=out)
    assert scorer.fitted.path == out
    again = SCORERS[name](folder).fit(rows, out=str(out))
    assert len(passes) == 1
    row = rows[0]
    assert again(row) == scorer(row)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(DirectionError, match=r"'fit' holds .* of another fit \(\w{12}, now \w{12}\): give another"):
        SCORERS[name](folder).fit(rows.select([0, 1]), out=out)
    assert len(passes) == 1
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_fit_that_fails_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    silent = Dataset.from_list([{**row, "rewards": [0.0] * 4} for row in solved(3)])
    for name, make in SCORERS.items():
        with pytest.raises(DirectionError):
            make(folder).fit(silent, out=tmp_path / name / "fit")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() or path.name.startswith(".")]
    assert not list(tmp_path.rglob("fit"))


# -- what can be fitted on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORERS)
def test_what_cannot_be_fitted_on_is_refused_with_what_to_pass(name: str, folder: Path) -> None:
    scorer = SCORERS[name](folder)
    for dataset, error, says in (
        (trusted().select([]), DirectionError, "the dataset to fit on is empty"),
        (trusted().to_list(), ScoreError, r"this is a list: pass one split.*Dataset\.from_list"),
        (DatasetDict(train=trusted()), ScoreError, r"this is a DatasetDict: pass one split \(dataset\['train'\]\)"),
        (trusted().to_iterable_dataset(), ScoreError, "this is a IterableDataset"),
        (trusted().remove_columns("rewards"), CurateError, "no rewards found"),
        (None, ScoreError, "this is a NoneType"),
    ):
        with pytest.raises(error, match=says):
            scorer.fit(dataset)
    assert scorer.fitted is None


@pytest.mark.parametrize("name", SCORERS)
def test_a_set_without_signal_is_an_error_with_the_counts_and_what_to_change(name: str, folder: Path) -> None:
    rows = [{**row, "rewards": [float(index < 2)] * 4} for index, row in enumerate(solved(5))]
    twin = solved(1, seed=6)[0]
    rows.append({**twin, "responses": twin["responses"][:1] * 4})
    with pytest.raises(DirectionError) as caught:
        SCORERS[name](folder).fit(Dataset.from_list(rows))
    says = "of 6 problems 2 are solved by every rollout, 3 by none, and nothing remains to point anywhere."
    assert says in str(caught.value)
    assert "Take problems that the model solves sometimes, or more rollouts of each." in str(caught.value)


@pytest.mark.parametrize("name", SCORERS)
def test_rows_that_cannot_be_read_are_left_out_counted_and_said(
    name: str, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = solved(4, seed=80)
    bad = [{**good[0], "rewards": None}, {**good[0], "responses": None}, {**good[0], "rewards": [1.0]}]
    mixed = Dataset.from_list([bad[0], *good[:2], bad[1], *good[2:], bad[2], {**good[1], "rewards": [1.0] * 4}])
    clean = Dataset.from_list([*good, {**good[1], "rewards": [1.0] * 4}])
    with caplog.at_level(logging.INFO, "hf_curate"):
        scorer = SCORERS[name](folder).fit(mixed, out=tmp_path / "mixed")
    assert "3 of 8 rows to fit on cannot be read" in caplog.text
    other = SCORERS[name](folder).fit(clean, out=tmp_path / "clean")
    assert scorer(clean[:]) == other(clean[:])
    rows = scorer.record()["direction"]["rows"]
    failed = {"reward missing": 1, "no rollouts": 1, "rewards and responses differ": 1}
    assert rows == {
        "in": 8, "with_signal": 4, "without_signal": 1, "all_right": 1, "all_wrong": 0, "failed": failed,
        "rollouts": 20,
    }  # fmt: skip
    with pytest.raises(DirectionError, match=r"(?s)none of the 3 rows to fit on can be read:.*1 x no rollouts"):
        SCORERS[name](folder).fit(Dataset.from_list(bad))


# -- the record -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORERS)
def test_a_direction_says_what_it_is_of(name: str, folder: Path, tmp_path: Path) -> None:
    scorer = SCORERS[name](folder).fit(pool(), out=tmp_path / "fit")
    record = scorer.record()["direction"]
    kinds = {"GradAlign": "validation gradient", "Align": "pool gradient"}
    assert record["kind"] == kinds.get(name, "mean direction")
    assert record["model"] == {
        "id": "policy", "sha": None, "digest": scorer.model_record()["digest"], "dtype": "float32",
        "architecture": "Qwen3ForCausalLM",
    }  # fmt: skip
    assert re.fullmatch("[0-9a-f]{64}", record["model"]["digest"])
    which = "linear" if name.startswith("Learn") else "all"
    chosen = scorer.chosen(scorer.load())
    values = sum(parameter.numel() for parameter in chosen.values())
    assert record["parameters"] == {"set": which, "tensors": len(chosen), "values": values}
    assert record["rows"]["in"] == 12
    # LearnAlign's are those with 0 < p < 1 as well
    assert (record["rows"]["with_signal"], record["rows"]["without_signal"]) == (8, 4)
    assert (record["rows"]["all_right"], record["rows"]["all_wrong"]) == (2, 1)
    assert record["rows"]["rollouts"] == sum(map(len, pool()["rewards"]))
    assert record["source"] is record["verifier"] is None
    assert record["norm"] > 0.0
    assert str(tmp_path) not in repr(scorer.record())
    if name.startswith("LearnAlign"):
        assert record["correct_above"] == 0.5
    if name == "LearnAlign, projected":
        assert (record["projection_dim"], record["seed"]) == (8, 0)
    else:
        assert read_record(tmp_path / "fit") == record
        assert Direction.load(tmp_path / "fit").norm == pytest.approx(record["norm"], rel=1e-6)


# -- a file that was given --------------------------------------------------------------------------------------------


def test_a_direction_by_path_gives_the_scores_of_its_validation_set(folder: Path, made: Path) -> None:
    by_path = GradAlignScorer(folder, direction=made)
    assert by_path(pool()[:]) == GradAlignScorer(folder, validation=trusted())(pool()[:])
    assert by_path.record()["call"] == "GradAlignScorer('./policy', direction=direction)"
    assert str(made.parent) not in repr(by_path.record())
    assert by_path.record()["direction"]["rows"]["in"] == 4


def test_a_path_relative_to_the_folder_of_the_moment_is_found_from_elsewhere(
    folder: Path, made: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / made.name).write_bytes(made.read_bytes())
    monkeypatch.chdir(tmp_path / "here")
    scorer = GradAlignScorer(folder, direction=made.name)
    fitted = LearnAlignScorer(folder).fit(trusted(), out="here.safetensors")
    content = pickle.dumps(fitted)
    monkeypatch.chdir(tmp_path)
    assert scorer(pool()[0])["gradalign_error"] == ""
    assert pickle.loads(content)(pool()[0])["learnalign_error"] == ""


def refused(scorer: Callable[[], Any]) -> str:
    """The error of a scorer, when it is made or when it scores its first row."""
    with pytest.raises(DirectionError) as caught:
        scorer()(pool()[0])
    return str(caught.value)


def test_a_direction_of_another_model_is_refused_with_both_names(folder: Path, made: Path, tmp_path: Path) -> None:
    other = saved_policy(tmp_path / "other", seed=1)
    text = refused(lambda: GradAlignScorer(other, direction=made))
    assert re.search(r"made with policy \(\w{12}\), and this scorer has other \(\w{12}\): gradients of two", text)
    live = refused(lambda: GradAlignScorer(policy(seed=1), direction=made, tokenizer=tokenizer()))
    assert "this scorer has live Qwen3ForCausalLM" in live


def test_a_direction_of_other_shapes_is_refused_with_both_shapes(folder: Path, made: Path, tmp_path: Path) -> None:
    wider = saved_policy(tmp_path / "wider", intermediate_size=64)
    text = refused(lambda: GradAlignScorer(wider, direction=made))
    assert "model.layers.0.mlp.gate_proj.weight is (48, 32) in the direction and (64, 32) in the model" in text
    deeper = saved_policy(tmp_path / "deeper", num_hidden_layers=3)
    text = refused(lambda: GradAlignScorer(deeper, direction=made))
    assert "has 25 tensors and does not fit the 36 parameters of this model: it lacks model.layers.2." in text
    shallower = saved_policy(tmp_path / "shallower", num_hidden_layers=1)
    text = refused(lambda: GradAlignScorer(shallower, direction=made))
    assert "does not fit the 14 parameters of this model: it has model.layers.1." in text


def test_a_direction_over_another_set_is_refused_with_what_is_missing(folder: Path, made: Path) -> None:
    text = refused(lambda: GradAlignScorer(folder, direction=made, parameters="linear"))
    assert "'val.safetensors' has 25 tensors and does not fit the 14 parameters" in text
    assert "pass the parameters= it was made with" in text


@pytest.mark.parametrize("which", ["all", "linear"])
def test_a_direction_of_another_kind_is_refused_by_its_kind(folder: Path, which: str, tmp_path: Path) -> None:
    out = tmp_path / "mean.safetensors"
    LearnAlignScorer(folder, parameters=which).fit(pool(), out=out)
    assert "holds a mean direction, and GradAlign needs a validation gradient" in refused(
        lambda: GradAlignScorer(folder, direction=out)
    )
    assert "holds a mean direction, and Align needs a pool gradient" in refused(
        lambda: AlignScorer(folder, direction=out)
    )


def test_an_exact_learnalign_direction_with_another_mark_for_correct_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mean.safetensors"
    LearnAlignScorer(folder).fit(pool(), out=out)
    text = refused(lambda: LearnAlignScorer(folder, direction=out, correct_above=0.25))
    assert "made with correct_above=0.5, and this scorer has correct_above=0.25: pass correct_above=0.5" in text
    assert LearnAlignScorer(folder, direction=out)(pool()[0])["learnalign_error"] == ""


def test_exact_and_projected_fits_are_not_taken_for_each_other(folder: Path, tmp_path: Path) -> None:
    LearnAlignScorer(folder).fit(pool(), out=tmp_path / "exact")
    LearnAlignScorer(folder, 8).fit(pool(), out=tmp_path / "projected")
    text = refused(lambda: LearnAlignScorer(folder, direction=tmp_path / "projected"))
    assert text.startswith("there is no direction file 'projected'")
    text = refused(lambda: LearnAlignScorer(folder, 8, direction=tmp_path / "exact"))
    assert text.startswith("'exact' holds no projected features")
    with pytest.raises(DirectionError, match="'exact' holds no projected features"):
        LearnAlignScorer(folder, 8).fit(pool(), out=tmp_path / "exact")
    with pytest.raises(DirectionError, match="there is no direction file 'projected'"):
        LearnAlignScorer(folder).fit(pool(), out=tmp_path / "projected")


def test_files_that_are_no_directions_are_refused_when_the_scorer_is_made(
    folder: Path, made: Path, tmp_path: Path
) -> None:
    class Boom:
        def __reduce__(self) -> Any:
            return (pytest.fail, ("a pickle was run",))

    content = made.read_bytes()
    (tmp_path / "pickle.safetensors").write_bytes(pickle.dumps(Boom()))
    torch.save({"x": torch.zeros(2)}, tmp_path / "torch.safetensors")
    (tmp_path / "half.safetensors").write_bytes(content[: len(content) // 2])
    (tmp_path / "head.safetensors").write_bytes(content[:100])
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"x": torch.zeros(2)}, tmp_path / "plain.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors", {"hf_curate": '{"schema": "hf_curate/9"}'})
    save_file({"x": torch.zeros(2)}, tmp_path / "list.safetensors", {"hf_curate": "[]"})
    save_file({"x": torch.zeros(2)}, tmp_path / "text.safetensors", {"hf_curate": "{"})
    (tmp_path / "folder.safetensors").mkdir()
    for name, says in {
        "pickle": "cannot be read",
        "torch": "cannot be read",
        "half": "cannot be read",
        "head": "cannot be read",
        "empty": "cannot be read",
        "text": "cannot be read",
        "plain": "its schema is None, not 'hf_curate/direction/1'",
        "other": "its schema is 'hf_curate/9', not 'hf_curate/direction/1'",
        "list": "its schema is None",
        "folder": "there is no direction file 'folder.safetensors'",
        "missing": "there is no direction file 'missing.safetensors': write one with scorer.fit",
    }.items():
        with pytest.raises(DirectionError) as caught:
            GradAlignScorer(folder, direction=tmp_path / f"{name}.safetensors")
        assert says in str(caught.value), name
        assert str(tmp_path) not in str(caught.value)


def altered(made: Path, out: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    direction = Direction.load(made)
    change(direction.tensors)
    direction.save(out)
    return out


def test_nan_infinity_or_nothing_but_zeros_in_a_direction_are_refused(
    folder: Path, made: Path, tmp_path: Path
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    for value in (float("nan"), float("inf")):
        file = altered(made, tmp_path / f"{value}.safetensors", lambda t, v=value: t[name].view(-1)[7:8].fill_(v))
        text = refused(lambda file=file: GradAlignScorer(folder, direction=file))
        assert f"holds NaN or infinity in {name}" in text
    zero = altered(made, tmp_path / "0.safetensors", lambda tensors: [t.zero_() for t in tensors.values()] and None)
    assert "zero everywhere" in refused(lambda: GradAlignScorer(folder, direction=zero))


def test_a_file_that_changed_after_the_scorer_was_made_is_refused(folder: Path, made: Path, tmp_path: Path) -> None:
    file = tmp_path / "val.safetensors"
    file.write_bytes(made.read_bytes())
    scorer = GradAlignScorer(folder, direction=file)
    stored = pickle.loads(pickle.dumps(scorer))
    assert stored.identity == scorer.identity
    tensors = Direction.load(made).tensors
    doubled = {name: tensor * 2.0 for name, tensor in tensors.items()}
    save_file(doubled, file, {"hf_curate": json.dumps(read_record(made))})
    assert "'val.safetensors' has changed since the scorer was made" in refused(lambda: scorer)
    says = "'val.safetensors' is not what its record says (its tensors have changed): fit it again"
    assert says in refused(lambda: stored), "a pickle on disk knows the record's key alone"
    assert says in refused(lambda: GradAlignScorer(folder, direction=file))
    file.unlink()
    assert "there is no direction file" in refused(lambda: scorer)


def test_a_fitted_file_that_was_replaced_by_another_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mean.safetensors"
    scorer = LearnAlignScorer(folder).fit(pool(), out=out)
    stored = pickle.loads(pickle.dumps(scorer))
    out.unlink()
    LearnAlignScorer(folder).fit(trusted(), out=out)
    assert "'mean.safetensors' has changed since the scorer was made" in refused(lambda: scorer)
    assert "'mean.safetensors' has changed since the scorer was fitted" in refused(lambda: stored)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32])
def test_tensors_of_another_type_than_float32_and_float64_are_refused(
    folder: Path, made: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    direction = Direction.load(made)
    name = next(iter(direction.tensors))
    direction.tensors[name] = direction.tensors[name].to(dtype)
    direction.save(tmp_path / "other.safetensors")
    text = refused(lambda: GradAlignScorer(folder, direction=tmp_path / "other.safetensors"))
    assert "'other.safetensors' holds something else than float32 and float64 tensors" in text


def test_a_fit_and_its_file_by_path_are_one_identity_and_one_hash(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "val.safetensors"
    for fitted, by_path in (
        (
            GradAlignScorer(folder, validation=trusted()).fit(trusted(), out=out),
            GradAlignScorer(folder, direction=out),
        ),
        (
            LearnAlignScorer(folder, 8).fit(trusted(), out=tmp_path / "features"),
            LearnAlignScorer(folder, 8, direction=tmp_path / "features"),
        ),
    ):
        assert fitted.fitted == by_path.fitted
        assert by_path.fitted is not None
        assert by_path.fitted.sha256 is not None
        assert fitted.identity == by_path.identity
        assert Hasher.hash(fitted) == Hasher.hash(by_path)
        assert pickle.loads(pickle.dumps(by_path)).fitted == by_path.fitted.without_digest()
        assert by_path.fitted.sha256.encode() not in pickle.dumps(by_path)
        assert by_path._travelling_arguments()["direction"] == by_path.fitted, "a worker checks the very file"


def test_a_direction_without_a_key_is_known_by_its_file(folder: Path, made: Path, tmp_path: Path) -> None:
    direction, identities = Direction.load(made), set()
    direction.record.pop("key")
    for factor in (1.0, 2.0):
        for tensor in direction.tensors.values():
            tensor.mul_(factor)
        direction.save(tmp_path / "keyless.safetensors")
        scorer = GradAlignScorer(folder, direction=tmp_path / "keyless.safetensors")
        identities.add(scorer.identity)
        assert pickle.loads(pickle.dumps(scorer)).fitted == scorer.fitted
        assert scorer(pool()[0])["gradalign_error"] == ""
    assert len(identities) == 2


# -- the place of a fit -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORERS)
def test_a_place_that_cannot_be_written_is_refused_before_any_gradient(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("hf_curate.scorers.model.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(DirectionError, match=r"cannot be written to 'file' \(\w+: .*give another place, fit\(dataset"):
        SCORERS[name](folder).fit(pool(), out=tmp_path / "file" / "fit")
    home = tmp_path / "home"
    home.touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    with pytest.raises(DirectionError, match=r"cannot be written to 'directions' .*or set HF_HOME"):
        SCORERS[name](folder).fit(pool())


def test_the_probe_of_a_place_leaves_nothing_there(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / ("long" * 60))
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]


@pytest.mark.parametrize("same", [True, False])
def test_features_that_another_process_wrote_first_are_used_if_they_are_of_this_fit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    out = tmp_path / "features"
    first = LearnAlignScorer(folder, 8).fit(pool() if same else trusted(), out=out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(LearnAlignScorer, "_is_there", lambda *_: False)  # as it was when the other began
    second = LearnAlignScorer(folder, 8)
    if same:
        assert second.fit(pool(), out=out)(pool()[:]) == first(pool()[:])
    else:
        with pytest.raises(DirectionError, match="the features cannot be written to 'features'"):
            second.fit(pool(), out=out)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert [path.name for path in tmp_path.iterdir()] == ["features"]


# -- where rows came from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCORERS)
def test_source_and_verifier_are_kept_in_the_record_and_change_no_identity(
    name: str, folder: Path, tmp_path: Path
) -> None:
    plain = SCORERS[name](folder).fit(trusted(), out=tmp_path / "plain")
    told = SCORERS[name](folder).fit(trusted(), out=tmp_path / "told", source="org/trusted", verifier="exact match")
    record = told.record()["direction"]
    assert (record["source"], record["verifier"]) == ("org/trusted", "exact match")
    assert told.identity == plain.identity
    local = SCORERS[name](folder).fit(trusted(), out=tmp_path / "local", source=str(tmp_path / "rows.jsonl"))
    assert "rows.jsonl" in local.record()["direction"]["source"]
    assert str(tmp_path) not in repr(local.record())


# -- a fit that `score` made ------------------------------------------------------------------------------------------

BY_POOL = [name for name in SCORERS if name != "GradAlign"]


@pytest.mark.parametrize("name", BY_POOL)
def test_score_fits_anew_on_another_pool_unless_the_caller_fitted(name: str, folder: Path, tmp_path: Path) -> None:
    one, other = (Dataset.from_list(solved(3, seed=seed)) for seed in (61, 62))
    scorer = SCORERS[name](folder)
    keys, columns = [], []
    for rows in (one, other, one):
        columns.append(score(rows, scorer)[scorer.column][:])
        keys.append(scorer.fitted.key)
    assert keys[0] == keys[2] != keys[1]
    assert columns[0] == columns[2]
    fresh = SCORERS[name](folder)
    assert columns[1] == score(other, fresh)[fresh.column][:]
    explicit = SCORERS[name](folder).fit(one, out=tmp_path / "fit")
    kept = score(other, explicit)[explicit.column][:]
    assert explicit.fitted.path == tmp_path / "fit"
    assert kept != columns[1]
    assert kept == explicit(other[:])[explicit.column]


# -- weights that changed ---------------------------------------------------------------------------------------------


def of_live(name: str, model: Any) -> Any:
    return SCORERS[name](model, tokenizer=tokenizer())


@pytest.mark.parametrize("name", SCORERS)
def test_a_live_model_that_was_changed_in_place_after_the_fit_is_refused_at_the_next_row(name: str) -> None:
    model, row = policy(), pool()[0]
    scorer = of_live(name, model).fit(pool())
    before = scorer(row)
    with torch.no_grad():
        next(model.parameters()).mul_(1.5)
    assert "gradients of two models cannot be compared. Fit it again with this model." in refused(lambda: scorer)
    again = scorer.fit(pool())
    assert again(row) == of_live(name, model).fit(pool())(row)
    assert again(row) != before


@pytest.mark.parametrize("name", SCORERS)
def test_a_live_model_that_was_changed_through_data_is_refused_at_the_next_map_or_score(name: str) -> None:
    model = policy()
    scorer = of_live(name, model).fit(pool())
    pool().map(scorer, batched=True)
    next(model.parameters()).data.mul_(1.5)
    for run in (
        lambda: pool().map(scorer, batched=True),
        lambda: score(pool(), scorer),
        lambda: scorer.prepare(pool()),
        lambda: pickle.dumps(scorer),
    ):
        with pytest.raises(DirectionError, match="gradients of two models cannot be compared"):
            run()


@pytest.mark.parametrize("name", SCORERS)
def test_a_model_folder_that_was_written_over_is_loaded_again_and_needs_another_fit(name: str, tmp_path: Path) -> None:
    place = saved_policy(tmp_path / "policy")
    scorer = SCORERS[name](place).fit(pool())
    # a row that is in no pool: features of the pool's own rows are looked up
    row = solved(1, seed=63)[0]
    before = scorer(row)
    saved_policy(place, seed=1)
    with pytest.raises(DirectionError, match="gradients of two models cannot be compared"):
        scorer(row)
    with pytest.raises(DirectionError, match="gradients of two models cannot be compared"):
        scorer(pool()[0])
    again = scorer.fit(pool())(row)
    assert again != before
    assert again == SCORERS[name](saved_policy(tmp_path / "same", seed=1)).fit(pool())(row)


# -- a gradient that overflows ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["GradAlign", "Align"])
def test_a_row_whose_gradient_overflows_is_named(name: str, folder: Path, tmp_path: Path) -> None:
    rows = solved(3, seed=64)
    rows[1]["rewards"] = [1e200, 0.0, 0.0, -1e200]
    with pytest.raises(DirectionError, match=r"^the gradient of row 1 overflows: look at its rewards\.$"):
        SCORERS[name](folder).fit(Dataset.from_list(rows), out=tmp_path / "fit")
    with pytest.raises(DirectionError, match=r"row 1 overflows.*or load the model with dtype='float32'\.$"):
        SCORERS[name](folder, dtype="bfloat16").fit(Dataset.from_list(rows), out=tmp_path / "fit")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["LearnAlign", "LearnAlign, projected"])
def test_where_each_gradient_stands_alone_a_row_that_overflows_is_left_out(
    name: str, folder: Path, tmp_path: Path
) -> None:
    rows = solved(3, seed=64)
    rows[1]["rewards"] = [1e200, 0.0, 0.0, -1e200]
    scorer = SCORERS[name](folder).fit(Dataset.from_list(rows), out=tmp_path / "fit")
    assert scorer.record()["direction"]["rows"]["failed"] == {"not finite": 1}
    clean = SCORERS[name](folder).fit(Dataset.from_list([rows[0], rows[2]]), out=tmp_path / "clean")
    assert scorer(rows[0]) == clean(rows[0])


# -- what a gradient costs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LearnAlign", "Align", "GradAlign"])
def test_only_a_standard_error_needs_the_products_of_each_rollout(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hf_curate.gradients.inner as module

    scorer = SCORERS[name](folder).fit(pool())
    wanted = scorer(pool()[0])
    real = module.Tangents
    made: list[int] = []
    monkeypatch.setattr(module, "Tangents", lambda *a, **k: (made.append(1), real(*a, **k))[1])
    assert scorer(pool()[0]) == wanted
    assert bool(made) == (name == "GradAlign")


def test_the_tokens_of_one_pass_are_as_many_as_the_width_and_depth_of_the_model_leave_room_for(folder: Path) -> None:
    model = AlignScorer(folder).load()
    wide, deep = model.model.config.hidden_size, model.model.config.num_hidden_layers
    assert AlignScorer(folder).token_limit(model) == min(2**30 // (KEPT_VALUES * wide * deep * 4), 32768)
    assert AlignScorer(folder, batch_tokens=77).token_limit(model) == 77
    sizes = {(512, 12): 2**30 // (KEPT_VALUES * 512 * 12 * 4), (4096, 36): 256, (8, 1): 32768}
    for (width, depth), limit in sizes.items():
        config = SimpleNamespace(hidden_size=width, num_hidden_layers=depth)
        config.get_text_config = lambda config=config: config
        large: Any = replace_model(model, config)
        assert AlignScorer(folder).token_limit(large) == limit


def replace_model(model: Any, config: Any) -> Any:
    """What `token_limit` looks at: the config, the device and the size of a value."""
    return SimpleNamespace(model=SimpleNamespace(config=config), device=model.device, head=model.head)


def test_a_damaged_file_in_the_cache_is_an_error_that_says_to_delete_it(folder: Path) -> None:
    rows = Dataset.from_list(solved(2, seed=90))
    path = GradAlignScorer(folder, validation=rows).fit(rows).fitted.path  # type: ignore[union-attr]
    path.write_bytes(path.read_bytes()[:1000])
    assert "delete it and fit again" in refused(lambda: GradAlignScorer(folder, validation=rows))
    path.unlink()
    assert GradAlignScorer(folder, validation=rows)(rows[0])["gradalign_error"] == ""


def test_the_files_of_a_fit_can_be_read_by_others_as_the_umask_says(made: Path, folder: Path, tmp_path: Path) -> None:
    import os

    plain = tmp_path / "plain"
    plain.touch()
    assert made.stat().st_mode == plain.stat().st_mode
    assert not [path for path in made.parent.iterdir() if path != made]
    assert os.access(made, os.R_OK)


def test_an_unfitted_learnalign_and_align_have_no_direction_in_the_record(folder: Path) -> None:
    for scorer in (LearnAlignScorer(folder), LearnAlignScorer(folder, 8), AlignScorer(folder)):
        assert scorer.record()["direction"] is None
        assert scorer.record()["settings"]["direction"] is None
