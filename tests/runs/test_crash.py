"""kill -9 at any moment: what is finished stays, the next call goes on, and the end is bit for bit that of one call.

A killed process takes nothing along that the system was given to write, so these tests do without fsync.
"""

from __future__ import annotations

import json
import os
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import warm

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")

COMMON = """
import hashlib, json, os, random, shutil, signal, sys, time
from pathlib import Path
import datasets
from hf_curate import score
from hf_curate.runs import shards
from lengths import Lengths, results_of, texts

PLACE = Path(sys.argv[1])
os.fsync = lambda descriptor: None

def child(work):
    "Does the work in a process group of its own."
    pid = os.fork()
    if pid:
        try:
            os.setpgid(pid, pid)  # both do it, so that the group is there however early it is killed
        except (PermissionError, ProcessLookupError):
            pass
        return pid
    os.setpgid(0, 0)
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def finish(work):
    assert ended(child(work)) == 0
"""

RANDOM_MOMENTS = f"""{COMMON}
ROWS, SHARD, KILLS = 1350, 3, 25
rows = texts(ROWS)

def run(name, note=None, seconds=0.0):
    score(rows, Lengths(seconds=seconds, on_batch=note), out=PLACE / name, shard_rows=SHARD, batch_rows=2)

def note(texts):
    with open(PLACE / "scored", "a") as file:
        file.write(f"{{len(texts)}}\\n")

finish(lambda: run("whole"))
def done():
    return len(list((PLACE / "killed").glob("parts/[0-9]*.json")))

draw, kept = random.Random(7), []
for number in range(KILLS):
    before, pid = done(), child(lambda: run("killed", note, seconds=0.004))
    while number % 2 and done() == before:  # however slow the machine, half of the kills come in the midst of work
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, 0.16))
    os.killpg(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL, "it was finished before it was killed"
    kept.append(done())
finish(lambda: run("killed", note))
scored = sum(map(int, (PLACE / "scored").read_text().split()))
again = [line for line in (PLACE / "killed" / "log.txt").read_text().splitlines() if "done again" in line]
same = results_of(PLACE / "whole") == results_of(PLACE / "killed")
print(json.dumps({{"same": same, "kept": kept, "scored": scored, "again": again}}))
"""

WORKERS = f"""{COMMON}
ROWS, SHARD, KILLS = 750, 3, 6
rows = texts(ROWS)

def run(name, workers, seconds=0.0):
    score(rows, Lengths(seconds=seconds), out=PLACE / name, shard_rows=SHARD, batch_rows=2, workers=workers, threads=1)

def done():
    return len(list((PLACE / "killed").glob("parts/[0-9]*.json")))

def workers_of(group):
    "Processes of a group, but for those that only wait to be asked how they ended."
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(place.name))
    return found

finish(lambda: run("whole", 1))
draw, kept, left = random.Random(11), [], []
for number in range(KILLS):
    before, pid = done(), child(lambda: run("killed", 2, seconds=0.03))
    while number % 2 and done() == before:
        time.sleep(0.001)
    time.sleep(draw.uniform(0.0, 0.3 if number % 2 else 3.0))  # the others also come while workers start
    os.kill(pid, signal.SIGKILL)  # it alone: its workers have to see it by themselves
    assert ended(pid) == -signal.SIGKILL, "it was finished before it was killed"
    until = time.monotonic() + 20
    while workers_of(pid) and time.monotonic() < until:
        time.sleep(0.01)
    left += workers_of(pid)
    kept.append(done())
finish(lambda: run("killed", 2))
print(json.dumps({{"same": results_of(PLACE / "whole") == results_of(PLACE / "killed"), "kept": kept, "left": left}}))
"""

