"""Attack: rollouts and rewards that nobody should have, through every scorer of policy gradients. A null with a
reason, neighbours that do not move by a bit, or a clear error."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, List, Value
from rollouts import by_row, policy, pool, rows_of_every_kind, saved_policy, solved, tokenizer, with_ids

from hf_curate import score
from hf_curate.errors import ColumnsError, DirectionError, ScoreError
from hf_curate.scorers.align import AlignScorer
from hf_curate.scorers.gradalign import GradAlignScorer
from hf_curate.scorers.learnalign import LearnAlignScorer

NAN, INF = float("nan"), float("inf")
GOOD = solved(1, seed=20)[0]
IDS = with_ids([GOOD])[0]


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = saved_policy(tmp_path_factory.mktemp("attack") / "policy")
    return [
        GradAlignScorer(folder, validation=pool()),
        AlignScorer(folder).fit(pool()),
        LearnAlignScorer(folder).fit(pool()),
        LearnAlignScorer(folder, 8).fit(pool()),
    ]


TEXTS: list[tuple[dict[str, Any], str]] = [
    ({"rewards": [1.0, 0.0, 1.0]}, "rewards and responses differ: 3 rewards, 4 responses"),
    ({"rewards": []}, "rewards and responses differ: 0 rewards, 4 responses"),
    ({"responses": GOOD["responses"][:3]}, "rewards and responses differ: 4 rewards, 3 responses"),
    ({"rewards": None}, "reward missing: column 'rewards' holds None for 4 responses"),
    ({"rewards": [1.0, None, 0.0, 0.0]}, "reward missing: reward 2 is None"),
    ({"rewards": [1.0, NAN, 0.0, 0.0]}, "reward not finite: reward 2 is nan"),
    ({"rewards": [1.0, 0.0, -INF, 0.0]}, "reward not finite: reward 3 is -inf"),
    ({"rewards": [NAN] * 4}, "reward not finite: reward 1 is nan"),
    (
        {"rewards": [1.7e308, 1.7e308, 0.0, -1.7e308]},
        "reward not finite: the mean of 4 rewards of up to 1.7e+308",
    ),
    ({"rewards": [10**400, 0, 0, 0]}, "reward not finite: reward 1 is inf"),
    ({"rewards": ["1", "0", "1", "0"]}, "wrong type"),
    ({"rewards": [[1.0], [0.0], [1.0], [0.0]]}, "wrong type"),
    ({"rewards": 1.0}, "wrong type: column 'rewards' holds float"),
    ({"rewards": "1010"}, "wrong type: column 'rewards' holds str"),
    ({"responses": None}, "no rollouts: column 'responses' holds None"),
    ({"responses": [], "rewards": []}, "no rollouts: column 'responses' holds an empty list"),
    ({"responses": "1234"}, "wrong type: column 'responses' holds str"),
    ({"responses": [None, "a", "b", "c"]}, "wrong type: response 1 holds None"),
    ({"responses": ["a", 3, "b", "c"]}, "wrong type: response 2 holds int"),
    ({"responses": ["a", "b\ud800", "c", "d"]}, "not valid Unicode: lone surrogate U+D800"),
    ({"responses": ["1", "2" * 1100, "3", "4"]}, "too long: prompt and response 2 have 1,1"),
    ({"prompt": None}, "wrong type: column 'prompt' holds None"),
    ({"prompt": 7}, "wrong type: column 'prompt' holds int"),
    ({"prompt": ""}, "no prompt"),
    ({"prompt": "1" * 2000}, "too long: prompt and response 1 have 2,0"),
]
TOKENS: list[tuple[dict[str, Any], str]] = [
    ({"response_ids": [[5], [], [6], [7]]}, "empty response: response 2 holds no token id"),
    ({"response_ids": [[5], None, [6], [7]]}, "wrong type: response 2 holds None"),
    ({"response_ids": [[5], [6], [7], [20]]}, "unknown token id: response 4 holds id 20, the model knows 20"),
    ({"response_ids": [[5], [6], [2**62], [7]]}, "unknown token id: response 3"),
    ({"response_ids": [[5], [6], [-1], [7]]}, "wrong type: token 1 of response 3 is -1"),
    ({"response_ids": [[5], [6, 1.5], [3], [7]]}, "wrong type: token 2 of response 2 holds float"),
    ({"response_ids": [[5], [True], [3], [7]]}, "wrong type: token 1 of response 2 holds bool"),
    ({"response_ids": [5, 6, 7, 8]}, "wrong type: response 1 holds int"),
    ({"response_ids": [[5], [5] * 1100, [3], [7]]}, "too long"),
    ({"response_ids": []}, "no rollouts"),
    ({"response_ids": None}, "no rollouts"),
]
BAD = [({**GOOD, **change}, reason) for change, reason in TEXTS] + [
    ({**IDS, **change}, reason) for change, reason in TOKENS
]


@pytest.mark.parametrize(("row", "reason"), BAD, ids=[f"{i} {reason[:30]}" for i, (_, reason) in enumerate(BAD)])
def test_a_row_that_cannot_be_scored_is_null_with_a_reason(
    scorers: list[Any], row: dict[str, Any], reason: str
) -> None:
    for scorer in scorers:
        found = scorer(row)
        error = f"{scorer.prefix}_error"
        assert found[error].startswith(reason)
        assert len(found[error]) < 300
        assert [found[name] for name in scorer.columns if name != error] == [None] * (len(scorer.columns) - 1)


@pytest.mark.parametrize("rewards", [[1e-322, 0.0, 0.0, 0.0], [5e-324, 0.0, 0.0, 0.0], [1e200, 0.0, 1e200, 0.0]])
def test_rewards_at_the_edges_of_floating_point_give_a_number_or_a_reason(
    scorers: list[Any], rewards: list[float]
) -> None:
    for scorer in scorers:
        found = scorer({**GOOD, "rewards": rewards})
        value = found[scorer.column]
        assert (value is None) == bool(found[f"{scorer.prefix}_error"])
        assert value is None or math.isfinite(value)
        assert rewards[0] < 1 or value is None, "a gradient that overflows is not a score of 0"


def test_rewards_of_any_ordinary_size_are_scored(scorers: list[Any]) -> None:
    for scorer in scorers:
        plain = scorer({**GOOD, "rewards": [1.0, 0.0, 1.0, 0.0]})[scorer.column]
        for size in (1e-12, 1e12):
            found = scorer({**GOOD, "rewards": [size, 0.0, size, 0.0]})
            if scorer.prefix != "learnalign" or size > 1:
                assert found[scorer.column] == pytest.approx(plain, rel=1e-3)


def test_bad_neighbours_do_not_change_a_score_by_a_bit(scorers: list[Any]) -> None:
    good = rows_of_every_kind()
    typed = [
        {"rewards": [1.0]},
        {"rewards": None},
        {"rewards": [NAN] * 4},
        {"responses": None},
        {"responses": []},
        {"prompt": None},
        {"prompt": ""},
        {"responses": ["2" * 1100] * 4},
    ]
    rows, places = [], []
    for index, row in enumerate(good):
        rows.append({**GOOD, **typed[index % len(typed)]})
        places.append(len(rows))
        rows.append(row)
    mixed, clean = Dataset.from_list(rows), Dataset.from_list(good)
    for scorer in scorers:
        alone = clean.map(scorer, batched=True, features=scorer.features(clean))
        among = mixed.map(scorer, batched=True, batch_size=5, features=scorer.features(mixed))
        assert among.select(places).to_list() == alone.to_list()
        others = [index for index in range(len(rows)) if index not in places]
        assert all(among.select(others)[f"{scorer.prefix}_error"])
        assert set(among.select(others)[scorer.column]) == {None}


def test_bad_rows_do_not_lose_a_run_that_score_keeps_in_a_folder(scorers: list[Any], tmp_path: Path) -> None:
    data = Dataset.from_list([{**GOOD, "rewards": [1.0]}] * 9 + rows_of_every_kind())
    for index, scorer in enumerate(scorers):
        done = score(data, scorer, out=tmp_path / str(index), batch_rows=32)
        assert done.select_columns(data.column_names).to_list() == data.to_list()
        assert done[scorer.column][:9] == [None] * 9
        assert None not in done[scorer.column][9:]


def test_a_first_batch_of_eight_that_fails_entirely_is_an_error_with_the_reasons(scorers: list[Any]) -> None:
    bad = [{**GOOD, "rewards": [1.0]}] * 5 + [{**GOOD, "rewards": None}] * 3
    rows = Dataset.from_list([*bad, GOOD, *bad])
    for scorer in scorers:
        fresh = type(scorer)(**scorer._travelling_arguments())
        with pytest.raises(ScoreError, match="none of the 8 rows could be scored") as caught:
            rows.map(fresh, batched=True, batch_size=8)
        assert "5 x rewards and responses differ: 1 rewards, 4 responses" in str(caught.value)
        assert "3 x reward missing" in str(caught.value)
        seven = rows.select(range(1, 9)).map(fresh, batched=True, features=fresh.features(rows))
        assert seven[scorer.column][:7] == [None] * 7
        assert seven[scorer.column][7] is not None


def test_a_pool_in_which_nothing_can_be_read_cannot_be_fitted_on(scorers: list[Any]) -> None:
    rows = Dataset.from_list([{**GOOD, "rewards": [1.0]}, {**GOOD, "responses": None}])
    for scorer in scorers:
        with pytest.raises(DirectionError, match="none of the 2 rows to fit on can be read"):
            type(scorer)(**scorer._travelling_arguments()).fit(rows)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "rewards": [1.0]}, "no responses found in the columns 'prompt', 'rewards'"),
        ({"prompt": "a", "responses": ["a"]}, "no rewards found"),
        ({"prompt": "a", "completions": ["a"], "rewards": [1.0]}, "Did you mean responses='completions'"),
        ({"responses": ["a"], "rewards": [1.0]}, "no prompt found"),
        ({"question": "a", "problem": "b", "responses": ["a"], "rewards": [1.0]}, "'question', 'problem'"),
    ],
)
def test_missing_columns_are_errors_that_list_what_was_found(
    scorers: list[Any], row: dict[str, Any], words: str
) -> None:
    data = Dataset.from_list([row] * 2)
    for scorer in scorers:
        for run in (lambda s: s(row), lambda s: score(data, s), lambda s: data.map(s, batched=True)):
            with pytest.raises(ColumnsError) as caught:
                run(scorer)
            assert words in str(caught.value)


def test_odd_columns_and_odd_texts_are_like_any_other(scorers: list[Any]) -> None:
    texts = ["", "\x00", "سلام", "👩‍👩‍👧"]
    row = {**GOOD, "responses": texts}
    for scorer in scorers:
        found = scorer({**row, "<script>": 1, "__class__": "x", "row": {"a": [None]}})
        assert found[f"{scorer.prefix}_error"] == ""
        assert found == scorer(row)


def test_arrow_types_of_every_width_are_read_alike(scorers: list[Any]) -> None:
    for kind in ("int8", "bool", "float16", "float64"):
        rewards = np.array(GOOD["rewards"]).astype(kind).tolist()
        features = Features(
            {"prompt": Value("large_string"), "responses": List(Value("large_string")), "rewards": List(Value(kind))}
        )
        data = Dataset.from_list([{**GOOD, "rewards": rewards}], features=features)
        for scorer in scorers:
            assert scorer(data[0]) == scorer(GOOD)


@pytest.mark.parametrize("where", ["head", "middle"])
def test_weights_that_are_not_finite_give_reasons_and_refuse_to_be_fitted_on(where: str) -> None:
    model = policy(tie_word_embeddings=False)
    with torch.no_grad():
        if where == "head":
            model.get_output_embeddings().weight[5, 0] = NAN
        else:
            model.model.layers[0].mlp.up_proj.weight[0, 0] = INF
    for make in (AlignScorer, LearnAlignScorer, lambda *a, **k: LearnAlignScorer(*a, 8, **k)):
        with pytest.raises(DirectionError, match=r"(?s)none of the 3 rows to fit on can be read:.*not finite"):
            make(model, tokenizer=tokenizer()).fit(Dataset.from_list(solved(3)))


def test_the_scores_of_the_attacked_scorers_are_still_those_of_fresh_ones(scorers: list[Any]) -> None:
    for scorer in scorers:
        fresh = type(scorer)(**scorer._travelling_arguments())
        assert by_row(scorer(pool()[:])) == by_row(fresh(pool()[:]))
