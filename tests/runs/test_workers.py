"""score(out=, workers=): several processes, the same bits; what dies is replaced, what kills is told."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import warm
from datasets import Dataset
from lengths import Lengths, results_of, texts

from hf_curate import GraceScorer, LearnAlignScorer, RandomScorer, Rollouts, score, verifier
from hf_curate.demo import MODEL, POLICY, load_traces, tasks
from hf_curate.errors import CurateError, MissingPackageError, ScoreError
from hf_curate.runs.travel import as_bytes, as_table, packed, unpacked
from hf_curate.scorers.threads import with_threads

ROWS = texts(50)
TRACES = load_traces().select_columns(["prompt", "completion"])
SIZES: dict[str, Any] = {"shard_rows": 8, "batch_rows": 3, "threads": 1}


class Deadly(Lengths):
    """Ends its process over the texts that are `deadly`, as often as files can be taken from `lives`."""

    def __init__(self, deadly: str, lives: Path, code: int = -signal.SIGKILL) -> None:
        super().__init__()
        self.deadly, self.lives, self.code = deadly, lives, code

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        left = sorted(self.lives.iterdir())
        if self.deadly in rows["text"] and left:
            left[0].unlink()
            if self.code < 0:
                os.kill(os.getpid(), -self.code)
            os._exit(self.code)
        return super().__call__(rows)


class Fails(Lengths):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        if "ab" * 20 in rows["text"]:
            raise self.error
        return super().__call__(rows)


def lives(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / str(number)).touch()
    return folder


def log_of(folder: Path) -> list[str]:
    return [line[20:] for line in (folder / "log.txt").read_text("utf-8").splitlines()]


def processes_of(folder: Path) -> list[int]:
    """The workers that a process started there has written down."""
    return [int(path.name) for path in folder.glob("[0-9]*")]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture(autouse=True)
def warm_workers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers begin with what they import, but for the tests of workers as they are."""
    if "new_interpreters" not in request.fixturenames:
        monkeypatch.setattr("hf_curate.runs.workers.subprocess", warm)


@pytest.fixture
def new_interpreters() -> None: ...


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("wanted") / "run"
    score(ROWS, Lengths(), out=folder, **SIZES)
    return results_of(folder)


