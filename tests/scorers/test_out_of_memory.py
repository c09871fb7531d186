"""Memory that runs out, simulated and real: the same numbers from smaller batches, a null for what fits in none."""

from __future__ import annotations

import gc
import logging
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from rollouts import by_row, pool, saved_policy, solved, trusted
from tiny import run_script
from tolerances import POLICY, SAME_RUN

from hf_curate import GraceScorer, LossScorer, Rollouts
from hf_curate.batches import TALLY, bucket
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import DirectionError
from hf_curate.gradients import inner
from hf_curate.gradients.directions import Direction
from hf_curate.models import LanguageModel
from hf_curate.scorers.gradalign import GradAlignScorer
from hf_curate.scorers.learnalign import LearnAlignScorer

sys.path.append(str(Path(__file__).parents[1] / "rollout_room"))  # pytest does so only where that folder is collected
from problems import problem_rows, roller

pytestmark = pytest.mark.filterwarnings("ignore:LearnAlign's authors take rollouts:UserWarning")

SAME = SAME_RUN[torch.float32]
REFUSAL = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"


@pytest.fixture(autouse=True, scope="module")
def few_objects_to_go_through() -> Iterator[None]:
    """Each failure collects garbage, and the libraries alone are a million objects."""
    gc.freeze()
    yield
    gc.unfreeze()


def refuse() -> None:
    raise RuntimeError(REFUSAL)


@contextmanager
def memory_for(model: LanguageModel, tokens: int) -> Iterator[list[int]]:
    """The forward fails above so many tokens (with a cache, those that are in it too); all sizes that were asked for.

    A batch's activations would be there when it fails, so the failure comes from within the last block.
    """
    asked: list[int] = []

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask")
        asked.append((kwargs["input_ids"] if mask is None else mask).numel())

    def fail(*_: Any) -> None:
        if asked[-1] > tokens:
            refuse()

    blocks = next(child for child in model.decoder.children() if isinstance(child, torch.nn.ModuleList))
    handles = [model.decoder.register_forward_pre_hook(count, with_kwargs=True)]
    handles += [blocks[-1].register_forward_hook(fail)]
    try:
        yield asked
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def backward_for(model: LanguageModel, tokens: int) -> Iterator[list[int]]:
    """The backward fails above so many tokens, in the first block: when the head's, the norm's and the last block's
    gradients are out."""
    failed: list[int] = []

    def watch(module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        size = hidden.shape[0] * hidden.shape[1]

        def arrive(_: torch.Tensor) -> None:
            if size > tokens:
                failed.append(size)
                refuse()

        if hidden.requires_grad:
            hidden.register_hook(arrive)

    blocks = next(child for child in model.decoder.children() if isinstance(child, torch.nn.ModuleList))
    handle = blocks[0].register_forward_hook(watch)
    try:
        yield failed
    finally:
        handle.remove()


def state_of(model: LanguageModel) -> list[Any]:
    """What an attempt that failed must not have changed."""
    modules = list(model.model.modules())
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), "forward" in m.__dict__, m.training) for m in modules]
    own = [(p.grad is None, p.requires_grad, p._version, p.data_ptr()) for p in model.model.parameters()]
    return [hooks, own, torch.is_grad_enabled(), torch.is_inference_mode_enabled()]


def columns_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def assert_same(found: Sequence[dict[str, Any]], wanted: Sequence[dict[str, Any]], room: float) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        assert set(a) == set(b)
        for name, value in a.items():
            if value is None or isinstance(value, str):
                assert value == b[name]
            else:
                np.testing.assert_allclose(value, b[name], rtol=room, atol=room)


# -- traces -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def traces() -> list[dict[str, Any]]:
    rows = load_traces().select_columns(["prompt", "completion"]).select(range(30)).to_list()
    return sorted(rows, key=lambda row: len(row["completion"]))


def grace(**settings: Any) -> GraceScorer:
    return GraceScorer(MODEL, **({"dtype": "float32", "batch_tokens": 2000} | settings))


