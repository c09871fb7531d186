"""What holds for the scores of every set of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tolerances import GRAM_ROUTE

from hf_curate.gradients.alignment import alignments, history_weights, step_scores

TARGETS = ("answer", "steps+answer", "suffix")
numbers = st.floats(-4, 4, allow_nan=False).map(lambda x: round(x, 3))
histories = st.one_of(
    st.just("uniform"),
    st.tuples(st.just("window"), st.integers(1, 8)),
    st.tuples(st.just("ema"), st.floats(0.05, 0.95)),
)
options = st.fixed_dictionaries({"alpha": st.floats(0, 1), "history": histories, "target": st.sampled_from(TARGETS)})


@st.composite
def traces(draw: st.DrawFn, smallest: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """[K+1, d] gradients of K steps and the answer, and their token counts."""
    steps, width = draw(st.integers(smallest, 7)), draw(st.integers(1, 4))
    rows = st.lists(numbers, min_size=width, max_size=width)
    vectors = np.array(draw(st.lists(rows, min_size=steps + 1, max_size=steps + 1)))
    tokens = np.array(draw(st.lists(st.integers(1, 50), min_size=steps + 1, max_size=steps + 1)))
    return vectors, tokens


def gram_of(vectors: np.ndarray) -> np.ndarray:
    return vectors @ vectors.T


def cancels(vectors: np.ndarray, tokens: np.ndarray, history: Any, target: str) -> bool:
    """Whether some sum of gradients is much smaller than its parts: its direction is rounding noise on every route."""
    steps = [torch.from_numpy(vector) for vector in vectors]
    for k in range(1, len(vectors)):
        sums = [reference.target_of(k, steps, tokens.tolist(), target)]
        if k > 1:
            sums.append(sum(reference.history_weight(k, j, history) * steps[j - 1] for j in range(1, k)))
        floor = 1e-3 * max(float(np.abs(vectors).max()), 1e-3)
        if any(0 < float(total.norm()) < floor for total in sums):
            return True
    return False


@given(traces(), options)
def test_scores_lie_between_minus_one_and_one(trace: Any, how: dict[str, Any]) -> None:
    scores = step_scores(gram_of(trace[0]), trace[1], **how)
    assert scores.shape == (len(trace[0]) - 1,)
    assert np.isfinite(scores).all()
    assert np.abs(scores).max() <= 1.0


@given(traces(), options)
def test_the_gram_route_equals_explicit_vectors(trace: Any, how: dict[str, Any]) -> None:
    vectors, tokens = trace
    assume(not cancels(vectors, tokens, how["history"], how["target"]))
    loops = reference.scores([torch.from_numpy(vector) for vector in vectors], tokens.tolist(), **how)
    assert step_scores(gram_of(vectors), tokens, **how) == pytest.approx(loops, abs=GRAM_ROUTE)


@given(traces(), options, st.sampled_from([2.0**-40, 2.0**-3, 2.0**5, 2.0**40]))
def test_scaling_all_gradients_changes_nothing(trace: Any, how: dict[str, Any], factor: float) -> None:
    vectors, tokens = trace
    scaled = step_scores(gram_of(vectors * factor), tokens, **how)
    assert scaled == pytest.approx(step_scores(gram_of(vectors), tokens, **how), abs=1e-12)


@given(traces(), st.floats(0, 1), histories, st.data())
def test_scaling_the_answer_or_the_scored_step_alone_does_not_change_the_step(
    trace: Any, alpha: float, history: Any, data: st.DataObject
) -> None:
    vectors, tokens = trace
    k = data.draw(st.integers(0, len(vectors) - 2))
    scaled = vectors.copy()
    scaled[k] *= 8.0
    scaled[-1] *= 4.0
    before, after = (step_scores(gram_of(v), tokens, alpha=alpha, history=history)[k] for v in (vectors, scaled))
    assert after == pytest.approx(before, abs=1e-12)


@given(traces(), options)
def test_the_first_step_scores_its_alignment_alone(trace: Any, how: dict[str, Any]) -> None:
    vectors, tokens = trace
    aligned, consistent = alignments(gram_of(vectors), tokens, history=how["history"], target=how["target"])
    assert step_scores(gram_of(vectors), tokens, **how)[0] == aligned[0]
    assert np.isnan(consistent[0])
    assert not np.isnan(consistent[1:]).any()


@given(traces(), options, st.data())
def test_a_step_without_gradient_scores_zero(trace: Any, how: dict[str, Any], data: st.DataObject) -> None:
    vectors, tokens = trace
    k = data.draw(st.integers(0, len(vectors) - 2))
    vectors[k] = 0.0
    assert step_scores(gram_of(vectors), tokens, **how)[k] == 0.0


@given(traces(), histories)
def test_an_answer_without_gradient_leaves_the_history_alone(trace: Any, history: Any) -> None:
    vectors, tokens = trace
    vectors[-1] = 0.0
    aligned, consistent = alignments(gram_of(vectors), tokens, history=history)
    assert not aligned.any()
    scores = step_scores(gram_of(vectors), tokens, alpha=0.25, history=history)
    assert scores[1:] == pytest.approx(0.75 * consistent[1:])


@given(traces(), st.floats(0, 1), st.sampled_from(TARGETS), st.integers(0, 5))
def test_a_window_over_all_steps_is_the_uniform_history(trace: Any, alpha: float, target: str, extra: int) -> None:
    vectors, tokens = trace
    wide = ("window", max(1, len(vectors) - 1 + extra))
    both = [
        step_scores(gram_of(vectors), tokens, alpha=alpha, target=target, history=history)
        for history in (wide, "uniform")
    ]
    assert np.array_equal(*both)


@given(traces(), histories, st.sampled_from(TARGETS))
def test_alpha_one_ignores_the_history_and_alpha_zero_the_target(trace: Any, history: Any, target: str) -> None:
    vectors, tokens = trace
    aligned, consistent = alignments(gram_of(vectors), tokens, history=history, target=target)
    one = step_scores(gram_of(vectors), tokens, alpha=1.0, history=history, target=target)
    zero = step_scores(gram_of(vectors), tokens, alpha=0.0, history=history, target=target)
    assert np.array_equal(one, aligned)
    assert np.array_equal(zero[1:], consistent[1:])


@given(traces(smallest=3), st.randoms(use_true_random=False))
def test_the_order_of_the_earlier_steps_does_not_matter_to_a_uniform_history(trace: Any, random: Any) -> None:
    vectors, tokens = trace
    assume(not cancels(vectors, tokens, "uniform", "answer"))
    order = list(range(len(vectors) - 2))  # all but the last step and the answer
    random.shuffle(order)
    order += [len(vectors) - 2, len(vectors) - 1]
    before = alignments(gram_of(vectors), tokens)[1][-1]
    after = alignments(gram_of(vectors[order]), tokens[order])[1][-1]
    assert after == pytest.approx(before, abs=GRAM_ROUTE)


@given(traces(smallest=2), options)
def test_token_counts_matter_only_to_targets_that_pool_tokens(trace: Any, how: dict[str, Any]) -> None:
    vectors, tokens = trace
    if how["target"] == "answer":
        ours = step_scores(gram_of(vectors), tokens, **how)
        assert ours == pytest.approx(step_scores(gram_of(vectors), np.ones_like(tokens), **how), abs=1e-12)
    last = step_scores(gram_of(vectors), tokens, **(how | {"target": "suffix"}))[-1]
    assert last == pytest.approx(step_scores(gram_of(vectors), tokens, **(how | {"target": "answer"}))[-1], abs=1e-12)


@given(st.integers(1, 9), histories)
def test_history_weights_are_those_of_the_definition_up_to_a_factor_per_step(steps: int, history: Any) -> None:
    weights = history_weights(steps, history)
    assert weights.shape == (steps, steps)
    assert not weights[np.triu_indices(steps)].any()
    for k in range(2, steps + 1):
        loops = np.array([reference.history_weight(k, j, history) for j in range(1, k)])
        ours = weights[k - 1, : k - 1]
        assert (ours / ours.sum()) == pytest.approx(loops / loops.sum(), abs=1e-12)


def test_identical_opposite_and_orthogonal_steps_score_one_minus_one_and_zero() -> None:
    vectors = np.array([[2.0, 0.0], [-1.0, 0.0], [0.0, 3.0], [5.0, 0.0]])
    aligned, consistent = alignments(gram_of(vectors), np.ones(4))
    assert aligned.tolist() == [1.0, -1.0, 0.0]
    assert consistent[1:].tolist() == [-1.0, 0.0]


@settings(max_examples=25)
@given(traces(), options)
def test_inner_products_stored_in_float32_give_the_scores_again(trace: Any, how: dict[str, Any]) -> None:
    vectors, tokens = trace
    assume(not cancels(vectors, tokens, how["history"], how["target"]))
    assume(float(np.linalg.norm(vectors, axis=1).min()) > 0.1)
    stored = gram_of(vectors).astype(np.float32)
    assert step_scores(stored, tokens, **how) == pytest.approx(step_scores(gram_of(vectors), tokens, **how), abs=2e-2)