# -- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_files(workers: int, tmp_path: Path, wanted: dict[str, bytes]) -> None:
    scored = score(ROWS, Lengths(), out=tmp_path / "run", workers=workers, **SIZES)
    assert results_of(tmp_path / "run") == wanted
    assert scored.to_list() == score(ROWS, Lengths()).to_list()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_a_run_goes_on_with_another_number_of_workers(
    before: int, after: int, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(ROWS, Stops(49), out=tmp_path / "run", workers=before, **SIZES)
    assert 0 < len(list((tmp_path / "run" / "parts").glob("*.json"))) < 7
    score(ROWS, Lengths(), out=tmp_path / "run", workers=after, **SIZES)
    assert results_of(tmp_path / "run") == wanted


class Stops(Lengths):
    """Is interrupted at the batch that holds the n-th row."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        if self.at in rows["id"]:
            raise KeyboardInterrupt
        return super().__call__(rows)


def test_grace_in_workers(tmp_path: Path, new_interpreters: None) -> None:
    rows = TRACES.select(range(24))
    for workers in (1, 2):
        scorer = GraceScorer(MODEL, dtype="float32")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            score(rows, scorer, out=tmp_path / str(workers), workers=workers, batch_rows=6, threads=1)
    assert results_of(tmp_path / "1") == results_of(tmp_path / "2")
    log = log_of(tmp_path / "2")
    assert sum(line.startswith("shard ") for line in log) == 4


def test_rollouts_and_a_fit_on_the_pool_in_workers(tmp_path: Path) -> None:
    rows = Dataset.from_list(tasks.problems("chain", 12, level=4, seed=1, split="pool"))
    for workers in (1, 2):
        sampled = Rollouts(POLICY, verifier(tasks.solved), n=4, max_new_tokens=48, dtype="float32", seed=5)
        scorer = LearnAlignScorer(POLICY, rollouts=sampled, dtype="float32")
        score(rows, scorer, out=tmp_path / str(workers), workers=workers, batch_rows=4, threads=1)
    assert results_of(tmp_path / "1") == results_of(tmp_path / "2")


def test_threads_are_those_that_the_run_was_begun_with(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        score(ROWS, Stops(40), out=tmp_path / "run", shard_rows=8, batch_rows=3, threads=3)
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["threads"] == 3
    with pytest.raises(CurateError, match="threads=3, now threads=2: leave threads= away"):
        score(ROWS, Lengths(), out=tmp_path / "run", threads=2)
    seen = tmp_path / "seen"
    seen.mkdir()
    score(ROWS, Threads(seen), out=tmp_path / "run", workers=2)
    assert {path.read_text() for path in seen.iterdir()} == {"3"}


class Threads(Lengths):
    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        (self.place / str(os.getpid())).write_text(os.environ["OMP_NUM_THREADS"])
        return super().__call__(rows)


# -- what dies, and what fails ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "how"), [(-signal.SIGKILL, "SIGKILL, as the system does"), (3, "exit code 3")])
def test_a_worker_that_dies_is_replaced_and_its_batch_tried_again(
    code: int, how: str, tmp_path: Path, wanted: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    scorer = Deadly("ab" * 10, lives(tmp_path / "lives", 2), code)
    score(ROWS, scorer, out=tmp_path / "run", workers=2, **SIZES)
    assert results_of(tmp_path / "run") == wanted
    told = [line for line in log_of(tmp_path / "run") if " died (" in line]
    assert len(told) == 2
    assert how in told[0]
    assert "tried again" in caplog.text


def test_what_kills_three_workers_has_no_score_and_a_reason(tmp_path: Path) -> None:
    scorer = Deadly(ROWS[30]["text"], lives(tmp_path / "lives", 9))
    scored = score(ROWS, scorer, out=tmp_path / "run", workers=2, **SIZES)
    plain = score(ROWS, Lengths())
    dead = [place for place in range(len(ROWS)) if scored[place]["length_error"].startswith("worker died")]
    batches = {place // 8 * 8 + place % 8 // 3 * 3 for place, row in enumerate(ROWS) if row["text"] == scorer.deadly}
    assert {place // 8 * 8 + place % 8 // 3 * 3 for place in dead} == batches
    assert len(batches) == 2
    for place in range(len(ROWS)):
        if place in dead:
            assert scored[place]["length_value"] is None
            assert scored[place]["length_error"] == (
                "worker died: 3 times over this row's batch, last by SIGKILL, as the system does when memory runs out"
            )
        else:
            assert scored[place] == plain[place]
    with pytest.raises(ScoreError, match="strict=True asks for all"):
        score(ROWS, scorer, out=tmp_path / "run", workers=2, strict=True, **SIZES)


@pytest.mark.parametrize("kind", [ZeroDivisionError, OSError, EOFError])
def test_an_error_of_the_scorer_is_raised_as_it_is_and_shards_are_kept(kind: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(kind, match="a defect of the scorer") as caught:
        score(ROWS, Fails(kind("a defect of the scorer")), out=tmp_path / "run", workers=2, **SIZES)
    assert "in __call__" in str(caught.value.__cause__)
    kept = len(list((tmp_path / "run" / "parts").glob("*.json")))
    assert 0 < kept < 7
    scored = score(ROWS, Lengths(), out=tmp_path / "run", **SIZES)
    assert scored.to_list() == score(ROWS, Lengths()).to_list()
    assert f"goes on: Lengths (identity lengths-1.0), {kept} of 7 shards are done" in log_of(tmp_path / "run")


def test_a_first_batch_that_fails_entirely_is_an_error(tmp_path: Path) -> None:
    bad = Dataset.from_list([{"prompt": "", "completion": ""}] * 16 + TRACES.select(range(16)).to_list())
    with pytest.raises(ScoreError, match="none of the 8 rows could be scored"):
        score(bad, GraceScorer(MODEL), out=tmp_path / "run", workers=2, batch_rows=8)


class Unloadable(Lengths):
    """Ends the process that reads it."""

    def __reduce__(self) -> Any:
        return os._exit, (5,)


def test_workers_that_die_at_their_start_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"died 3 times at its start \(exit code 5\)"):
        score(ROWS, Unloadable(), out=tmp_path / "run", workers=2, **SIZES)


class Hesitant(Lengths):
    """Ends the processes that read it, as long as files can be taken from `lives`."""

    def __init__(self, lives: Path) -> None:
        super().__init__()
        self.lives = lives

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if left := sorted(self.lives.iterdir()):
            left[0].unlink()
            os._exit(5)


def test_a_worker_that_starts_at_the_third_try_does_its_work(tmp_path: Path) -> None:
    scorer = Hesitant(lives(tmp_path / "lives", 2))
    scored = score(ROWS.select(range(8)), scorer, out=tmp_path / "run", workers=2, **SIZES)
    assert scored.to_list() == score(ROWS.select(range(8)), Lengths()).to_list()


class Sleeps(Lengths):
    """Takes long to arrive; writes down who is waiting for it."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        (self.place / str(os.getpid())).touch()
        time.sleep(60)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="this system has no /proc")
