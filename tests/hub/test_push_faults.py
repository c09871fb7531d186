"""Pushing when the Hub is slow, busy, unclear or away: exactly one commit in the end, or none and a reason."""

from __future__ import annotations

import json
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clients import Client, Failure, load_checked, make_repo, push_pool
from loopback import LoopbackHub


def rows_on(hub: LoopbackHub, repo: str, config: str, revision: str = "main") -> list[int]:
    """The source rows in the parquet that the manifest at the head belongs to."""
    from hf_curate.hub.manifest import content_digest

    paths = hub.commits("dataset", repo, revision)[0].tree
    digest = content_digest(hub.read("dataset", repo, f"{config}/train.manifest.json", revision))
    [path] = [path for path in paths if path.startswith(f"{config}/train-")]
    assert path.endswith(f"{digest}.parquet")
    assert digest in hub.read("dataset", repo, "README.md", revision).decode()
    return pq.read_table(BytesIO(hub.read("dataset", repo, path, revision)))["source_row"].to_pylist()


FAULTS: dict[str, dict[str, Any]] = {
    "412": {"status": 412},
    "409": {"status": 409},
    "429 that says when": {"status": 429, "retry_after": 1},
    "500 before": {"status": 500},
    "500 after": {"status": 500, "when": "after"},
    "503 before, three times": {"status": 503, "times": 3},
    "504 after, and a busy Hub then": {"status": 504, "when": "after"},
    "cut before": {"cut": True},
    "cut after": {"cut": True, "when": "after"},
    "cut in the middle of the answer": {"cut": True, "when": "midway"},
}


@pytest.mark.parametrize(
    ("fault", "first"), [*((fault, False) for fault in FAULTS), ("500 after", True), ("cut after", True)]
)
def test_whatever_befalls_the_commit_it_is_made_exactly_once(
    hub: LoopbackHub, alice: Client, repo: str, fault: str, first: bool
) -> None:
    if not first:
        alice.run(push_pool, repo=repo, config="earlier", seed=5)
    commits = 1 if first else 2
    met = [hub.fail("POST", f"/{repo}/commit/main$", **FAULTS[fault])]
    if "busy" in fault:
        met.append(hub.fail("HEAD", f"^/datasets/{repo}/resolve/.*README.md$", 429, retry_after=0))
        met.append(hub.fail("POST", f"^/api/datasets/{repo}/paths-info/", 500))
    hub.log(clear=True)
    pushed = alice.run(push_pool, repo=repo, config="grace")
    assert all(one.hits == one.times for one in met)
    assert fault != "429 that says when" or alice.waits == [1.0]
    made = hub.commits("dataset", repo)
    assert len(made) == commits + 1
    assert made[0].oid == pushed["oid"]
    if FAULTS[fault].get("when") in ("after", "midway"):  # the head is looked at before anything is sent again
        assert len([access for access in hub.log() if access.route == "preupload"]) == 1
    assert rows_on(hub, repo, "grace") == pushed["kept"]["grace"]
    assert first or len(rows_on(hub, repo, "earlier")) == 20


def test_a_commit_that_took_effect_is_not_made_again_when_somebody_went_on_from_it(
    hub: LoopbackHub, alice: Client, homes: Path, repo: str
) -> None:
    other = Client(hub, homes / "other")
    other.run(push_pool, repo=f"{repo}-warm", config="warm")
    hub.fail("POST", f"/{repo}/commit/main$", 500, "after", delay=1.5)
    alice.start(push_pool, repo=repo, config="grace")
    while hub.core.registry.find("datasets", repo) is None or len(hub.commits("dataset", repo)) < 2:
        time.sleep(0.01)
    theirs = other.run(push_pool, repo=repo, config="theirs", seed=4)
    other.close()
    ours = alice.answer()
    assert not isinstance(ours, Failure), ours.trace
    assert [commit.title for commit in hub.commits("dataset", repo)][:2] == ["Add theirs (train)", "Add grace (train)"]
    assert len(hub.commits("dataset", repo)) == 3
    assert rows_on(hub, repo, "grace") == ours["kept"]["grace"]
    assert rows_on(hub, repo, "theirs") == theirs["kept"]["theirs"]


