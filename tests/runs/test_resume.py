"""score(out=): stopped anywhere, the same call goes on, and the end is that of a run in one piece."""

from __future__ import annotations

import builtins
import datetime
import errno
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import warm
from datasets import Dataset, Features, Value
from lengths import Lengths, files_of, results_of, texts

from hf_curate import GraceScorer, score
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import CurateError, ScoreError
from hf_curate.runs import folder as folders
from hf_curate.runs import resumable, shards
from hf_curate.runs.local import failed_rows, load_run
from hf_curate.runs.lock import FolderLock

ROWS = texts(50)
SIZES: dict[str, Any] = {"shard_rows": 8, "batch_rows": 3}


def stops_at(call: int, error: BaseException) -> Lengths:
    """A scorer that raises instead of scoring its n-th batch."""
    calls: list[int] = []

    def check(_: list[str]) -> None:
        calls.append(1)
        if len(calls) == call:
            raise error

    return Lengths(on_batch=check)


def log_of(folder: Path) -> list[str]:
    """The lines of the log, without their times."""
    return [line[20:] for line in (folder / "log.txt").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run in one piece leaves."""
    folder = tmp_path_factory.mktemp("wanted") / "run"
    score(ROWS, Lengths(), out=folder, **SIZES)
    return results_of(folder)


# -- going on ---------------------------------------------------------------------------------------------------------


def test_batches_never_cross_shards_and_scores_are_those_of_map(tmp_path: Path) -> None:
    scorer = Lengths()
    scored = score(ROWS, scorer, out=tmp_path / "run", **SIZES)
    assert scorer.seen == [3, 3, 2] * 6 + [2]
    plain = ROWS.map(Lengths(), batched=True, features=Features({**ROWS.features, **Lengths.columns}))
    assert scored.to_list() == plain.to_list() == load_run(tmp_path / "run").dataset.to_list()
    assert scored.features == plain.features
    assert scored.format["type"] is None
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert [plan[name] for name in ("rows", "shard_rows", "batch_rows", "shards")] == [50, 8, 3, 7]


@pytest.mark.parametrize("call", [1, 2, 4, 11, 19])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a defect"), SystemExit(1)], ids=repr)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(
    call: int, error: BaseException, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    with pytest.raises(type(error)):
        score(ROWS, stops_at(call, error), out=tmp_path / "run", **SIZES)
    kept = [name for name in files_of(tmp_path / "run") if name.endswith(".parquet")]
    assert len(kept) == (call - 1) // 3
    with pytest.raises(CurateError, match="the run 'run' is not finished"):
        load_run(tmp_path / "run")
    rest = Lengths()
    score(ROWS, rest, out=tmp_path / "run")
    assert sum(rest.seen) == 50 - 8 * len(kept)
    assert results_of(tmp_path / "run") == wanted
    log = log_of(tmp_path / "run")
    assert f"stopped: {'interrupted' if isinstance(error, KeyboardInterrupt) else type(error).__name__}" in log
    assert (f"goes on: Lengths (identity lengths-1.0), {len(kept)} of 7 shards are done" in log) == bool(kept)
    assert log[-1] == "finished: 50 rows"


def test_a_finished_run_is_scored_no_more(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    score(ROWS, Lengths(), out=tmp_path / "run", **SIZES)
    again = Lengths()
    scored = score(ROWS, again, out=tmp_path / "run", overwrite=True)
    assert again.seen == []
    assert results_of(tmp_path / "run") == wanted
    assert scored.to_list() == load_run(tmp_path / "run").dataset.to_list()
    assert log_of(tmp_path / "run")[-1] == "nothing was left to do"


def test_a_models_scores_are_the_same_bits_when_the_run_was_stopped(tmp_path: Path) -> None:
    pool = load_traces().select_columns(["prompt", "completion"]).select(range(20))
    for name, stop in (("whole", None), ("stopped", 3)):
        scorer = GraceScorer(MODEL, dtype="float32", keep_gram=True)
        before, calls = scorer.score_rows, []

        def counted(
            rows: Any, rank: Any = None, *, _before: Any = before, _calls: Any = calls, _stop: Any = stop
        ) -> Any:
            _calls.append(len(rows))
            if len(_calls) == _stop:
                raise KeyboardInterrupt
            return _before(rows, rank)

        scorer.score_rows = counted  # type: ignore[method-assign]
        if stop is not None:
            with pytest.raises(KeyboardInterrupt):
                score(pool, scorer, out=tmp_path / name, shard_rows=6, batch_rows=4)
            scorer = GraceScorer(MODEL, dtype="float32", keep_gram=True)
        score(pool, scorer, out=tmp_path / name, shard_rows=6, batch_rows=4)
    whole, stopped = results_of(tmp_path / "whole"), results_of(tmp_path / "stopped")
    assert whole["scored.parquet"] == stopped["scored.parquet"]
    assert {name: held for name, held in whole.items() if name != "run.json"} == {
        name: held for name, held in stopped.items() if name != "run.json"
    }


def test_bad_rows_after_good_ones_do_not_end_a_run_that_goes_on(tmp_path: Path) -> None:
    good = load_traces().select_columns(["prompt", "completion"]).select(range(8)).to_list()
    pool = Dataset.from_list(good + [{"prompt": "1+1?", "completion": ""}] * 16)
    scorer = GraceScorer(MODEL, dtype="float32")
    whole = score(pool, scorer, out=tmp_path / "whole", shard_rows=8)
    fresh = GraceScorer(MODEL, dtype="float32")
    before, calls = fresh.score_rows, []

    def interrupted(rows: Any, rank: Any = None) -> Any:
        calls.append(rows)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return before(rows, rank)

    fresh.score_rows = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        score(pool, fresh, out=tmp_path / "run", shard_rows=8)
    scored = score(pool, GraceScorer(MODEL, dtype="float32"), out=tmp_path / "run", shard_rows=8)
    assert scored.to_list() == whole.to_list()
    assert scored["grace_value"][8:] == [None] * 16


def test_a_file_is_the_same_pool_in_every_process_and_in_memory(tmp_path: Path) -> None:
    ROWS.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(KeyboardInterrupt):
        score(ROWS, stops_at(5, KeyboardInterrupt()), out=tmp_path / "run", **SIZES)
    rest = Lengths()
    scored = score(Dataset.from_parquet(str(tmp_path / "rows.parquet")), rest, out=tmp_path / "run")  # type: ignore[arg-type]
    assert sum(rest.seen) == 42
    assert scored.to_list() == score(ROWS, Lengths()).to_list()


def test_columns_of_an_earlier_scoring_are_replaced(tmp_path: Path) -> None:
    once = score(ROWS, Lengths(2.0), out=tmp_path / "one", **SIZES)
    twice = score(once.with_format("numpy"), Lengths(), out=tmp_path / "two", **SIZES)
    assert twice.to_list() == score(ROWS, Lengths()).to_list()


def test_other_conditions_are_told_and_do_not_end_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(ROWS, stops_at(5, KeyboardInterrupt()), out=tmp_path / "run", **SIZES)
    scorer = Lengths()
    scorer.batch_tokens = 99  # type: ignore[attr-defined]
    scorer.device = "other"  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, logger="hf_curate"):
        score(ROWS, scorer, out=tmp_path / "run")
    said = "goes on under other conditions (device default, now other, batch_tokens default, now 99)"
    assert said in caplog.text
    assert any(line.startswith(said) for line in log_of(tmp_path / "run"))


# -- what belongs to another run --------------------------------------------------------------------------------------


def half_done(folder: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        score(ROWS, stops_at(5, KeyboardInterrupt()), out=folder, **SIZES)
    return folder


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "settings": (
        lambda folder: score(ROWS, Lengths(2.5), out=folder),
        r"other settings \(settings\.scale 1\.0, now 2\.5; identity lengths-1\.0, now lengths-2\.5\): give another",
    ),
    "rows": (
        lambda folder: score(texts(51), Lengths(), out=folder),
        r"a run over other rows \(50 rows with the sha256 [0-9a-f]{12}, now [0-9a-f]{12}\): give another folder, or",
    ),
    "shard_rows": (
        lambda folder: score(ROWS, Lengths(), out=folder, shard_rows=9),
        r"a run with shard_rows=8, now shard_rows=9: leave shard_rows= away",
    ),
    "batch_rows": (
        lambda folder: score(ROWS, Lengths(), out=folder, batch_rows=4),
        r"a run with batch_rows=3, now batch_rows=4: leave batch_rows= away",
    ),
}


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("what", OTHERS)
def test_another_run_is_refused_with_both_values_and_nothing_is_touched(
    what: str, finished: bool, tmp_path: Path
) -> None:
    run = half_done(tmp_path / "run")
    if finished:
        score(ROWS, Lengths(), out=run)
    call, said = OTHERS[what]
    before = files_of(run)
    with pytest.raises(CurateError, match=said):
        call(run)
    assert files_of(run) == before


def test_another_run_is_replaced_when_that_is_asked_for(tmp_path: Path) -> None:
    run, scorer = half_done(tmp_path / "run"), Lengths(2.5)
    score(texts(51), scorer, out=run, overwrite=True, shard_rows=20)
    assert sum(scorer.seen) == 51
    assert load_run(run).identity == "lengths-2.5"
    assert "the run that was here is replaced" in log_of(run)
    assert sorted(path.name for path in (run / "parts").glob("*.parquet")) == [f"0000{n}.parquet" for n in range(3)]


def test_the_same_run_goes_on_even_where_others_would_be_replaced(tmp_path: Path) -> None:
    run, rest = half_done(tmp_path / "run"), Lengths()
    score(ROWS, rest, out=run, overwrite=True)
    assert sum(rest.seen) == 42


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"schema": "hf_curate/plan/9"}'])
def test_parts_without_a_plan_that_can_be_read_are_not_trusted(content: bytes, tmp_path: Path) -> None:
    run = half_done(tmp_path / "run")
    (run / "plan.json").write_bytes(content)
    with pytest.raises(CurateError, match=r"holds a plan\.json that cannot be read: give another folder, or"):
        score(ROWS, Lengths(), out=run)
    scorer = Lengths()
    score(ROWS, scorer, out=run, overwrite=True, **SIZES)
    assert sum(scorer.seen) == 50


def test_parts_of_another_run_are_never_taken_for_ones_own(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    one, other = half_done(tmp_path / "one"), tmp_path / "other"
    score(ROWS, Lengths(2.0), out=other, **SIZES)
    for name in ("00002.parquet", "00002.json"):
        (one / "parts" / name).write_bytes((other / "parts" / name).read_bytes())
    score(ROWS, Lengths(), out=one)
    assert results_of(one) == wanted
    assert "shard 2 (rows 16 to 23) is done again: its marker is that of another run" in log_of(one)


@pytest.mark.parametrize("name", ["parts", "rollouts", "scored.parquet", "log.txt"])
def test_a_folder_that_only_looks_like_ours_is_not_touched(name: str, tmp_path: Path) -> None:
    place = tmp_path / "data" / name / "00001.parquet" if "." not in name else tmp_path / "data" / name
    place.parent.mkdir(parents=True)
    place.write_bytes(b"mine")
    with pytest.raises(CurateError, match=r"'data' holds other files and no run\.json"):
        score(ROWS, Lengths(), out=tmp_path / "data", overwrite=True)
    assert place.read_bytes() == b"mine"


def test_two_calls_at_once_are_kept_apart(tmp_path: Path) -> None:
    run = half_done(tmp_path / "run")
    with (
        FolderLock(run, "run"),
        pytest.raises(CurateError, match=rf"'run' is in use by process {os.getpid()} on \S+ since "),
    ):
        score(ROWS, Lengths(), out=run)

    def intrude(_: list[str]) -> None:
        with pytest.raises(CurateError, match="in use by process"):
            score(ROWS, Lengths(), out=run)

    score(ROWS, Lengths(on_batch=intrude), out=run)


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["00002.parquet", "00002.json"])
@pytest.mark.parametrize("content", [None, b"", b"x" * 3000])
def test_a_damaged_part_is_scored_again_and_the_log_says_so(
    name: str, content: bytes | None, tmp_path: Path, wanted: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    score(ROWS, Lengths(), out=run, **SIZES)
    if content is None:
        (run / "parts" / name).unlink()
    else:
        (run / "parts" / name).write_bytes(content)
    again = Lengths()
    with caplog.at_level(logging.WARNING, logger="hf_curate"):
        score(ROWS, again, out=run)
    assert sum(again.seen) == 8
    assert results_of(run) == wanted
    assert "shard 2 of the run 'run' is scored again: " in caplog.text
    assert any(
        line.startswith("shard 2 (rows 16 to 23) is done again: its ") or "cut short" in line for line in log_of(run)
    )


@pytest.mark.parametrize("content", [None, b"", b"PAR1"])
def test_a_table_that_is_damaged_or_gone_is_made_again_from_the_parts(
    content: bytes | None, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    run, again = tmp_path / "run", Lengths()
    score(ROWS, Lengths(), out=run, **SIZES)
    if content is None:
        (run / "scored.parquet").unlink()
    else:
        (run / "scored.parquet").write_bytes(content)
    score(ROWS, again, out=run)
    assert again.seen == []
    assert results_of(run) == wanted


def test_a_part_that_is_damaged_while_the_run_goes_on_is_an_error_and_the_next_call_mends_it(
    tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    run, calls = tmp_path / "run", []

    def harm(_: list[str]) -> None:
        calls.append(1)
        if len(calls) == 19:
            (run / "parts" / "00001.parquet").write_bytes(b"x")

    with pytest.raises(
        CurateError, match=r"a shard of the run 'run' was damaged while it went on .*run the same again"
    ):
        score(ROWS, Lengths(on_batch=harm), out=run, **SIZES)
    score(ROWS, Lengths(), out=run)
    assert results_of(run) == wanted


def test_a_scorer_that_changes_while_the_run_goes_on_is_an_error_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    scorer = Lengths()
    scorer.on_batch = lambda _: setattr(scorer, "scale", 2.0)
    with pytest.raises(
        CurateError, match=r"changed while the run 'run' went on \(identity lengths-1.0, now lengths-2"
    ):
        score(ROWS, scorer, out=tmp_path / "run", **SIZES)
    again = Lengths()
    score(ROWS, again, out=tmp_path / "run", **SIZES)
    assert sum(again.seen) == 50


# -- the disk ---------------------------------------------------------------------------------------------------------


class Full:
    """An open file on a disk that takes so many more bytes."""

    def __init__(self, file: Any, room: list[int]) -> None:
        self.file, self.room = file, room

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def write(self, data: Any) -> int:
        taken = data[: self.room[0]]
        self.file.write(taken)
        self.room[0] -= len(taken)
        if len(taken) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")
        return len(data)


@pytest.mark.parametrize("room", [0, 100, 5000, 9000, 15000])
def test_a_full_disk_is_an_error_and_the_run_goes_on_when_there_is_room(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, bytes]
) -> None:
    left = [room]

    def opened(path: Any, mode: str = "r", **options: Any) -> Any:
        file = builtins.open(path, mode, **options)  # noqa: SIM115
        return Full(file, left) if set(mode) & set("wa") else file

    for module in (shards, folders):
        monkeypatch.setattr(module, "open", opened, raising=False)
    with pytest.raises(
        CurateError, match=r"the disk is full, and the run 'run' cannot go on \(No space left on device\): make room"
    ):
        score(ROWS, Lengths(), out=tmp_path / "run", **SIZES)
    assert not [name for name in files_of(tmp_path / "run") if Path(name).name.startswith(".")]
    kept = len(list((tmp_path / "run").glob("parts/*.json")))
    monkeypatch.undo()
    rest = Lengths()
    score(ROWS, rest, out=tmp_path / "run", **SIZES)
    assert sum(rest.seen) == max(50 - 8 * kept, 0)
    assert results_of(tmp_path / "run") == wanted


def test_a_disk_that_is_full_at_the_end_is_an_error_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, bytes]
) -> None:
    def full(self: Dataset, path: Any, **_: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Dataset, "to_parquet", full)
    with pytest.raises(CurateError, match="the disk is full, and the run 'run'"):
        score(ROWS, Lengths(), out=tmp_path / "run", **SIZES)
    monkeypatch.undo()
    assert not (tmp_path / "run" / ".scored.parquet").exists()
    rest = Lengths()
    score(ROWS, rest, out=tmp_path / "run")
    assert rest.seen == []
    assert results_of(tmp_path / "run") == wanted


READ_ONLY = """
import os, sys
from pathlib import Path
from lengths import Lengths, texts
from hf_curate import score
from hf_curate.errors import CurateError
import pyarrow.parquet
if os.getuid() == 0:
    os.setuid(65534)
for out in sys.argv[1:]:
    try:
        score(texts(5), Lengths(), out=out)
    except CurateError as error:
        print(error)
"""


def test_a_folder_that_cannot_be_written_is_an_error() -> None:
    with tempfile.TemporaryDirectory() as place:
        run = Path(place) / "run"
        run.mkdir()
        for path, rights in ((run, 0o555), (Path(place), 0o555)):
            path.chmod(rights)
        done = warm.run(
            [sys.executable, "-c", READ_ONLY, str(run), str(run.parent / "new")],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        )
        for path in (Path(place), run):
            path.chmod(0o755)
        assert list(run.iterdir()) == []
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"the folder {name!r} cannot be written (Permission denied): give a folder of your own, or change its rights."
        for name in ("run", "new")
    ]


def test_neither_a_clock_that_goes_backwards_nor_a_slow_disk_changes_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, bytes]
) -> None:
    ticks = iter(range(10**6))

    class Backwards(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime.datetime:
            return datetime.datetime(2024, 1, 1) - datetime.timedelta(hours=next(ticks))

    real = os.fsync
    monkeypatch.setattr(folders, "datetime", Backwards)
    monkeypatch.setattr(time, "time", lambda: 1e9 - 3600 * next(ticks))
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.02), real(descriptor))[1])
    half_done(tmp_path / "run")
    for number, path in enumerate(sorted((tmp_path / "run").rglob("*"))):
        os.utime(path, (10**9 * (number % 3), 10**9 * (number % 3)))
    rest = Lengths()
    score(ROWS, rest, out=tmp_path / "run")
    assert sum(rest.seen) == 42
    assert results_of(tmp_path / "run") == wanted
    stamps = [line[:19] for line in (tmp_path / "run" / "log.txt").read_text().splitlines()]
    assert stamps == sorted(stamps, reverse=True)
    assert len(set(stamps)) == len(stamps)


# -- rows without a score ---------------------------------------------------------------------------------------------


def test_strict_is_an_error_after_everything_is_kept(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    said = r"7 of 50 rows have no score, and strict=True asks for all \(all rows are kept in 'run'\):\n  7 x empty: no"
    with pytest.raises(ScoreError, match=said):
        score(ROWS, Lengths(), out=tmp_path / "run", strict=True, **SIZES)
    assert results_of(tmp_path / "run") == wanted
    with pytest.raises(ScoreError, match=r"strict=True asks for all:\n  7 x empty"):
        score(ROWS, Lengths(), strict=True)
    score(texts(6), Lengths(), strict=True)


@pytest.mark.parametrize("rows", [3, 30])
def test_a_run_without_a_score_leaves_a_folder_for_other_settings(rows: int, tmp_path: Path) -> None:
    bad = Dataset.from_dict({"text": [""] * rows, "prompt": ["1+1?"] * rows, "completion": ["#### 2"] * rows})
    with pytest.raises(ScoreError, match=f"none of the {rows} rows could be scored:\n  {rows} x empty: no text"):
        score(bad, Lengths(), out=tmp_path / "run", **SIZES)
    assert set(files_of(tmp_path / "run")) == {"plan.json", "log.txt", "recipe.yaml"}
    scorer = GraceScorer(MODEL, dtype="float32")
    with pytest.raises(ScoreError, match="none of the"):
        score(bad, scorer, out=tmp_path / "run", batch_rows=4, shard_rows=4)
    assert set(files_of(tmp_path / "run")) == {"plan.json", "log.txt", "recipe.yaml"}
    score(texts(10), Lengths(3.0), out=tmp_path / "run")
    assert load_run(tmp_path / "run").identity == "lengths-3.0"
    assert [line for line in log_of(tmp_path / "run") if line.startswith("stopped: ScoreError: none of the")]


def test_failures_that_were_there_are_counted_when_a_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    class Noted(resumable.Progress):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            seen.append((given, self))

    half_done(tmp_path / "run")
    monkeypatch.setattr(resumable, "Progress", Noted)
    score(ROWS, Lengths(), out=tmp_path / "run")
    (given, made) = seen[0]
    assert given == (50, 8, 1, "scoring (Lengths)")
    assert (made.done, made.failed) == (50, 7)


# -- what is no scorer ------------------------------------------------------------------------------------------------


class Odd(Lengths):
    def __init__(self, change: Callable[[dict[str, Any]], Any]) -> None:
        super().__init__()
        self.change = change

    def __call__(self, rows: Any) -> Any:
        return self.change(super().__call__(rows))


ODD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nothing": (lambda _: None, "the scorer gave a NoneType for a batch, and score\\(\\) needs a dict of columns"),
    "too few columns": (
        lambda found: {"length_value": found["length_value"]},
        "the scorer gave the columns length_value, and its .columns are length_value, length_codes, length_error",
    ),
    "too few rows": (
        lambda found: {**found, "length_value": [1.0]},
        "the scorer gave 1 values of 'length_value' for a batch of 3 rows",
    ),
    "no list": (
        lambda found: {**found, "length_value": 1.0},
        "the scorer gave float of 'length_value' for a batch of",
    ),
    "another type": (
        lambda found: {**found, "length_value": ["a"] * 3},
        "what the scorer gave for rows 0 to 2 does not fit its .columns: ",
    ),
}


@pytest.mark.parametrize("what", ODD)
def test_a_callable_that_gives_something_else_is_an_error(what: str, tmp_path: Path) -> None:
    change, said = ODD[what]
    with pytest.raises(ScoreError, match=said):
        score(ROWS, Odd(change), out=tmp_path / "run", **SIZES)


def test_a_scorer_whose_record_cannot_be_kept_is_an_error_before_it_scores(tmp_path: Path) -> None:
    class Unnamed(Lengths):
        column = "value"

    class Wordy(Lengths):
        def record(self) -> dict[str, Any]:
            return {"made": datetime.datetime(2024, 1, 1)}

    class Rows(Lengths):
        columns = Features({"row": Value("float32")})

    for made, said in (
        (Unnamed(), "the column to rank by is 'value', and the scorer's .columns are length_value,"),
        (Wordy(), "record\\(\\) cannot be written as JSON: Object of type datetime"),
        (Rows(), "a score column cannot be called 'row'"),
    ):
        with pytest.raises(ScoreError, match=said):
            score(ROWS, made, out=tmp_path / "run")
        assert made.seen == []


def test_a_folder_that_cannot_be_made_is_an_error_that_asks_for_another(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CurateError, match=r"the folder 'run' cannot be made \(Not a directory\): give another out="):
        score(ROWS, Lengths(), out=tmp_path / "file" / "run")


def test_sizes_without_a_folder_are_refused() -> None:
    with pytest.raises(ScoreError, match="shard_rows=8 is for runs that are kept in a folder: give out="):
        score(ROWS, Lengths(), shard_rows=8)
    with pytest.raises(CurateError, match="batch_rows=0 must be a whole number from 1 on"):
        score(ROWS, Lengths(), batch_rows=0)


def test_the_last_error_column_is_the_scorers_own() -> None:
    class Two(Lengths):
        columns = Features({"rollouts_error": Value("string"), **Lengths.columns})

    scored = ROWS.map(lambda rows: {"rollouts_error": [""] * len(rows["id"]), **Lengths()(rows)}, batched=True)
    assert failed_rows(scored, Two()) == {"empty: no text": 7}


@pytest.mark.parametrize("finished", [False, True])
def test_the_same_rows_of_another_source_are_refused_with_both_names(finished: bool, tmp_path: Path) -> None:
    run = tmp_path / "run"
    scorer = Lengths() if finished else stops_at(5, KeyboardInterrupt())
    with nullcontext() if finished else pytest.raises(KeyboardInterrupt):
        score(ROWS, scorer, out=run, source="org/a@1234abc:main/train", **SIZES)
    before = files_of(run)
    with pytest.raises(CurateError, match=r"over rows of org/a@1234abc:main/train, now of evil/b@main:main/train"):
        score(ROWS, Lengths(), out=run, source="evil/b@main:main/train")
    assert files_of(run) == before
    score(ROWS, Lengths(), out=run, source="org/a@5678def:main/train")  # the same rows at another commit
    score(ROWS, Lengths(), out=run)  # and where nothing is said
    score(ROWS, Lengths(), out=run, source="evil/b@main:main/train", overwrite=True)
    assert load_run(run).source == "evil/b@main:main/train"


def test_a_plan_over_another_number_of_rows_is_not_gone_on_with(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    run = half_done(tmp_path / "run")
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**plan, "rows": 12}))
    score(ROWS, Lengths(), out=run, **SIZES)
    assert results_of(run) == wanted


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_a_name_that_no_folder_can_have_is_an_error_that_says_so(name: str, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match="cannot be a folder"):
        score(ROWS, Lengths(), out=tmp_path / name)