def test_workers_that_are_starting_are_stopped_too(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()

    def interrupt() -> None:
        while not processes_of(place):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    start = time.monotonic()
    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        score(ROWS.select(range(8)), Sleeps(place), out=tmp_path / "run", workers=2, **SIZES)
    assert time.monotonic() - start < 50
    assert not any(map(is_alive, processes_of(place)))


class Particular(Exception):  # noqa: N818
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (MissingPackageError, "the adapter needs the package"),
        (RuntimeError, "a worker process failed: .*Particular: 1 and 2"),
        (SystemExit, r"the scorer ended its process: sys\.exit\(0\)"),
    ],
)
def test_errors_that_do_not_travel_by_themselves_are_told(
    kind: type[BaseException], text: str, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError if kind is SystemExit else kind, match=text):
        score(ROWS.select(range(8)), Raises(kind), out=tmp_path / "run", workers=2, **SIZES)


class Raises(Lengths):
    """Raises an error of that kind when it scores, or one that cannot be pickled."""

    def __init__(self, kind: type[BaseException]) -> None:
        super().__init__()
        self.kind = kind

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        if self.kind is MissingPackageError:
            raise MissingPackageError("peft", "peft", "the adapter")
        if self.kind is SystemExit:
            sys.exit(0)
        raise Particular(1, 2)


def test_a_first_batch_that_kills_its_workers_is_nulls_as_any_other(tmp_path: Path) -> None:
    rows = TRACES.select(range(16))
    scorer = DeadlyRandom(rows[0]["prompt"])
    scored = score(rows, scorer, out=tmp_path / "run", workers=2, batch_rows=8)
    assert [bool(error) for error in scored["random_error"]] == [True] * 8 + [False] * 8


class DeadlyRandom(RandomScorer):
    def __init__(self, deadly: str) -> None:
        super().__init__(seed=1)
        self._arguments, self.deadly = {"deadly": deadly}, deadly

    def score_rows(self, rows: Any, rank: int | None = None) -> Any:
        if any(row["prompt"] == self.deadly for row in rows):
            os._exit(9)
        return super().score_rows(rows, rank)


