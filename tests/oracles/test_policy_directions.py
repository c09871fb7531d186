"""Mean gradients, directions as files, projections, and the scores of a pool, against plain loops in float64."""

from __future__ import annotations

import functools
import hashlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import policy_reference as reference
import pytest
import torch
from datasets import Dataset
from policy_reference import POOL, TRUSTED, Problem
from test_policy_products import FIRST_BLOCK, random_direction, subject
from tokenizers import Tokenizer, models, pre_tokenizers
from tolerances import COLUMN, POLICY, PROJECTED, SAME_RUN
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from zoo import VOCABULARY, ZOO, build

from hf_curate.errors import DirectionError
from hf_curate.gradients.directions import Direction
from hf_curate.gradients.inner import policy_products
from hf_curate.gradients.parameters import parameters_of
from hf_curate.gradients.policy import policy_gradient
from hf_curate.gradients.project import Projection
from hf_curate.scorers.align import AlignScorer
from hf_curate.scorers.gradalign import GradAlignScorer
from hf_curate.scorers.learnalign import LearnAlignScorer

DTYPES = (torch.float64, torch.float32)
SOME = ("qwen3", "gpt2", "phi", "mixtral")


@functools.cache
def tokenizer() -> PreTrainedTokenizerFast:
    """One word per id: `<7>` is token 7."""
    backend = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(VOCABULARY)}, unk_token="<3>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<2>")


def rows_of(problems: tuple[Problem, ...]) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": " ".join(f"<{i}>" for i in p.prompt), "response_ids": p.responses, "rewards": p.rewards}
            for p in problems
        ]
    )


@functools.cache
def rollout_gradients(name: str, trusted: bool) -> list[list[reference.Gradient]]:
    """Of each rollout of each problem."""
    problems = TRUSTED if trusted else POOL
    return [[reference.rollout_gradient(build(name), rollout) for rollout in p.rollouts] for p in problems]


def vectors(name: str, trusted: bool, names: list[str]) -> list[list[Tensor]]:
    return [[reference.flat(gradient, names) for gradient in own] for own in rollout_gradients(name, trusted)]


def policy_gradients(name: str, trusted: bool, names: list[str]) -> list[Tensor]:
    """The policy gradient of each problem; exactly 0 where rewards are equal or the responses are, which the formula
    makes 0 up to rounding."""
    found = []
    for problem, own in zip(TRUSTED if trusted else POOL, vectors(name, trusted, names), strict=True):
        gradient = reference.policy_gradient(own, reference.advantages_of(problem.rewards))
        size = max(float(vector.norm()) for vector in own)
        same = len(set(problem.rewards)) == 1 or len({tuple(response) for response in problem.responses}) == 1
        assert same == (float(gradient.norm()) < 1e-12 * size)
        found.append(torch.zeros_like(gradient) if same else gradient)
    return found


def arguments(name: str, dtype: torch.dtype) -> dict[str, Any]:
    return {"model": subject(name, dtype).model, "tokenizer": tokenizer()}


def scores(scorer: Any) -> dict[str, list[Any]]:
    return scorer(rows_of(POOL)[:])


def near(found: list[Any], wanted: list[float], tolerance: float) -> bool:
    """Relative to the largest."""
    largest = max(abs(value) for value in wanted)
    return all(abs(a - b) <= tolerance * largest for a, b in zip(found, wanted, strict=True))


