"""A dry run: what it tells, and what it leaves alone."""

from __future__ import annotations

import itertools
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rollouts
from datasets import Dataset, IterableDataset
from lengths import Lengths, texts
from rollout_room import problems

from hf_curate import GraceScorer, GradAlignScorer, LearnAlignScorer, RandomScorer, score
from hf_curate.cli import main
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import CurateError, NoSignalError, ScoreError
from hf_curate.runs import probe as probes
from hf_curate.runs.estimate import Estimate, Phase
from hf_curate.runs.probe import probe


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "LEAST_SECONDS", 0.2)


@pytest.fixture(scope="module")
def traces() -> Dataset:
    return load_traces()


@pytest.fixture(scope="module")
def scorer() -> GraceScorer:
    return GraceScorer(MODEL, dtype="float32")


def names_of(estimate: Estimate) -> list[str]:
    return [phase.name for phase in estimate.phases]


# -- what it tells ----------------------------------------------------------------------------------------------------


def test_the_time_is_that_of_the_run_within_a_factor_of_one_and_a_half(
    traces: Dataset, scorer: GraceScorer, tmp_path: Path
) -> None:
    """By processor time, which other processes take none of; each dry run beside a run, and the median of three."""
    ratios = []
    for number in range(3):
        _, estimate, _ = probe(traces, scorer, clock=time.process_time)
        start = time.process_time()
        score(traces, scorer, out=tmp_path / str(number))
        ratios.append(estimate.seconds / (time.process_time() - start))
    assert 1 / 1.5 < statistics.median(ratios) < 1.5, ratios


def test_what_a_process_that_has_just_begun_takes_longer_for_is_not_reckoned_for_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "LEAST_SECONDS", 6.0)
    now = [0.0]

    def cold(given: list[str]) -> None:
        now[0] += (0.1 if now[0] else 5.0) * len(given) + (3.0 if len(given) == 10 and not seen else 0.0)
        if len(given) == 10:
            seen.append(len(given))

    seen: list[int] = []
    _, estimate, _ = probe(texts(1000), Lengths(on_batch=cold), batch_rows=10, clock=lambda: now[0])
    assert len(seen) > 1
    assert estimate.scoring.whole == pytest.approx(100.0)
    assert estimate.loading == pytest.approx(10.0 + 3.0)


def test_tokens_are_those_of_all_rows(traces: Dataset, scorer: GraceScorer) -> None:
    pool = traces.select(np.argsort([len(text) for text in traces["completion"]])[:700])  # shorter ones come first
    scored, estimate, _ = probe(pool, scorer, batch_rows=100)
    tokens = score(pool, scorer)["grace_tokens"][:]
    assert len(scored) < len(pool)
    assert estimate.tokens == pytest.approx(sum(tokens), rel=1e-6)
    first = 100 if len(scored) > 100 else 0  # the first batch is not counted, where there are others
    assert estimate.scoring.rows == len(scored) - first
    assert (estimate.scoring.tokens == sum(scored["grace_tokens"][:])) == (not first)
    assert estimate.padding is not None
    assert 0 < estimate.padding < 0.5


def test_the_disk_space_is_that_of_the_run(traces: Dataset, scorer: GraceScorer, tmp_path: Path) -> None:
    pool = traces.select(range(600))
    _, estimate, _ = probe(pool, scorer)
    score(pool, scorer, out=tmp_path / "run")
    parts = sum(path.stat().st_size for path in (tmp_path / "run" / "parts").glob("*.parquet"))
    assert estimate.disk["parts"] == pytest.approx(parts, rel=0.5)
    assert estimate.disk["scored.parquet"] == pytest.approx(
        (tmp_path / "run" / "scored.parquet").stat().st_size, rel=0.5
    )


