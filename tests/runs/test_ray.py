"""score(engine="ray"): actors on a real cluster of this machine, the same files as without; what dies is replaced."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
from lengths import Lengths, results_of, texts

from hf_curate import GraceScorer, RandomScorer, score
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import CurateError, MissingPackageError, RowError, ScoreError

ROWS = texts(20)
TRACES = load_traces().select_columns(["prompt", "completion"]).select(range(16))
SIZES: dict[str, Any] = {"shard_rows": 4, "batch_rows": 3, "threads": 1}
RAY: dict[str, Any] = {"engine": "ray", "workers": 2, **SIZES}


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that this process is connected to."""
    ray = pytest.importorskip("ray")
    from hf_curate.runs.ray_cluster import connected

    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # the paths of its sockets may be 107 bytes long
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_TMPDIR", folder)
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))  # else Ray keeps one in the home folder
        patch.setenv("RAY_prestart_worker_first_driver", "0")  # no actor would be one of them
        before = os.environ.get("PYTHONBREAKPOINT")
        with connected("local", cpus=4):
            yield ray.get_runtime_context().gcs_address
        assert os.environ.get("PYTHONBREAKPOINT") == before  # Ray's own debugger, else
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("wanted") / "run"
    score(ROWS, Lengths(), out=folder, **SIZES)
    return results_of(folder)


class Deadly(Lengths):
    """Ends its process over the text that is `deadly`, as often as files can be taken from `lives`."""

    def __init__(self, deadly: str, lives: Path) -> None:
        super().__init__()
        self.deadly, self.lives = deadly, lives

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        left = sorted(self.lives.iterdir())
        if self.deadly in rows["text"] and left:
            left[0].unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(rows)