# -- the mean gradient ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ZOO)
def test_the_validation_gradient_is_the_mean_over_all_problems(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    trusted, names = rows_of(TRUSTED), reference.names_of(build(name), "all")
    wanted = reference.mean_of(policy_gradients(name, True, names))
    for batch_tokens in (None, 25, 2):  # everything kept, blocks that run again, several passes
        scorer = GradAlignScorer(**arguments(name, dtype), validation=trusted, batch_tokens=batch_tokens)
        out = tmp_path / f"{batch_tokens}.safetensors"
        scorer.fit(trusted, out=out)
        direction = Direction.load(out)
        assert sorted(direction.tensors) == sorted(names)
        assert {tensor.dtype for tensor in direction.tensors.values()} == {dtype}
        found = reference.flat(direction.tensors, names)
        assert float((found - wanted).norm()) <= POLICY[dtype] * float(wanted.norm())
        assert direction.norm == pytest.approx(float(wanted.norm()), rel=POLICY[dtype])
        rows = direction.record["rows"]
        assert (rows["in"], rows["with_signal"], rows["without_signal"]) == (3, 2, 1)
        assert (rows["all_wrong"], rows["all_right"]) == (1, 0)


# -- scores --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "which", "dtype"),
    [
        *((name, "all", dtype) for name in SOME for dtype in DTYPES),
        ("mixtral", "linear", torch.float64),
        ("gpt2", FIRST_BLOCK, torch.float64),
    ],
)
def test_gradalign_scores_are_the_statistics_of_explicit_gradients(name: str, which: str, dtype: torch.dtype) -> None:
    names = reference.names_of(build(name), which)
    direction = reference.mean_of(policy_gradients(name, True, names))
    gradients = policy_gradients(name, False, names)
    wanted: dict[str, list[float | None]] = {kind: [] for kind in ("cosine", "dot", "t", "corr", "stderr")}
    for problem, gradient, own in zip(POOL, gradients, vectors(name, False, names), strict=True):
        advantages = reference.advantages_of(problem.rewards)
        along = [reference.inner(vector, direction) for vector in own]
        parts = reference.parts(advantages, along)
        signal = bool(gradient.any())
        wanted["cosine"].append(reference.cosine(gradient, direction))
        wanted["dot"].append(reference.inner(gradient, direction))
        spread = len(parts) > 2  # the two parts of two rollouts are equal
        wanted["stderr"].append((reference.standard_error(parts) if signal else 0.0) if spread else None)
        wanted["corr"].append((reference.correlation(advantages, along) if spread else None) if signal else 0.0)
        wanted["t"].append((reference.t_statistic(parts) if spread else None) if signal else 0.0)
    assert wanted["t"].count(None) == wanted["corr"].count(None) == 1
    assert wanted["stderr"].count(None) == sum(len(problem.rewards) < 3 for problem in POOL) == 3
    trusted = rows_of(TRUSTED)
    tolerance = {torch.float64: COLUMN, torch.float32: POLICY[torch.float32]}[dtype]
    for statistic in ("cosine", "dot", "t", "corr"):
        found = scores(
            GradAlignScorer(**arguments(name, dtype), validation=trusted, parameters=which, statistic=statistic)
        )
        for score, error, want, gradient in zip(
            found["gradalign_score"], found["gradalign_error"], wanted[statistic], gradients, strict=True
        ):
            assert (score is None) == (want is None) == bool(error)
            assert (score == 0.0) == (not gradient.any())
        for column, kind in (("gradalign_score", statistic), ("gradalign_stderr", "stderr")):
            pairs = [(a, b) for a, b in zip(found[column], wanted[kind], strict=True) if b is not None]
            assert near([a for a, _ in pairs], [b for _, b in pairs], tolerance)
            assert [value is None for value in found[column]] == [want is None for want in wanted[kind]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("which", ["linear", "all"])
@pytest.mark.parametrize("name", SOME)
def test_learnalign_scores_are_the_row_means_of_the_whole_matrix(
    name: str, which: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    names = reference.names_of(build(name), which)
    values = [reference.learnability(problem.rewards) for problem in POOL]
    wanted = reference.learnalign(policy_gradients(name, False, names), values)
    tolerance = {torch.float64: COLUMN, torch.float32: POLICY[torch.float32]}[dtype]
    scorer = LearnAlignScorer(**arguments(name, dtype), parameters=which)
    found = scores(scorer.fit(rows_of(POOL), out=tmp_path / "mean.safetensors"))
    assert found["learnalign_error"] == [""] * len(POOL)
    assert found["learnability"] == pytest.approx(values, rel=COLUMN)
    assert near(found["learnalign_score"], wanted, tolerance)
    assert [score == 0.0 for score in found["learnalign_score"]] == [score == 0.0 for score in wanted]


@pytest.mark.parametrize("name", SOME)
def test_the_cosine_to_the_gradient_of_the_pool_itself_is_align(name: str, tmp_path: Path) -> None:
    names = reference.names_of(build(name), "all")
    wanted = reference.align(policy_gradients(name, False, names))
    found = scores(GradAlignScorer(**arguments(name, torch.float64), validation=rows_of(POOL)))
    assert near(found["gradalign_score"], wanted, COLUMN)
    scorer = AlignScorer(**arguments(name, torch.float64), parameters="all")
    found = scores(scorer.fit(rows_of(POOL), out=tmp_path / "pool.safetensors"))
    assert near(found["align_score"], wanted, COLUMN)


# -- a direction as a file -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_direction_comes_back_from_its_file_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = subject("phi", dtype)
    parameters = parameters_of(model.model, "all")
    tensors = random_direction(parameters)
    direction = Direction(tensors, {"kind": "drawn", "rows": {"in": 3}})
    digest = direction.save(tmp_path / "a.safetensors")
    assert digest == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    again = Direction.load(tmp_path / "a.safetensors")
    again.check(parameters)
    assert again.record["rows"] == {"in": 3}
    assert again.tensors.keys() == tensors.keys()
    for name, tensor in again.tensors.items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, tensors[name])
    assert Direction(dict(reversed(tensors.items())), direction.record).save(tmp_path / "b.safetensors") == digest
    rollouts, advantages = TRUSTED[0].rollouts, reference.advantages_of(TRUSTED[0].rewards)
    first = policy_products(model, rollouts, advantages, parameters, tensors)
    second = policy_products(model, rollouts, advantages, parameters, again.beside(parameters))
    assert first.per_rollout is not None
    assert second.per_rollout is not None
    ours, theirs = [first.dot, first.squared_norm, *first.per_rollout], [second.dot, second.squared_norm]
    assert near(ours, [*theirs, *second.per_rollout], SAME_RUN[dtype])


def test_a_direction_that_does_not_fit_the_parameters_is_refused_by_name() -> None:
    parameters = parameters_of(subject("phi").model, "all")
    tensors = random_direction(parameters)
    name = next(name for name in tensors if name.endswith("fc1.weight"))
    Direction(tensors).check(parameters)
    broken = torch.full_like(tensors[name], float("nan"))
    wrong = {
        "lacks": {key: value for key, value in tensors.items() if key != name},
        "has more": {**tensors, "more": torch.zeros(2)},
        r"\(24, 40\)": {**tensors, name: tensors[name].T.contiguous()},
        "NaN": {**tensors, name: broken},
    }
    for match, given in wrong.items():
        with pytest.raises(DirectionError, match=match):
            Direction(given).check(parameters)


# -- projections ---------------------------------------------------------------------------------------------


def features(name: str, problem: Problem, dim: int, seed: int, which: str = "all") -> Tensor:
    model = subject(name)
    parameters = parameters_of(model.model, which)
    projection = Projection(parameters, dim, seed)
    found = torch.zeros(projection.size, dtype=torch.float64)
    weights = [a / len(problem.rewards) for a in reference.advantages_of(problem.rewards)]
    policy_gradient(model, problem.rollouts, weights, parameters, functools.partial(projection.into, found))
    return found


@pytest.mark.parametrize("name", SOME)
def test_a_projection_with_room_for_everything_keeps_every_inner_product(name: str) -> None:
    names = reference.names_of(build(name), "all")
    gradients = policy_gradients(name, False, names)
    left, right = (features(name, POOL[index], 10**6, 0) for index in (0, 7))
    assert left.shape == gradients[0].shape
    for a, b, wanted in ((left, right, (0, 7)), (left, left, (0, 0))):
        exact = reference.inner(gradients[wanted[0]], gradients[wanted[1]])
        scale = float(gradients[wanted[0]].norm() * gradients[wanted[1]].norm())
        assert abs(reference.inner(a, b) - exact) < COLUMN * scale  # features are float32


@pytest.mark.parametrize("which", ["all", "linear"])
@pytest.mark.parametrize("name", ["phi", "mixtral"])
def test_projected_inner_products_have_the_exact_one_as_their_mean(name: str, which: str) -> None:
    model = subject(name)
    parameters = parameters_of(model.model, which)
    kept: list[dict[str, Tensor]] = []
    for problem in (POOL[0], POOL[7]):
        weights = [a / len(problem.rewards) for a in reference.advantages_of(problem.rewards)]
        gradient: dict[str, Tensor] = {}
        policy_gradient(model, problem.rollouts, weights, parameters, gradient.__setitem__)
        kept.append(gradient)
    estimates = []
    for seed in range(300):
        projection = Projection(parameters, 16, seed)
        assert projection.size <= 16 * len(parameters)
        pair = torch.zeros(2, projection.size, dtype=torch.float64)
        for row, gradient in zip(pair, kept, strict=True):
            for each, value in gradient.items():
                projection.into(row, each, value)
        estimates.append([reference.inner(pair[0], pair[1]), reference.inner(pair[0], pair[0])])
    found = np.array(estimates)
    left, right = (reference.flat(gradient, parameters) for gradient in kept)
    for column, exact in enumerate([reference.inner(left, right), reference.inner(left, left)]):
        error = float(found[:, column].std(ddof=1)) / math.sqrt(len(found))
        assert error < 0.05 * float(left.norm() * (right.norm(), left.norm())[column])
        assert abs(float(found[:, column].mean()) - exact) < PROJECTED * error


def test_a_projection_depends_on_seed_name_and_shape_alone() -> None:
    parameters = parameters_of(subject("phi").model, "all")
    turned = dict(reversed(parameters.items()))
    gradients = random_direction(parameters)

    def projected(chosen: dict[str, Any], seed: int) -> dict[str, Tensor]:
        projection = Projection(chosen, 9, seed)
        found = {}
        for name in chosen:
            place = torch.full((projection.size,), float("nan"), dtype=torch.float64)
            projection.into(place, name, gradients[name])
            found[name] = place[~place.isnan()]
        assert sum(len(part) for part in found.values()) == projection.size
        return found

    first, again, other = projected(parameters, 4), projected(turned, 4), projected(parameters, 5)
    assert all(torch.equal(first[name], again[name]) for name in parameters)
    large = [name for name, p in parameters.items() if p.numel() > 9]
    assert large
    assert not any(torch.equal(first[name], other[name]) for name in large)
    matrices = [name for name in large if name.endswith("fc1.weight")]  # of one shape, in two blocks
    signs = [projected_signs(parameters, name) for name in matrices]
    assert not torch.equal(signs[0], signs[1])


def projected_signs(parameters: dict[str, Any], name: str) -> Tensor:
    projection = Projection(parameters, 9, 4)
    place = torch.full((projection.size,), float("nan"), dtype=torch.float64)
    projection.into(place, name, torch.arange(parameters[name].numel()).reshape(parameters[name].shape) % 7 + 1.0)
    return place[~place.isnan()]


@pytest.mark.parametrize("name", SOME)
def test_projected_learnalign_with_room_for_everything_is_the_exact_one(name: str, tmp_path: Path) -> None:
    names = reference.names_of(build(name), "linear")
    values = [reference.learnability(problem.rewards) for problem in POOL]
    wanted = reference.learnalign(policy_gradients(name, False, names), values)
    scorer = LearnAlignScorer(**arguments(name, torch.float64), projection_dim=10**6)
    found = scores(scorer.fit(rows_of(POOL), out=tmp_path / "features"))
    assert near(found["learnalign_score"], wanted, COLUMN)