@pytest.mark.parametrize("proxy", ["representation", "outer", "last"])
def test_scores_are_the_same_after_batches_that_did_not_fit(proxy: str, traces: list[dict[str, Any]]) -> None:
    wanted = by_row(grace(proxy=proxy)(columns_of(traces)))
    scorer = grace(proxy=proxy)
    model = scorer.load()
    before = state_of(model)
    with memory_for(model, 600) as asked:
        found = by_row(scorer(columns_of(traces)))
        inside = state_of(model)[1:]
    assert state_of(model) == before
    assert inside == before[1:]
    assert_same(found, wanted, SAME)
    assert asked[0] > 1200
    assert sum(size > 600 for size in asked) == len(scorer.notes) == 2
    assert scorer.notes[0] == f"out of memory at {asked[0]:,} padded tokens: goes on with {asked[0] // 2:,}"


def test_what_was_done_before_is_not_done_again_and_keeps_its_bits(traces: list[dict[str, Any]]) -> None:
    wanted = by_row(grace(batch_tokens=500)(columns_of(traces)))
    scorer = grace(batch_tokens=500)
    batches = list(bucket([row["grace_tokens"] for row in wanted], 500))
    assert len(batches) > 2
    with memory_for(scorer.load(), 10_000) as asked:
        calls = scorer._score

        def second_fails(model: LanguageModel, examples: Sequence[Any]) -> Any:
            if len(asked) == 1:
                asked.append(0)
                refuse()
            return calls(model, examples)

        scorer._score = second_fails  # type: ignore[method-assign]
        found = by_row(scorer(columns_of(traces)))
    first = [found[index] for index in batches[0]]
    for row, other in zip(first, [wanted[index] for index in batches[0]], strict=True):
        for name, value in row.items():
            np.testing.assert_array_equal(value, other[name])
    assert_same(found, wanted, SAME)
    sizes = [len(batch) * max(wanted[index]["grace_tokens"] for index in batch) for batch in batches]
    assert asked[:2] == [sizes[0], 0]
    assert asked.count(sizes[0]) == 1


@pytest.mark.parametrize("proxy", ["representation", "exact"])
def test_the_row_that_fits_in_no_batch_is_null_and_no_other(proxy: str, traces: list[dict[str, Any]]) -> None:
    rows = [*traces[:4], {**traces[4], "completion": traces[4]["completion"].replace("\n#", "\n1+1=2" * 12 + "\n#")}]
    rows = [rows[i] for i in (0, 4, 1, 2, 3)]
    wanted = by_row(grace(proxy=proxy)(columns_of(rows)))
    longest, others = wanted[1]["grace_tokens"], [row["grace_tokens"] for row in wanted if row is not wanted[1]]
    assert longest > 2 * max(others)
    scorer = grace(proxy=proxy)
    segments = (
        1 if proxy == "representation" else len(wanted[0]["grace_step_scores"]) + 1
    )  # each with a copy of the row
    with memory_for(scorer.load(), 2 * segments * max(others)):
        found = by_row(scorer(columns_of(rows)))
    assert found[1]["grace_error"] == f"out of memory: {longest:,} tokens, in a batch of its own"
    assert found[1]["grace_value"] is None
    assert_same(found[:1] + found[2:], wanted[:1] + wanted[2:], SAME)