def lives(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        (folder / str(number)).touch()
    return folder


def log_of(folder: Path) -> list[str]:
    return [line[20:] for line in (folder / "log.txt").read_text("utf-8").splitlines()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def processes_of(folder: Path) -> list[int]:
    """The actors that a process started there has written down."""
    return [int(path.name) for path in folder.glob("[0-9]*")]


# -- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_actors_give_the_files_and_the_table_of_the_local_engine(
    cluster: str, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    import ray

    scored = score(ROWS, Lengths(), out=tmp_path / "run", ray_address=cluster, **RAY)
    assert results_of(tmp_path / "run") == wanted
    assert scored.to_list() == score(ROWS, Lengths()).to_list()
    assert ray.is_initialized()  # this call has not started it


@pytest.mark.slow
def test_grace_on_two_actors(cluster: str, tmp_path: Path) -> None:
    for engine, workers in (("local", 1), ("ray", 2)):
        scorer = GraceScorer(MODEL, dtype="float32")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            score(TRACES, scorer, out=tmp_path / engine, engine=engine, workers=workers, batch_rows=4, threads=1)
    assert results_of(tmp_path / "ray") == results_of(tmp_path / "local")
    assert sum(line.startswith("shard ") for line in log_of(tmp_path / "ray")) == 4


class Tells(Lengths):
    """Writes down what it computes with, and warns."""

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        import torch

        warnings.warn("strange rows", UserWarning, stacklevel=2)
        logging.getLogger("hf_curate").info("of interest")
        print("a scorer may print")
        told = f"{os.environ['OMP_NUM_THREADS']} {torch.get_num_threads()} {os.getcwd()}"
        (self.place / str(os.getpid())).write_text(told)
        return super().__call__(rows)


@pytest.mark.slow
def test_threads_folder_and_warnings_of_as_many_actors_as_there_is_room_for(
    cluster: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen = tmp_path / "seen"
    seen.mkdir()
    caplog.set_level(logging.INFO, "hf_curate")
    with pytest.warns(UserWarning, match="strange rows"):
        score(ROWS, Tells(seen), out=tmp_path / "run", **{**RAY, "threads": 2, "workers": 3})
    assert len(list(seen.iterdir())) <= 2  # the cluster has 4 CPUs: a third finds no room, and nobody waits for it
    assert {path.read_text() for path in seen.iterdir()} == {f"2 2 {os.getcwd()}"}
    assert str(os.getpid()) not in [path.name for path in seen.iterdir()]
    assert "of interest" in caplog.text


# -- what dies, and what fails ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_actor_that_dies_half_way_is_replaced_and_its_batch_tried_again(
    cluster: str, tmp_path: Path, wanted: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    score(ROWS, Deadly("ab" * 12, lives(tmp_path / "lives", 1)), out=tmp_path / "run", **RAY)
    assert not list((tmp_path / "lives").iterdir())
    assert results_of(tmp_path / "run") == wanted
    [told] = [line for line in log_of(tmp_path / "run") if " died (" in line]
    assert told.endswith("over rows 8 to 10")
    assert f"{told}: tried again" in caplog.text


class DeadlyRandom(RandomScorer):
    """Ends its process over that prompt, as often as files can be taken from `lives`."""

    def __init__(self, deadly: str, lives: str) -> None:
        super().__init__(seed=1)
        self._arguments, self.deadly, self.lives = {"deadly": deadly, "lives": lives}, deadly, lives

    def score_rows(self, rows: Any, rank: int | None = None) -> Any:
        if any(row["prompt"] == self.deadly for row in rows) and (left := sorted(Path(self.lives).iterdir())):
            left[0].unlink()
            os._exit(9)
        return super().score_rows(rows, rank)


@pytest.mark.slow
def test_what_kills_three_actors_has_no_score_and_a_reason_be_it_the_first_batch(cluster: str, tmp_path: Path) -> None:
    settings = {**RAY, "shard_rows": 8, "batch_rows": 8}
    deadly = DeadlyRandom(TRACES[0]["prompt"], str(lives(tmp_path / "lives", 9)))
    scored = score(TRACES, deadly, out=tmp_path / "run", **settings)
    assert len(list((tmp_path / "lives").iterdir())) == 6
    assert scored["random_error"][:] == ["worker died: 3 times over this row's batch"] * 8 + [""] * 8
    assert scored["random_score"][:8] == [None] * 8
    assert scored["random_score"][8:] == score(TRACES, RandomScorer(seed=1))["random_score"][8:]


class Fails(Lengths):
    def __call__(self, rows: Any) -> dict[str, list[Any]]:
        if "ab" * 20 in rows["text"]:
            raise OSError("a defect of the scorer")
        return super().__call__(rows)


@pytest.mark.slow
def test_an_error_of_the_scorer_is_raised_as_it_is_and_shards_are_kept(
    cluster: str, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    with pytest.raises(OSError, match="a defect of the scorer") as caught:
        score(ROWS, Fails(), out=tmp_path / "run", **{**RAY, "workers": 1})
    assert "in __call__" in str(caught.value.__cause__)
    assert 0 < len(list((tmp_path / "run" / "parts").glob("[0-9]*.json"))) < 5
    score(ROWS, Lengths(), out=tmp_path / "run", **SIZES)
    assert results_of(tmp_path / "run") == wanted


class Helpless(RandomScorer):
    def score_rows(self, rows: Any, rank: int | None = None) -> Any:
        return [RowError("bad", "as all are") for _ in rows]


class Unloadable(Lengths):
    """Ends the process that reads it."""

    def __reduce__(self) -> Any:
        return os._exit, (5,)


@pytest.mark.slow
def test_what_stops_a_run_before_its_first_batch(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = {**RAY, "workers": 1}
    with pytest.raises(CurateError, match=r"died 3 times at its start \(.+\): is hf_curate"):
        score(ROWS, Unloadable(), out=tmp_path / "unloadable", **one)
    with pytest.raises(ScoreError, match="none of the 8 rows could be scored"):
        score(TRACES, Helpless(), out=tmp_path / "bad", **{**one, "shard_rows": 8, "batch_rows": 8})
    with pytest.raises(CurateError, match=f"is connected to the Ray cluster at '{cluster}'"):
        score(ROWS, Lengths(), out=tmp_path / "other", ray_address="192.0.2.1:6379", **one)
    monkeypatch.setattr("hf_curate.runs.ray.packages", lambda: {"hf_curate": "9.9"})
    with pytest.raises(CurateError, match=r"other packages \(hf_curate .+, here 9\.9\): install the same"):
        score(ROWS, Lengths(), out=tmp_path / "packages", **one)


@pytest.mark.slow
def test_a_run_that_finds_no_room_says_what_it_waits_for(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hf_curate.runs.ray.WAITS", 0.3)

    def interrupt(message: str, *given: Any) -> None:
        raise KeyboardInterrupt(message % given)

    monkeypatch.setattr("hf_curate.runs.ray.logger.warning", interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"1 of them ask for num_cpus=9 each, the Ray cluster has 4 CPUs"):
        score(ROWS, Lengths(), out=tmp_path / "run", **{**RAY, "workers": 1, "threads": 9})


# -- processes --------------------------------------------------------------------------------------------------------

SCRIPT = """
import os, sys, time
from pathlib import Path
from lengths import Lengths, texts
from hf_curate import score

PLACE, SECONDS = Path(sys.argv[1]), 0.4

class Own(Lengths):
    def __call__(self, rows):
        (PLACE / str(os.getpid())).touch()
        time.sleep(SECONDS)
        return super().__call__(rows)

score(texts(20), Own(), out=PLACE / "run", workers=2, engine="ray", ray_address=sys.argv[2],
      shard_rows=4, batch_rows=3, threads=1)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="this system has no /proc")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_actor_outlives_the_run_and_the_next_call_goes_on(
    how: signal.Signals, cluster: str, tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    script, parts = tmp_path / "script.py", tmp_path / "run" / "parts"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    process = warm.Popen([sys.executable, script, tmp_path, cluster], env=environment, stderr=warm.DEVNULL)
    until = time.monotonic() + 120
    while not list(parts.glob("[0-9]*.json")) and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(60) != 0
    pids, until = processes_of(tmp_path), time.monotonic() + 60
    assert pids
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))
    kept = len(list(parts.glob("[0-9]*.json")))
    assert 0 < kept < 5
    score(ROWS, Lengths(), out=tmp_path / "run", **{**RAY, "workers": 1})
    assert results_of(tmp_path / "run") == wanted
    assert f"goes on: Lengths (identity lengths-1.0), {kept} of 5 shards are done" in log_of(tmp_path / "run")


@pytest.mark.slow
def test_a_command_starts_a_cluster_of_its_own_and_ends_it(cluster: str, tmp_path: Path) -> None:
    TRACES.to_parquet(tmp_path / "traces.parquet")
    asked = ["--scorer", "random", "--shard-rows", "4", "--threads", "1", "--workers", "2", "--engine", "ray"]
    command = [sys.executable, "-m", "hf_curate.cli", "score", "traces.parquet", *asked, "--out", "run"]
    done = warm.run(command, cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "16 of 16 rows scored -> run" in done.stdout
    assert "engine: ray" in (tmp_path / "run" / "recipe.yaml").read_text()
    score(TRACES, RandomScorer(), out=tmp_path / "local", shard_rows=4, threads=1)
    parts = [
        {path.name: path.read_bytes() for path in (tmp_path / name / "parts").glob("*.parquet")}
        for name in ("run", "local")
    ]
    assert parts[0] == parts[1]


def listening(pid: int) -> set[str]:
    """The hexadecimal addresses that a process listens on."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
        except FileNotFoundError:
            continue
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return {line[1].partition(":")[0] for line in lines if line[3] == "0A" and line[9] in inodes}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="this system has no /proc/net/tcp")
def test_a_cluster_of_our_own_listens_on_loopback_alone(cluster: str) -> None:
    import ray

    folder = ray._private.worker._global_node.get_session_dir_path()  # type: ignore[attr-defined]
    found = set()
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if folder.encode() in (place / "cmdline").read_bytes():
                found |= listening(int(place.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    assert cluster.startswith("127.0.0.1:")
    assert found
    assert found <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


# -- without a cluster ------------------------------------------------------------------------------------------------


def test_of_what_ray_says_no_ids_and_no_addresses_are_kept() -> None:
    pytest.importorskip("ray")
    from hf_curate.runs.ray_cluster import first_line

    said = f"The node {'0a' * 28} at 10.0.0.7:6379 (fe80::1:2, 2001:db8:0:0:0:0:0:1) is gone at 23:04:18 in ray::f."
    assert first_line(f"\n{said}\nmore") == (
        "The node at an address (an address, an address) is gone at 23:04:18 in ray::f."
    )


@pytest.mark.parametrize("workers", [1, 2])
def test_a_device_with_a_number_is_refused(workers: int, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(CurateError, match=r"device='cuda:1' of GraceScorer is one of several, .+: leave device= away"):
        score(TRACES, GraceScorer(MODEL, device="cuda:1"), out=tmp_path / "run", **{**RAY, "workers": workers})
    assert not (tmp_path / "run").exists()


def test_ray_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("hf_curate.runs.ray", "hf_curate.runs.ray_cluster"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingPackageError, match=r"engine='ray' needs the package 'ray': pip install 'hf_curate\[ray\]'"
    ):
        score(ROWS, Lengths(), out=tmp_path / "run", engine="ray")
    assert not (tmp_path / "run").exists()


def test_engines_and_addresses_that_are_none(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(CurateError, match="engine='spark' is none: 'local' or 'ray'"):
        score(ROWS, Lengths(), out=tmp_path / "run", engine="spark")
    with pytest.raises(CurateError, match=r"ray_address='auto' is for engine='ray', and this is engine='local'"):
        score(ROWS, Lengths(), out=tmp_path / "run", ray_address="auto")
    with pytest.raises(CurateError, match=r"is that of Ray's client server: run on a node of the cluster"):
        score(ROWS, Lengths(), out=tmp_path / "run", engine="ray", ray_address="ray://head:10001")
    with pytest.raises(CurateError, match=r"engine='ray' is for runs that are kept in a folder: give out="):
        score(ROWS, Lengths(), engine="ray")
    assert not (tmp_path / "run").exists()
