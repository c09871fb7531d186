"""Processes with the real clients in them, each with its own caches, that run functions of the tests.

``huggingface_hub`` reads HF_ENDPOINT when it is imported, so the clients live in processes of their own. One process
runs many functions: their source is sent over, with arguments as JSON. A function brings its imports; its result
comes back as JSON, together with what was logged and warned.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import warm
from loopback import LoopbackHub

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent

HASTE = 5
"""How much less clients wait between two attempts than they would."""

WORKER = """
import json, logging, os, sys, time, traceback, warnings
wait, waits = time.sleep, []
time.sleep = lambda seconds: (waits.append(seconds), wait(seconds / HASTE))
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
class Kept(logging.Handler):
    def emit(self, record):
        said.append(self.format(record))
said = []
logging.getLogger().addHandler(Kept())
logging.getLogger().setLevel(logging.INFO)
warnings.showwarning = lambda message, *_, **__: said.append(str(message))
from hf_curate.plots import draw  # half of the time would go into the plots: a few bytes stand for them
draw.real, draw.plot = draw.plot, lambda name, manifest: f"\x89PNG {name} {manifest['budget']}".encode("latin-1")
for line in sys.stdin:
    task = json.loads(line)
    said.clear()
    waits.clear()
    space = {"__name__": "task"}
    try:
        exec(compile("from __future__ import annotations\\n" + task["source"], task["name"], "exec"), space)
        answer = {"result": space[task["name"]](**task["arguments"])}
    except BaseException as error:
        chain, one = [], error
        while one is not None:
            chain.append(repr(one))
            one = one.__cause__ or one.__context__
        kinds = [kind.__name__ for kind in type(error).__mro__]
        trace = "".join(traceback.format_exception(error)) + "\\n".join(chain)
        answer = {"kinds": kinds, "text": str(error), "trace": trace}
    print(json.dumps({**answer, "said": said, "waits": waits}), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Failure:
    """What a function raised: the names of its class and of the classes above, the text, the whole traceback."""

    kinds: list[str]
    text: str
    trace: str


class Client:
    """One process. ``said`` is what the last function logged and warned, ``waits`` the seconds that it
    asked to sleep; ``heard`` all that ever came back."""

    def __init__(self, hub: LoopbackHub, home: Path, token: str | None = "hf_alice", **environment: str) -> None:
        self.home = home
        self.said: list[str] = []
        self.waits: list[float] = []
        self.heard = ""
        paths = os.pathsep.join([str(TESTS), str(ROOT)])
        self._process = warm.Popen(
            [sys.executable, "-c", WORKER.replace("HASTE", str(HASTE))],
            env=os.environ | hub.env(token, home) | {"PYTHONPATH": paths} | environment,
            stdin=warm.PIPE,
            stdout=warm.PIPE,
            text=True,
        )

    def start(self, script: Callable[..., Any], **arguments: Any) -> None:
        """Send a function; ``answer`` waits for what it gives."""
        task = {"source": inspect.getsource(script), "name": script.__name__, "arguments": arguments}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process has died"
        self.heard += line
        answer = json.loads(line)
        self.said, self.waits = answer["said"], answer["waits"]
        return Failure(answer["kinds"], answer["text"], answer["trace"]) if "kinds" in answer else answer["result"]

    def run(self, script: Callable[..., Any], **arguments: Any) -> Any:
        self.start(script, **arguments)
        answer = self.answer()
        assert not isinstance(answer, Failure), answer.trace
        return answer

    def fail(self, script: Callable[..., Any], **arguments: Any) -> Failure:
        """Run what has to end in an error of ours."""
        self.start(script, **arguments)
        answer = self.answer()
        assert isinstance(answer, Failure), answer
        assert "CurateError" in answer.kinds, answer.trace
        return answer

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate(timeout=20)


def holding(folder: Path, secret: bytes) -> list[str]:
    """Files below a folder that hold these bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if secret in path.read_bytes() or secret.decode() in path.name]


def push_pool(
    repo: str,
    config: str | list[str],
    budget: str | list[str] = "20%",
    seed: int = 0,
    source: str | None = None,
    attempts: int = 12,
    draw: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Select from a pool of 100 rows and push, as one config or as several with a budget each.

    draw: the plots themselves, not what stands for them.
    """
    from pools import Scorer, pool

    import hf_curate.hub.push as room
    from hf_curate import select
    from hf_curate.plots import draw as plots

    names, budgets = ([config], [budget]) if isinstance(config, str) else (config, budget)
    rows = pool(seed=seed)
    picked = {name: select(rows, Scorer(), one, source=source) for name, one in zip(names, budgets, strict=True)}
    room.ATTEMPTS = attempts
    stand_in, plots.plot = plots.plot, plots.real if draw else plots.plot  # type: ignore[attr-defined]
    try:
        if isinstance(config, str):
            done = picked[config].push_to_hub(repo, config, **options)
        else:
            done = room.push(picked, repo, **options)
    finally:
        plots.plot = stand_in
    kept = {name: one.indices.tolist() for name, one in picked.items()}
    if isinstance(done, room.PushPlan):
        return {"files": done.files, "deleted": done.deleted, "readme": done.readme, "text": str(done), "kept": kept}
    return {"oid": done.oid, "pr": done.pr_revision, "kept": kept}


def load_plain(repo: str, config: str, split: str = "train", revision: str | None = None) -> list[int]:
    """The source rows that plain `load_dataset` finds, whole and streaming."""
    from datasets import load_dataset

    rows = load_dataset(repo, config, split=split, revision=revision)["source_row"][:]
    stream = load_dataset(repo, config, split=split, revision=revision, streaming=True)
    assert [row["source_row"] for row in stream] == rows
    return rows


def load_checked(repo: str, config: str, split: str | None = None, **options: Any) -> dict[str, Any]:
    """What `load_curated` gives."""
    from hf_curate import load_curated

    found = load_curated(repo, config, split=split, **options)
    return {"rows": found.indices.tolist(), "problems": found.problems, "manifest": found.manifest}


def make_repo(repo: str, files: dict[str, str], private: bool = False, gated: str | bool = False) -> str:
    """A dataset repo with these files, given as latin-1 text; the commit."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
    operations = [CommitOperationAdd(path, text.encode("latin-1")) for path, text in files.items()]
    done = api.create_commit(repo, operations, commit_message="Files", repo_type="dataset")
    if gated:
        api.update_repo_settings(repo, repo_type="dataset", gated=gated)
    return done.oid