def test_runs_inside_a_run_have_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That a run is begun with its threads is seen before anything is sampled."""

    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_curate.runs.workers.workers", interrupted)
    rows = Dataset.from_list(tasks.problems("chain", 4, level=4, seed=1, split="pool"))
    sampled = Rollouts(POLICY, verifier(tasks.solved), n=2, max_new_tokens=48, dtype="float32", seed=5)
    scorer = LearnAlignScorer(POLICY, rollouts=sampled, dtype="float32")
    with with_threads(4, sampled), pytest.raises(KeyboardInterrupt):
        score(rows, scorer, out=tmp_path / "run", workers=2, batch_rows=4)
    plans = [json.loads((tmp_path / "run" / name / "plan.json").read_text()) for name in (".", "rollouts")]
    assert [plan["threads"] for plan in plans] == [2, 2]


def test_a_device_with_a_number_is_not_for_several_workers(tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match=r"workers=2 would all be on device='cuda:1': leave the number"):
        score(TRACES, GraceScorer(MODEL, device="cuda:1"), out=tmp_path / "run", workers=2)


def test_what_cannot_travel_is_refused_before_anything_starts(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    live = GraceScorer(AutoModelForCausalLM.from_pretrained(MODEL), tokenizer=AutoTokenizer.from_pretrained(MODEL))
    with pytest.raises(CurateError, match=r"a live Qwen3ForCausalLM cannot travel"):
        score(TRACES, live, out=tmp_path / "live", workers=2)
    held = Lengths()
    held.rows = (row for row in ROWS)  # type: ignore[attr-defined]
    with pytest.raises(CurateError, match="cannot travel to a worker process"):
        score(ROWS, held, out=tmp_path / "held", workers=2)


@pytest.mark.parametrize("workers", [0, -1, True, 1.5, "2"])
def test_a_number_of_workers_that_is_none(workers: Any, tmp_path: Path) -> None:
    with pytest.raises(CurateError, match=r"workers=.* must be a whole number from 1 on"):
        score(ROWS, Lengths(), out=tmp_path / "run", workers=workers)


def test_workers_want_a_folder() -> None:
    with pytest.raises(CurateError, match=r"workers=2 is for runs that are kept in a folder: give out="):
        score(ROWS, Lengths(), workers=2)


def test_what_workers_warn_of_is_told_here(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="strange rows"):
        score(ROWS, Warns(), out=tmp_path / "run", workers=2, **SIZES)


class Warns(Lengths):
    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        warnings.warn("strange rows", UserWarning, stacklevel=2)
        print("a scorer may print")
        return super().__call__(rows)


# -- processes --------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys
from pathlib import Path
from datasets import Dataset, Features, Value
from hf_curate import score

PLACE, SLOW = Path(sys.argv[1]), len(sys.argv) > 2
FACTOR = 2.0

def doubled(text):
    return FACTOR * len(text)

class Own:
    column, identity, columns = "own", "own-1", Features({"own": Value("float32")})
    def record(self):
        return {"name": "Own"}
    def __call__(self, rows):
        (PLACE / str(os.getpid())).touch()
        if SLOW:
            import time
            time.sleep(60)
        return {"own": [doubled(text) for text in rows["text"]]}

rows = Dataset.from_dict({"text": ["a" * n for n in range(1, 21)]})
print(list(score(rows, Own(), out=PLACE / "run", workers=2, batch_rows=5)["own"]))
"""


def test_a_script_needs_no_guard_and_its_classes_travel(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = warm.run([sys.executable, script, tmp_path], timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str([2.0 * n for n in range(1, 21)])
    assert len(processes_of(tmp_path)) == 2


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="this system has no /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_worker_outlives_the_process_that_started_it(how: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = warm.Popen([sys.executable, script, tmp_path, "slow"], stderr=warm.DEVNULL)
    until = time.monotonic() + 60
    while len(processes_of(tmp_path)) < 2 and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(how)
    assert process.wait(30) != 0
    pids, until = processes_of(tmp_path), time.monotonic() + 10
    assert len(pids) == 2
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))


# -- what travels -----------------------------------------------------------------------------------------------------


def test_tables_and_scorers_arrive_as_they_were_sent() -> None:
    table = ROWS.with_format("arrow")[:]
    assert as_table(as_bytes(table)).equals(table)
    scorer = unpacked(packed(RandomScorer(seed=7)))
    assert scorer.identity == RandomScorer(seed=7).identity