def test_what_is_printed_says_what_is_known_and_shows_a_card_that_says_it_is_of_a_probe(
    traces: Dataset, scorer: GraceScorer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = traces.select(range(300))
    score(pool, scorer, out=tmp_path / "run", source="org/name@main:default/train", dry_run=True)
    told = capsys.readouterr().out
    lines = dict(line.split(None, 1) for line in told.partition("\n\n")[0].splitlines())
    assert set(lines) == {"rows", "tokens", "speed", "time", "disk", "memory"}
    assert lines["rows"].startswith("300; the probe has ")
    assert " a row, about " in lines["tokens"]
    assert " in all; padding is " in lines["tokens"]
    assert " rows/s, " in lines["speed"]
    assert lines["speed"].endswith(" tokens/s")
    for part in ("in one process", "until the first rows", "scoring", "writing"):
        assert part in lines["time"]
    assert lines["disk"].endswith("are free")
    assert "of this process at most" in lines["memory"]
    assert "The card would look like this; its numbers are those of the " in told
    assert "## probe, split train" in told
    assert "rows (20." in told
    assert str(tmp_path) not in told


def test_without_a_count_of_memory_there_is_no_word_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "of this process at most" in str(probe(texts(20), Lengths())[1])
    monkeypatch.setitem(sys.modules, "resource", None)  # as on Windows
    _, estimate, _ = probe(texts(20), Lengths())
    assert "of this process at most" not in str(estimate)
    assert "\ndisk " in str(estimate)


@pytest.mark.parametrize(
    ("seconds", "tokens", "said"),
    [(50.0, 0, "2 rows/s"), (0.1, 0, "1,000 rows/s"), (50.0, 1000, "2 rows/s, 20 tokens/s")],
)
def test_speed_is_told_with_the_digits_that_it_has(seconds: float, tokens: int, said: str) -> None:
    made = Estimate(1000, True, phases=[Phase("scoring", 100, seconds, tokens), Phase("writing")])
    assert f"speed    {said}\n" in str(made)


# -- what it leaves alone ---------------------------------------------------------------------------------------------


def test_nothing_is_written_and_the_scorer_stays_as_it_was(traces: Dataset, tmp_path: Path) -> None:
    fresh = GraceScorer(MODEL, dtype="float32")
    before = dict(fresh.__dict__)
    pool = traces.select(range(100))
    scored = score(pool, fresh, out=tmp_path / "run", dry_run=True)
    assert not (tmp_path / "run").exists()
    assert fresh.__dict__ == before
    whole = score(pool, fresh)
    assert scored.features == whole.features
    assert scored.select_columns(pool.column_names).to_list() == pool.to_list()
    np.testing.assert_allclose(scored["grace_value"], whole["grace_value"], atol=1e-5)


def test_memory_that_runs_out_in_the_probe_is_told_to_the_probes_scorer_alone(
    traces: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    used, pool = GraceScorer(MODEL, dtype="float32"), traces.select(range(20))
    used(pool[:])
    budget = used._budget
    assert budget is not None
    whole = GraceScorer._score

    def small(self: GraceScorer, model: Any, examples: Any) -> Any:
        if len(examples) > 1:
            raise MemoryError
        return whole(self, model, examples)

    monkeypatch.setattr(GraceScorer, "_score", small)
    _, _, twin = probe(pool, used)
    assert "out of memory at " in twin.notes[0]
    assert twin._budget.limit == budget.limit > twin._budget.now
    assert used.notes == []
    assert (used._budget, budget.now) == (budget, budget.limit)


def test_the_probes_rows_come_in_their_order_and_are_the_same_each_time() -> None:
    pool = texts(3000).remove_columns("text").add_column("text", ["ab"] * 3000)  # type: ignore[call-arg]
    first, again = (probe(pool, Lengths(), batch_rows=20)[0]["id"][:] for _ in range(2))
    assert first == sorted(first)
    shared = min(len(first), len(again))
    assert shared >= 20
    assert len(set(first) & set(again)) == shared


def test_a_folder_with_other_files_is_refused_before_anything_is_scored(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    seen = Lengths()
    with pytest.raises(CurateError, match="holds other files"):
        score(texts(20), seen, out=tmp_path, dry_run=True)
    assert seen.seen == []


def test_rows_of_which_none_can_be_scored_are_the_runs_error() -> None:
    with pytest.raises(ScoreError, match="none of the 10 rows could be scored"):
        score(Dataset.from_dict({"text": [""] * 10}), Lengths(), dry_run=True)


# -- how much is probed -----------------------------------------------------------------------------------------------


class Clock:
    """A second for each row that is scored."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def __call__(self) -> float:
        return self.now

    def batch(self, rows: list[str]) -> None:
        self.now += len(rows) * self.seconds


def test_slow_rows_are_probed_for_a_minute_and_the_output_says_that_they_are_few() -> None:
    clock = Clock(5.0)
    scored, estimate, _ = probe(texts(1000), Lengths(on_batch=clock.batch), clock=clock)
    assert (len(scored), clock.now) == (12, 12 * 5.0 + 2 * 2 * 5.0)
    assert estimate.seconds == pytest.approx(1000 * 5.0 + 2 * 5.0)
    assert "the run hands 256 rows over at a time, and pads less than these 12 of the probe" in str(estimate)
    assert "about 1 h 24 min in one process" in str(estimate)


def test_eight_rows_are_probed_however_slow_they_are() -> None:
    clock = Clock(100.0)
    assert len(probe(texts(1000), Lengths(on_batch=clock.batch), clock=clock)[0]) == 8


@pytest.mark.parametrize("rows", [1, 2, 3, 9])
def test_few_rows_are_all_probed(rows: int) -> None:
    scored, estimate, _ = probe(texts(rows), Lengths())
    assert scored["id"][:] == list(range(rows))
    assert estimate.probed == rows
    assert str(estimate)


def test_failures_are_counted() -> None:
    _, estimate, _ = probe(texts(70), Lengths())
    assert (estimate.probed, estimate.failed) == (70, 10)
    assert "the probe has 70, 10 of them without a score" in str(estimate)


# -- scorers that do more than score ----------------------------------------------------------------------------------


def test_a_scorer_that_is_fitted_on_the_pool_is_fitted_on_the_probe_and_the_time_is_reckoned() -> None:
    pool = Dataset.from_list([{**row, "prompt": f"{row['prompt']} "} for row in rollouts.solved(40)])
    fresh = LearnAlignScorer(rollouts.policy(), tokenizer=rollouts.tokenizer())
    scored, estimate, twin = probe(pool, fresh)
    assert names_of(estimate) == ["fitting", "scoring", "writing"]
    fitting = estimate.phases[0]
    assert (fitting.rows, fitting.whole) == (16, pytest.approx(fitting.seconds / 16 * 40))
    assert fresh.fitted is None
    assert twin.fitted is not None
    assert 0.75 * tokens_of(fresh, pool) < (estimate.tokens or 0) <= tokens_of(fresh, pool)  # equal ones are read once
    assert "by a fit on the probe" in str(estimate)
    assert None not in scored["learnalign_score"][:]


def tokens_of(scorer: Any, pool: Dataset) -> int:
    """Each prompt once, and the responses behind it."""
    groups = [scorer.reader.read(row).rollouts for row in pool]
    return sum(own[0].start + sum(len(one.input_ids) - one.start for one in own) for own in groups)


def test_a_fit_on_a_validation_set_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    live, tokens = rollouts.policy(), rollouts.tokenizer()
    fresh = GradAlignScorer(live, tokenizer=tokens, validation=rollouts.trusted())
    _, estimate, _ = probe(rollouts.pool(), fresh)
    assert names_of(estimate) == ["fitting", "scoring", "writing"]
    assert estimate.phases[0].whole == estimate.phases[0].seconds > 0
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    assert fresh.fitted is None


def test_a_pool_without_signal_is_an_error_that_speaks_of_the_probe() -> None:
    rows = [{**row, "rewards": [1.0] * 4} for row in rollouts.solved(20)]
    fresh = LearnAlignScorer(rollouts.policy(), tokenizer=rollouts.tokenizer())
    with pytest.raises(NoSignalError, match="of the 20 random rows of the probe: the mean direction has no signal"):
        probe(Dataset.from_list(rows), fresh)


def test_rollouts_that_a_scorer_makes_for_itself_are_a_phase_of_their_own() -> None:
    made = problems.roller()
    fresh = LearnAlignScorer(MODEL, dtype="float32", rollouts=made)
    _, estimate, _ = probe(problems.problems(12), fresh)
    assert names_of(estimate) == ["making rollouts", "fitting", "scoring", "writing"]
    assert estimate.phases[0].rows == 12
    assert estimate.phases[0].tokens > 0
    assert (made._seen, fresh._seen) == (0, 0)


# -- streams ----------------------------------------------------------------------------------------------------------


def endless() -> Iterator[dict[str, Any]]:
    for number in itertools.count():
        yield {"text": "ab" * (1 + number % 20), "id": number}


def test_of_an_endless_stream_the_first_rows_are_looked_at(capsys: pytest.CaptureFixture[str]) -> None:
    scored = score(IterableDataset.from_generator(endless), Lengths(), dry_run=True)
    assert max(scored["id"][:]) < probes.SAMPLE_ROWS
    told = capsys.readouterr().out
    assert "rows     not known (a stream), reckoned for 1,000,000; the probe has " in told
    assert " rows of the stream" in told


def test_a_short_stream_is_known_to_the_end() -> None:
    stream = IterableDataset.from_generator(endless).take(50)
    assert probe(stream, RandomScorer(seed=0))[1].rows == 50


def test_what_the_run_is_asked_for_is_reckoned_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    score(texts(40), Lengths(), out=tmp_path / "run", workers=3, strict=True, dry_run=True)
    told = capsys.readouterr().out
    assert "3 workers take 1/3 of the scoring's time at best, and each holds a model of its own" in told
    assert "5 rows of the probe failed: strict=True (--strict) ends in an error" in told


def test_a_probe_of_which_every_row_fails_counts_each_once(traces: Dataset) -> None:
    bad = Dataset.from_list([{"prompt": "", "completion": ""}] * 40)
    with pytest.raises(ScoreError, match="none of the 40 rows could be scored"):
        score(bad, GraceScorer(MODEL, dtype="float32"), dry_run=True)


# -- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--streaming"]])
def test_the_command_prints_it_and_writes_nothing(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    texts(40).to_json("rows.jsonl")
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["score", "rows.jsonl", "--scorer", "random", "--out", "run", "--dry-run", *more]) == 0
    told = capsys.readouterr().out
    assert told.startswith("rows     40; the probe has 40")
    assert "next:" not in told
    assert {path.name for path in tmp_path.iterdir()} == before
