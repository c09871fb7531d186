"""The selectors that the lab adds to the package's, and that it keeps what the package would keep."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset
from evidence.selectors import FURTHER, GRACE, NAMES, by_loss, further, kept, token_overlap

from hf_curate import select, step_scores


def test_the_lab_keeps_what_select_keeps() -> None:
    """Also with ties, nulls, and a budget that is no whole number of rows."""
    rng = np.random.default_rng(0)
    values = np.round(rng.random(33), 1)
    values[[3, 8]] = np.nan
    rows = Dataset.from_dict({"prompt": [f"{i}" for i in range(33)], "value": [None if v != v else v for v in values]})
    for budget in (0.05, 0.2, 0.5):
        picked = select(rows, "value", budget=f"{100 * budget:g}%")
        assert kept(values, budget).tolist() == list(picked.indices)


def test_the_token_null_is_graces_formula_on_counts_of_characters() -> None:
    """ "ab", "b" and the answer "b": cosines 1 / sqrt(2) with the answer and with each other, and 1."""
    assert token_overlap("ab\nb\n#b") == pytest.approx((0.5**0.5 + 0.7 * 1.0 + 0.3 * 0.5**0.5) / 2)
    assert token_overlap("1+1\n2\n#3") == pytest.approx(0.0)
    gram = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert step_scores(gram, np.array([1, 1])).tolist() == [0.0]


def test_the_selectors_by_loss_prefer_what_their_names_say() -> None:
    loss, alone = np.array([0.1, 0.5, 2.0, 0.9]), np.array([1.0, 1.0, 1.0, 1.0])
    found = by_loss(loss, alone)
    best = {name: int(np.argmax(values)) for name, values in found.items()}
    assert best == {"lowest loss": 0, "middle loss": 1, "highest loss": 2, "IFD": 3}
    assert found["IFD"][2] < found["IFD"].min(where=loss < 1.0, initial=9.0)
    assert set(best) <= set(NAMES)


def test_the_further_scores_are_of_what_is_there_already() -> None:
    """One does not correlate with what it was freed of; the other ranks half of the rows, and those by GRACE."""
    rng = np.random.default_rng(1)
    overlap, middle = rng.random(40), -rng.random(40)
    values = {GRACE["representation"]: overlap + rng.random(40), "token overlap": overlap, "middle loss": middle}
    found = further(values)
    assert tuple(found) == FURTHER
    assert np.corrcoef(found["GRACE less overlap"], overlap)[0, 1] == pytest.approx(0.0, abs=1e-9)
    ranked = np.isfinite(found["GRACE of middle loss"])
    assert ranked.sum() == 20
    assert middle[ranked].min() > middle[~ranked].max()
    assert (found["GRACE of middle loss"][ranked] == values[GRACE["representation"]][ranked]).all()