@pytest.mark.parametrize("how", [{"status": 500}, {"status": 412}, {"cut": True}], ids=repr)
def test_a_hub_that_always_fails_is_an_error_and_changes_nothing(
    hub: LoopbackHub, alice: Client, repo: str, how: dict[str, Any]
) -> None:
    before = alice.run(push_pool, repo=repo, config="one")["oid"]
    hub.fail("POST", f"/{repo}/commit/main$", times=99, **how)
    failure = alice.fail(push_pool, repo=repo, config="two", attempts=3)
    assert "HubError" in failure.kinds
    assert "3 attempts failed" in failure.text
    assert hub.commits("dataset", repo)[0].oid == before
    hub.core.faults.clear()
    alice.run(push_pool, repo=repo, config="two")
    assert len(hub.commits("dataset", repo)) == 3


def test_every_other_question_may_fail_now_and_then(hub: LoopbackHub, alice: Client, repo: str) -> None:
    alice.run(push_pool, repo=repo, config="one")
    asked = {
        "POST": ["/api/repos/create$", "/branch/dev$", "/api/validate-yaml$", "/preupload/", "/objects/batch$"],
        "GET": [f"^/api/datasets/{repo}/revision/dev$", "/resolve/.*parquet"],
        "HEAD": ["/resolve/.*README.md"],
        "PUT": ["^/datasets/"],
    }
    faults = [hub.fail(method, pattern, 503) for method, patterns in asked.items() for pattern in patterns]
    pushed = alice.run(push_pool, repo=repo, config="two", seed=1, revision="dev")
    assert [fault.pattern for fault in faults if not fault.hits] == []
    assert rows_on(hub, repo, "two", "dev") == pushed["kept"]["two"]
    assert len(hub.commits("dataset", repo, "dev")) == 3


def test_a_hub_that_is_away_is_an_error_in_words(hub: LoopbackHub, alice: Client, repo: str) -> None:
    hub.fail("*", "", cut=True, times=99)
    failure = alice.fail(push_pool, repo=repo, config="grace", attempts=2)
    assert failure.text == f"{repo}: the Hub does not answer. Try again later."


def test_offline_a_push_ends_at_once(hub: LoopbackHub, homes: Path, repo: str) -> None:
    client = Client(hub, homes / "offline", HF_HUB_OFFLINE="1")
    client.run(load_nothing)
    hub.log(clear=True)
    started = time.monotonic()
    failure = client.fail(push_pool, repo=repo, config="grace")
    assert time.monotonic() - started < 5
    client.close()
    assert "offline (HF_HUB_OFFLINE)" in failure.text
    assert hub.log() == []


def load_nothing() -> None:
    import datasets
    import pools

    import hf_curate.hub.push

    assert [datasets, hf_curate, pools]