EVERY_STEP = f"""{COMMON}
rows = texts(7)

class Steps:
    "Kills the process at the n-th step that it takes on the disk."
    def __init__(self, at):
        self.at, self.taken = at, []

    def step(self, what):
        self.taken.append(what)
        if len(self.taken) - 1 == self.at:
            os.killpg(os.getpid(), signal.SIGKILL)

    def around(self, owner, name):
        before = getattr(owner, name)
        def stepped(*given, **options):
            self.step(f"before {{name}}")
            return before(*given, **options)
        setattr(owner, name, stepped)

    def halves(self, path, mode):
        file = open(path, mode)
        write = file.write
        class Halved:
            def __enter__(self): return self
            def __exit__(self, *_): file.close()
            def __getattr__(self, name): return getattr(file, name)
            def write(inner, data):
                write(data[: len(data) // 2])
                file.flush()
                self.step("half a write")
                write(data[len(data) // 2 :])
        return Halved()

    def watch(self):
        for owner, name in [
            (os, "fsync"), (Path, "replace"), (Path, "unlink"), (Path, "mkdir"), (os, "ftruncate"), (os, "pwrite"),
            (datasets.Dataset, "to_parquet"), (datasets.Dataset, "map"),
        ]:
            self.around(owner, name)
        shards.open = self.halves

def run(name, at=None, tell=None, scale=1.0, **options):
    steps = Steps(at)
    steps.watch()
    score(rows, Lengths(scale), out=PLACE / name, shard_rows=4, batch_rows=3, **options)
    if tell:
        (PLACE / tell).write_text(json.dumps(steps.taken))

finish(lambda: run("whole", tell="steps"))
wanted, steps = results_of(PLACE / "whole"), json.loads((PLACE / "steps").read_text())
finish(lambda: run("other", scale=2.0))
shutil.copytree(PLACE / "other", PLACE / "first")
finish(lambda: run("other", tell="more", overwrite=True))
more = json.loads((PLACE / "more").read_text())
wrong = []
for number in range(len(steps)):
    name = f"run{{number}}"
    killed = ended(child(lambda: run(name, at=number))) == -signal.SIGKILL
    finish(lambda: run(name))
    if not killed or results_of(PLACE / name) != wanted:
        wrong.append([number, steps[number]])
for number in range(len(more)):
    name = f"other{{number}}"
    shutil.copytree(PLACE / "first", PLACE / name)
    killed = ended(child(lambda: run(name, at=number, overwrite=True))) == -signal.SIGKILL
    record = PLACE / name / "run.json"
    if record.exists():  # then it is that of the table beside it
        held = json.loads(record.read_text())
        if hashlib.sha256((PLACE / name / "scored.parquet").read_bytes()).hexdigest() != held["scored_sha256"]:
            wrong.append([number, more[number], "a record beside another table"])
    finish(lambda: run(name, overwrite=True))
    if not killed or results_of(PLACE / name) != wanted:
        wrong.append([number, more[number], "overwritten"])
print(json.dumps({{"steps": steps, "more": more, "wrong": wrong}}))
"""


def outcome_of(script: str, place: Path) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    done = warm.run([sys.executable, "-c", script, str(place)], timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_is_not(tmp_path: Path) -> None:
    found = outcome_of(RANDOM_MOMENTS, tmp_path)
    assert found["same"]
    kept = found["kept"]
    assert len(kept) == 25
    assert kept == sorted(kept)
    assert sum(later > before for before, later in pairwise(kept)) >= 12, "half of the kills come in the midst of work"
    assert 1350 <= found["scored"] <= 1350 + 3 * 25, "a kill loses the shard that was being scored and no other"
    assert all("it was cut short before its marker was written" in line for line in found["again"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="this system has no /proc")
def test_a_run_of_workers_that_is_killed_at_random_moments_leaves_none_of_them_behind(tmp_path: Path) -> None:
    found = outcome_of(WORKERS, tmp_path)
    assert found["same"]
    assert found["left"] == []
    assert found["kept"] == sorted(found["kept"])
    assert sum(later > before for before, later in pairwise([0, *found["kept"]])) >= 3


@pytest.mark.slow
def test_a_run_that_is_killed_at_any_step_on_the_disk_ends_as_one_that_is_not(tmp_path: Path) -> None:
    found = outcome_of(EVERY_STEP, tmp_path)
    assert found["wrong"] == []
    kinds = {"half a write", *(f"before {what}" for what in ("fsync", "replace", "mkdir", "pwrite", "map", "unlink"))}
    assert kinds <= set(found["steps"])
    assert len(found["steps"]) > 20
    assert len(found["more"]) > len(found["steps"])