def test_the_budget_grows_back_and_all_of_it_is_said(
    traces: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = grace()
    few = columns_of(traces[-6:])
    with caplog.at_level(logging.INFO, "hf_curate"):
        with memory_for(scorer.load(), 200):
            scorer(few)
        low = scorer.token_budget(scorer.load()).now
        assert low <= 200
        for _ in range(40):
            scorer(few)
    budget = scorer.token_budget(scorer.load())
    assert budget.now == budget.limit == 2000
    assert [text.startswith("out of memory at ") for text in scorer.notes].count(False) >= 4
    assert scorer.notes[-1].endswith("goes on with 2,000 padded tokens")
    said = [record for record in caplog.records if "padded tokens" in record.getMessage()]
    assert [record.getMessage() for record in said] == [f"GRACE: {text}" for text in scorer.notes]
    assert [record.levelno for record in said] == [logging.WARNING] + [logging.INFO] * (len(said) - 1)


def test_notes_and_a_smaller_budget_are_not_part_of_the_scorer(traces: list[dict[str, Any]]) -> None:
    scorer = grace()
    before = (Hasher.hash(scorer), scorer.identity)
    with memory_for(scorer.load(), 200):
        scorer(columns_of(traces[-6:]))
    assert scorer.notes
    assert (Hasher.hash(scorer), scorer.identity) == before
    again = pickle.loads(pickle.dumps(scorer))
    assert again.notes == []
    assert again.token_budget(again.load()).now == again.token_limit(again.load())


@pytest.mark.parametrize("what", ["traces", "rollouts"])
def test_losses_are_the_same_after_batches_that_did_not_fit(what: str, traces: list[dict[str, Any]]) -> None:
    rows = columns_of(traces if what == "traces" else solved(10))
    wanted = by_row(LossScorer(MODEL, dtype="float32")(rows))
    scorer = LossScorer(MODEL, dtype="float32")
    with memory_for(scorer.load(), 300) as asked:
        found = by_row(scorer(rows))
    assert max(asked) > 300
    assert scorer.notes
    assert_same(found, wanted, SAME)


def test_a_response_that_does_not_fit_is_its_rows_reason() -> None:
    rows = solved(4)
    rows[2]["responses"][1] *= 8
    scorer = LossScorer(MODEL, dtype="float32")
    with memory_for(scorer.load(), 120):
        found = scorer(columns_of(rows))
    assert [text.partition(":")[0] for text in found["lowest_loss_error"]] == ["", "", "out of memory", ""]
    assert found["lowest_loss_score"][2] is None


# -- rollouts ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("memory") / "policy", num_hidden_layers=3)


ALIGNED: dict[str, Callable[[Path], Any]] = {
    "GradAlign": lambda folder: GradAlignScorer(folder, validation=trusted()),
    "LearnAlign": LearnAlignScorer,
    "LearnAlign, projected": lambda folder: LearnAlignScorer(folder, projection_dim=64),
}


@pytest.mark.parametrize("fails", [memory_for, backward_for], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", ALIGNED)
def test_policy_gradients_are_the_same_after_passes_that_did_not_fit(
    kind: str, fails: Any, folder: Path, tmp_path: Path
) -> None:
    rows = pool()
    calm, scorer = (ALIGNED[kind](folder) for _ in range(2))
    calm.fit(rows if kind != "GradAlign" else trusted(), tmp_path / "calm")
    wanted = by_row(calm(rows[:]))
    groups = [scorer.reader.read(row) for row in rows]
    most = max(len(rollout.input_ids) for group in groups for rollout in group.rollouts)
    model = scorer.load()
    before = state_of(model)
    with fails(model, most) as asked:
        scorer.fit(rows if kind != "GradAlign" else trusted(), tmp_path / "pressed")
        fitted = list(scorer.notes)
        found = by_row(scorer(rows[:]))
    assert state_of(model) == before
    assert max(asked) > most
    assert fitted
    assert_same(found, wanted, POLICY[torch.float32])
    assert scorer.direction_record()["rows"] == calm.direction_record()["rows"]
    assert scorer.direction_record()["norm"] == pytest.approx(calm.direction_record()["norm"], rel=SAME)


def test_a_problem_that_did_not_need_another_batch_keeps_its_bits(folder: Path, tmp_path: Path) -> None:
    calm = GradAlignScorer(folder, validation=trusted())
    calm.fit(trusted(), tmp_path / "direction")
    rows = pool()
    wanted = by_row(calm(rows[:]))
    scorer = GradAlignScorer(folder, direction=tmp_path / "direction")
    largest = []
    for row in rows:
        with memory_for(scorer.load(), 10**6) as asked:
            scorer(row)
        largest.append(max(asked, default=0))
    first = largest.index(max(largest))
    assert first > 0
    with memory_for(scorer.load(), max(largest) - 1):
        found = by_row(scorer(rows[:]))
    assert len(scorer.notes) == 1
    assert found[:first] == wanted[:first]
    assert_same(found, wanted, POLICY[torch.float32])


def long_and_short() -> list[dict[str, Any]]:
    """Problems of which the second's first response is longer than all rollouts of any other together."""
    rows = solved(4, seed=3)
    rows[1]["responses"][0] = rows[1]["responses"][0] * 9
    return rows


def room_for_others(scorer: Any, rows: Sequence[dict[str, Any]]) -> int:
    groups = [scorer.reader.read(row) for row in rows]
    sizes = [len(g.rollouts) * max(len(r.input_ids) for r in g.rollouts) for g in groups]
    room = max(size for index, size in enumerate(sizes) if index != 1)
    assert len(groups[1].rollouts[0].input_ids) > room
    return room


@pytest.mark.parametrize("fails", [memory_for, backward_for], ids=["forward", "backward"])
@pytest.mark.parametrize("kind", ALIGNED)
def test_the_problem_that_fits_in_no_pass_is_null_and_no_other(
    kind: str, fails: Any, folder: Path, tmp_path: Path
) -> None:
    rows = long_and_short()
    without = Dataset.from_list(rows[:1] + rows[2:])
    calm, scorer = (ALIGNED[kind](folder) for _ in range(2))
    calm.fit(without, tmp_path / "calm")
    wanted = by_row(calm(without[:]))
    with fails(scorer.load(), room_for_others(scorer, rows)):
        scorer.fit(Dataset.from_list(rows), tmp_path / "pressed")
        found = by_row(scorer(columns_of(rows)))
    record, other = scorer.direction_record(), calm.direction_record()
    assert record["rows"] == {**other["rows"], "in": 4, "failed": {"out of memory": 1}}
    assert record["norm"] == pytest.approx(other["norm"], rel=SAME)
    reason = found[1][f"{scorer.prefix}_error"]
    assert reason.startswith("out of memory: 4 rollouts of up to ")
    assert reason.endswith(" tokens, each in a pass of its own")
    assert found[1][f"{scorer.prefix}_score"] is None
    assert_same(found[:1] + found[2:], wanted, POLICY[torch.float32])


def test_groups_that_come_once_are_fitted_again_where_one_spoiled_the_sum(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = long_and_short()
    calm, scorer = (GradAlignScorer(folder, validation=trusted()) for _ in range(2))
    groups = [scorer.reader.read(row) for row in rows]
    calm.fit_groups(groups[:1] + groups[2:], {"round": 1})
    with backward_for(scorer.load(), room_for_others(scorer, rows)) as failed:
        scorer.fit_groups(iter(groups), {"round": 1})
    assert len(failed) > 2, "the same problem, a second time"
    assert "fitting begins again: of row 1 a part was added when this came up (out of memory: " in caplog.text
    assert scorer.notes[0].startswith("fitting begins again: ")
    (ours, norm), (theirs, other) = (one.direction(one.load()) for one in (scorer, calm))
    assert norm == pytest.approx(other, rel=SAME)
    for name, tensor in ours.items():
        assert float((tensor - theirs[name]).norm()) <= SAME * other


def test_a_sum_that_is_spoiled_twice_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = GradAlignScorer(folder, validation=trusted())
    groups = [scorer.reader.read(row) for row in long_and_short()]
    add, added = Direction.add, []

    def second_fails(self: Direction, name: str, *rest: Any) -> None:
        added.append(name)
        if name != added[0]:
            refuse()
        add(self, name, *rest)

    monkeypatch.setattr(Direction, "add", second_fails)
    with pytest.raises(DirectionError, match=r"^of row 0 a part was added .* again: lower batch_tokens=, or take"):
        scorer.fit_groups(groups, {"round": 1})


def test_a_refusal_while_routes_are_compared_is_no_property_of_the_model(folder: Path) -> None:
    scorer = GradAlignScorer(folder, validation=trusted())
    model = scorer.load()
    parameters = scorer.chosen(model)
    with memory_for(model, 13), pytest.raises(RuntimeError, match="can't allocate memory"):
        inner.route(model, parameters)  # two rollouts of 7 tokens, padded: only the second way has both in one pass
    assert frozenset(parameters) not in inner._ROUTES[model.decoder]
    assert inner.route(model, parameters) == "together"


# -- sampling ---------------------------------------------------------------------------------------------------------


def answered(made: Rollouts, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return by_row(made(columns_of(rows)))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_responses_are_the_same_after_batches_that_did_not_fit(temperature: float) -> None:
    rows = problem_rows(8)
    wanted = answered(roller(temperature=temperature), rows)
    made = roller(temperature=temperature)
    model = made.load()
    before = state_of(model)
    with memory_for(model, 400 if temperature else 200) as asked:
        found = answered(made, rows)
    assert state_of(model) == before
    assert found == wanted
    assert sum(size > (400 if temperature else 200) for size in asked) == len(made.notes) > 0


def test_only_the_prompt_of_which_one_response_does_not_fit_is_null() -> None:
    rows = problem_rows(5)
    rows[3] = {**rows[3], "prompt": rows[3]["prompt"] * 6}
    wanted = answered(roller(), rows)
    long = len(roller().reader.tokenizer(rows[3]["prompt"])["input_ids"])
    others = max(len(row["prompt"]) for index, row in enumerate(rows) if index != 3) + 40
    assert long > others
    made = roller()
    with memory_for(made.load(), others):
        found = answered(made, rows)
    assert found[3]["rollouts_error"] == (
        f"out of memory: {long:,} prompt tokens and 40 new ones, one response in a batch of its own"
    )
    assert found[3]["responses"] is None
    assert found[:3] + found[4:] == wanted[:3] + wanted[4:]


def test_a_policy_scorer_tells_what_happened_to_its_rollouts() -> None:
    rows = problem_rows(6)
    scorer = LearnAlignScorer(MODEL, rollouts=roller(), dtype="float32")
    with memory_for(scorer.rollouts.load(), 200):
        scorer._made(rows, None)
    assert scorer.notes
    assert all("padded tokens" in text for text in scorer.notes)
    assert scorer.rollouts.notes == []


def test_sampled_tokens_are_counted_and_each_prompt_once() -> None:
    rows = problem_rows(4)
    made = roller()
    made(columns_of(rows[:1]))
    TALLY.take()
    found = answered(made, rows)
    tokens, padded = TALLY.take()
    prompts = [len(made.reader.read(row).ids) for row in rows]  # type: ignore[union-attr]
    new = sum(len(ids) for row in found for ids in row["response_ids"])
    assert tokens == sum(prompts) + new
    assert padded == 4 * max(prompts) + new


# -- real memory ------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the address space as Linux does")
def test_rows_are_scored_within_a_limit_that_the_system_sets(tmp_path: Path) -> None:
    code = """
        import json, resource
        import numpy as np
        from tiny import byte_level, tiny
        from hf_curate import LossScorer

        model = tiny("GPT2", n_positions=4096, n_head=8, attn_implementation="eager")
        completions = ["2 + 2 = 4\\n" * 70 + "#### 4"] * 10 + ["1\\n" * 1500 + "#### 1"] * 2
        rows = {"prompt": ["1+1?"] * 12, "completion": completions}
        scorer = lambda: LossScorer(model, tokenizer=byte_level(), batch_tokens=12000)
        wanted = scorer()({name: values[:10] for name, values in rows.items()})
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 250 * 2**20,) * 2)
        pressed = scorer()
        found = pressed(rows)
        same = np.abs(np.array(found["lowest_loss_score"][:10]) - np.array(wanted["lowest_loss_score"])).max()
        print(json.dumps([found["lowest_loss_error"], float(same), pressed.notes]))
    """
    errors, apart, notes = run_script(tmp_path, code)
    assert errors[:10] == [""] * 10
    assert all(error.startswith("out of memory: ") for error in errors[10:])
    assert notes
    assert notes[0].startswith("out of memory at ")
    assert apart <= SAME