def test_an_upload_that_the_storage_refuses_is_an_error_and_the_next_push_works(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    fault = hub.fail("PUT", "^/datasets/", 403, times=99)
    failure = alice.fail(push_pool, repo=repo, config="grace")
    assert fault.hits
    assert "HubError" in failure.kinds
    assert "Nothing was committed" in failure.text
    assert "signature" not in failure.text
    assert len(hub.commits("dataset", repo)) == 1
    hub.core.faults.clear()
    alice.run(push_pool, repo=repo, config="grace")
    assert len(hub.commits("dataset", repo)) == 2


def test_killed_between_upload_and_commit_the_repo_is_unchanged_and_the_next_push_works(
    hub: LoopbackHub, alice: Client, homes: Path, repo: str
) -> None:
    before = alice.run(push_pool, repo=repo, config="one")["oid"]
    hub.log(clear=True)
    slow = hub.fail("POST", f"/{repo}/commit/main$", cut=True, delay=3)
    victim = Client(hub, homes / "victim")
    victim.start(push_pool, repo=repo, config="two", seed=1)
    while not slow.hits:
        time.sleep(0.01)
    victim.close()  # kill -9
    uploads = [access for access in hub.log() if access.method == "PUT" and access.origin == "storage"]
    assert {access.status for access in uploads} == {200}
    assert hub.commits("dataset", repo)[0].oid == before
    hub.log(clear=True)
    kept = alice.run(push_pool, repo=repo, config="two", seed=1)["kept"]["two"]
    assert rows_on(hub, repo, "two") == kept
    assert len(hub.commits("dataset", repo)) == 3
    assert not [access for access in hub.log() if access.method == "PUT"]  # what was uploaded is not sent again


def test_a_pull_request_of_which_nothing_was_heard_is_not_opened_twice(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    alice.run(push_pool, repo=repo, config="one")
    hub.fail("POST", f"/{repo}/commit/main", 500, "after")
    failure = alice.fail(push_pool, repo=repo, config="two", create_pr=True)
    assert "Look at its open pull requests" in failure.text
    assert list(hub.repo("dataset", repo).refs) == ["refs/heads/main", "refs/pr/1"]


def other_rows(content: bytes) -> bytes:
    table = pq.read_table(BytesIO(content))
    sink = BytesIO()
    pq.write_table(table.slice(0, len(table) - 1), sink)
    return sink.getvalue()


def other_types(content: bytes) -> bytes:
    table = pq.read_table(BytesIO(content))
    place = table.column_names.index("source_row")
    sink = BytesIO()
    pq.write_table(table.set_column(place, "source_row", table["source_row"].cast(pa.int32())), sink)
    return sink.getvalue()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_rows, "came back with 19 rows, 20 were sent"),
        (other_types, "came back with other columns"),
        (lambda content: b"\0" * len(content), "could not be read back"),
    ],
    ids=["rows", "types", "zeros"],
)
def test_what_comes_back_otherwise_than_it_was_sent_is_an_error(
    hub: LoopbackHub, alice: Client, repo: str, change: Any, said: str
) -> None:
    slow = hub.fail("POST", f"/{repo}/commit/main$", delay=0.7)
    alice.start(push_pool, repo=repo, config="grace")
    while not slow.hits:
        time.sleep(0.01)
    for path in (hub.repo("dataset", repo).folder / "objects").rglob("*"):
        if path.is_file() and (content := path.read_bytes()).startswith(b"PAR1"):
            path.write_bytes(change(content))
    failure = alice.answer()
    assert isinstance(failure, Failure)
    assert "HubError" in failure.kinds, failure.trace
    assert said in failure.text
    assert hub.commits("dataset", repo)[0].oid in failure.text


def test_a_head_that_moves_between_reading_and_committing_keeps_both_edits(
    hub: LoopbackHub, alice: Client, repo: str, shared: Client
) -> None:
    alice.run(push_pool, repo=repo, config="one")
    slow = hub.fail("POST", f"/{repo}/commit/main$", delay=0.5)
    alice.start(push_pool, repo=repo, config="two", seed=1)
    while not slow.hits:
        time.sleep(0.01)
    where = hub.repo("dataset", repo)
    edited = hub.read("dataset", repo, "README.md") + b"\nWritten in between.\n"
    entry = where.write(edited)
    where.commit(
        "refs/heads/main", lambda tree: tree | {"README.md": entry}, parent=None, title="R", description="", author=""
    )
    kept = alice.answer()["kept"]["two"]
    assert rows_on(hub, repo, "two") == kept
    assert b"\nWritten in between.\n" in hub.read("dataset", repo, "README.md")
    assert [commit.title for commit in hub.commits("dataset", repo)] == [
        "Add two (train)",
        "R",
        "Add one (train)",
        "initial commit",
    ]


def test_the_manifest_on_the_hub_is_read_back_whole_after_faults(hub: LoopbackHub, alice: Client, repo: str) -> None:
    alice.run(make_repo, repo=repo, files={"a.txt": "a"})
    hub.fail("POST", f"/{repo}/commit/main$", 500, "after")
    pushed = alice.run(push_pool, repo=repo, config="grace")
    found = alice.run(load_checked, repo=repo, config="grace", revision=pushed["oid"])
    assert (found["rows"], found["problems"]) == (pushed["kept"]["grace"], [])
    assert found["manifest"] == json.loads(hub.read("dataset", repo, "grace/train.manifest.json"))
