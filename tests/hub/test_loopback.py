"""The loopback Hub, driven by the real clients: what they ask for works, and what should fail fails as it should.

``huggingface_hub`` reads HF_ENDPOINT when it is imported, so each script below is sent to a process of its own, with
caches of its own. A script brings its imports and its asserts, and returns what the test looks at.
"""

from __future__ import annotations

import http.client
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import warm
from loopback import LoopbackHub

from hf_curate.demo import MODEL

ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub(page_size=3) as hub:
        yield hub


def play(
    script: Callable[..., Any], hub: LoopbackHub, home: Path, token: str | None = "hf_alice", **arguments: Any
) -> Any:
    """Run a function's source in a process that knows only this Hub; its result comes back as JSON."""
    source = f"from __future__ import annotations\nimport json, sys\n{inspect.getsource(script)}\n"
    code = f"{source}print('\\n' + json.dumps({script.__name__}(**json.loads(sys.argv[1]))))"
    command = [sys.executable, "-c", code, json.dumps(arguments)]
    done = warm.run(command, env=os.environ | hub.env(token, home), timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def unanswered(hub: LoopbackHub) -> list[str]:
    """Requests that no route was made for."""
    return [f"{access.method} {access.path}" for access in hub.log() if not access.route and not access.fault]


def ask(url: str, method: str = "GET", body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
    """One raw request: the path goes out as it is written. The answer's body has been read into ``.content``."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    connection.request(method, url.partition(parts.netloc)[2], body, headers)
    response = connection.getresponse()
    response.content = response.read()  # type: ignore[attr-defined]
    connection.close()
    return response


def content(response: http.client.HTTPResponse) -> bytes:
    return response.content  # type: ignore[attr-defined]


# Repositories, files, refs and pull requests


def write_and_list() -> dict[str, Any]:
    import pytest
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
    from huggingface_hub.errors import (
        BadRequestError,
        HfHubHTTPError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api: Any = HfApi()
    where = {"repo_id": "alice/d", "repo_type": "dataset"}
    assert api.whoami()["name"] == "alice"
    url = api.create_repo(**where, private=True)
    assert (url.repo_id, url.repo_type) == ("alice/d", "dataset")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(**where)
    assert api.create_repo(**where, exist_ok=True).repo_id == "alice/d"

    small = {f"data/{number:02d}.txt": f"{number}\n".encode() for number in range(20)}
    strange = {"data/ä b#1%41.txt": b"strange", "README.md": b"---\nlicense: mit\ntags: [a]\n---\n# Card\n"}
    large = {"train.parquet": b"PAR1" * 100, "model.safetensors": b"\0" * 1000, "plot.PNG": b"\x89PNG", "raw": b"\0\1"}
    files = small | strange | large
    first = api.create_commit(
        **where,
        operations=[CommitOperationAdd(path, content) for path, content in files.items()],
        commit_message="All",
    )
    assert first.repo_url.repo_id == "alice/d"
    assert set(api.list_repo_files(**where)) == {*files, ".gitattributes"}
    by_path = {item.path: item for item in api.list_repo_tree(**where, recursive=True, expand=True)}
    assert {path for path, item in by_path.items() if getattr(item, "lfs", None)} == set(large)
    assert by_path["train.parquet"].size == 400
    assert by_path["data"].last_commit.title == "All"
    assert by_path[".gitattributes"].last_commit.title == "initial commit"
    assert len(list(api.list_repo_tree(**where, path_in_repo="data"))) == 21
    found = api.get_paths_info(**where, paths=["data", "train.parquet", "no"])
    assert [item.path for item in found] == ["data", "train.parquet"]
    info = api.dataset_info("alice/d", files_metadata=True)
    assert (info.sha, info.private, info.card_data["license"]) == (first.oid, True, "mit")
    assert {item.rfilename: item.size for item in info.siblings}["train.parquet"] == 400
    assert api.dataset_info("alice/d", expand=["sha", "gated"]).sha == first.oid
    assert api.file_exists(**where, filename="data/ä b#1%41.txt")

    again = api.upload_file(**where, path_in_repo="copy.parquet", path_or_fileobj=large["train.parquet"])
    moved = api.create_commit(
        **where,
        operations=[
            CommitOperationDelete("data/"),
            CommitOperationCopy("train.parquet", "second.parquet"),
            CommitOperationCopy("README.md", "docs/README.md"),
        ],
        commit_message="Move",
        commit_description="About it",
        parent_commit=again.oid,
    )
    assert not [path for path in api.list_repo_files(**where) if path.startswith("data/")]
    assert api.get_paths_info(**where, paths=["second.parquet"])[0].lfs.sha256 == by_path["train.parquet"].lfs.sha256
    with pytest.raises(HfHubHTTPError) as stale:
        api.upload_file(**where, path_in_repo="x", path_or_fileobj=b"x", parent_commit=again.oid)
    assert stale.value.response.status_code == 412
    with pytest.raises(RemoteEntryNotFoundError):
        api.delete_file("gone.txt", **where)
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(**where, path_in_repo="x", path_or_fileobj=b"x", revision="nowhere")
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(**where, path_in_repo="README.md", path_or_fileobj=b"---\na: [\n---\n")
    titles = [commit.title for commit in api.list_repo_commits(**where)]
    assert titles[0] == "Move"
    assert titles[-2:] == ["All", "initial commit"]

    api.create_branch(**where, branch="feature/one", revision=first.oid)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(**where, branch="feature/one")
    api.create_branch(**where, branch="feature/one", exist_ok=True)
    api.upload_file(**where, path_in_repo="x", path_or_fileobj=b"x", revision="feature/one")
    assert [repo.id for repo in api.list_datasets(author="alice")] == ["alice/d"]
    assert list(api.list_datasets(author="alice", token=False)) == []
    assert "data/00.txt" in api.list_repo_files(**where, revision="feature/one")
    api.create_tag(**where, tag="v1.0", revision="feature/one")
    api.create_tag(**where, tag="v0", revision=first.oid)
    api.delete_tag(**where, tag="v0")
    with pytest.raises(RevisionNotFoundError):
        api.delete_tag(**where, tag="v0")
    with pytest.raises(BadRequestError):
        api.create_branch(**where, branch="a..b")

    pull = api.upload_file(**where, path_in_repo="new.txt", path_or_fileobj=b"new", create_pr=True)
    assert pull.pr_revision == "refs/pr/1"
    api.upload_file(**where, path_in_repo="more.txt", path_or_fileobj=b"more", revision="refs/pr/1")
    assert "new.txt" not in api.list_repo_files(**where)
    assert api.get_discussion_details("alice/d", 1, repo_type="dataset").status == "open"
    api.merge_pull_request("alice/d", 1, repo_type="dataset")
    assert {"new.txt", "more.txt"} <= set(api.list_repo_files(**where))
    assert [item.status for item in api.get_repo_discussions("alice/d", repo_type="dataset")] == ["merged"]
    api.create_pull_request("alice/d", "Draft", repo_type="dataset")
    refs = api.list_repo_refs(**where, include_pull_requests=True)
    assert [branch.name for branch in refs.branches] == ["feature/one", "main"]
    assert [tag.name for tag in refs.tags] == ["v1.0"]
    assert [pull.ref for pull in refs.pull_requests] == ["refs/pr/1", "refs/pr/2"]
    api.delete_branch(**where, branch="feature/one")

    api.move_repo("alice/d", "lab/moved", repo_type="dataset")
    assert api.dataset_info("alice/d").id == "lab/moved"
    api.upload_file(**where, path_in_repo="late.txt", path_or_fileobj=b"late")
    api.update_repo_settings("lab/moved", repo_type="dataset", private=False, gated="auto")
    info = api.dataset_info("lab/moved", token="hf_carol")
    assert (info.private, info.gated) == (False, "auto")
    api.create_repo("m")
    api.delete_repo("alice/m")
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo("alice/m")
    api.delete_repo("alice/m", missing_ok=True)
    return {"first": first.oid, "moved": moved.oid}


def test_files_refs_and_pull_requests_go_through_the_real_client(hub: LoopbackHub, tmp_path: Path) -> None:
    made = play(write_and_list, hub, tmp_path)
    commits = {commit.oid: commit for commit in hub.commits("dataset", "lab/moved")}
    assert commits[made["moved"]].description == "About it"
    assert commits[made["first"]].author == "alice"
    assert hub.read("dataset", "lab/moved", "late.txt") == b"late"
    stored = [access for access in hub.log() if access.origin == "storage" and access.method == "PUT"]
    assert len(stored) == 4  # the copy of train.parquet was not sent again
    assert not any(access.authorization for access in stored)
    assert any("cursor=" in access.path for access in hub.log())
    assert any(access.route == "commits" and "p=1" in access.path for access in hub.log())
    assert hub.leaks() == []
    assert unanswered(hub) == []


def download_by_revision() -> list[str]:
    import os
    from pathlib import Path

    import pytest
    from huggingface_hub import CommitOperationAdd, HfApi, hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    api, heads = HfApi(), {}
    api.create_repo("alice/m")
    api.create_branch("alice/m", branch="a/b")
    for revision in ("main", "a/b"):
        files = {"config.json": revision.encode(), "sub/model.bin": b"weights of " + revision.encode()}
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        heads[revision] = api.create_commit("alice/m", operations, commit_message=revision, revision=revision).oid
    api.create_tag("alice/m", tag="v1", revision="a/b")
    pull = api.upload_file(repo_id="alice/m", path_in_repo="config.json", path_or_fileobj=b"pull", create_pr=True)
    asked = {
        "main": "main",
        "a/b": "a/b",
        "v1": "a/b",
        heads["main"]: "main",
        heads["a/b"]: "a/b",
        heads["a/b"][:8]: "a/b",
        "refs/pr/1": "pull",
    }
    for revision, expected in asked.items():
        path = Path(hf_hub_download("alice/m", "config.json", revision=revision))
        assert path.read_text() == expected
        folder = Path(snapshot_download("alice/m", revision=revision))
        weights = "main" if expected == "pull" else expected
        assert (folder / "sub" / "model.bin").read_text() == f"weights of {weights}"
        assert folder.name == {"pull": pull.oid}.get(expected, heads[weights])
    with pytest.raises(EntryNotFoundError):
        hf_hub_download("alice/m", "no.json")
    with pytest.raises(RevisionNotFoundError):
        hf_hub_download("alice/m", "config.json", revision="no/such")
    return sorted(os.listdir(Path(os.environ["HF_HUB_CACHE"]) / "models--alice--m" / "refs"))


def test_downloads_by_branch_tag_commit_and_pull_request_give_that_revision(hub: LoopbackHub, tmp_path: Path) -> None:
    assert {"a", "main", "v1"} <= set(play(download_by_revision, hub, tmp_path))
    redirected = [access for access in hub.log() if access.status == 302]
    assert redirected
    assert any("refs%2Fpr%2F1" in access.path for access in hub.log())
    assert hub.leaks() == []
    assert unanswered(hub) == []


# Who may do what


def knock_on_doors() -> None:
    import tempfile

    import pytest
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    api: Any = HfApi()
    for name, private, gated in (("open", False, False), ("secret", True, False), ("gated", False, "manual")):
        api.create_repo(f"lab/{name}", repo_type="dataset", private=private)
        api.upload_file(repo_id=f"lab/{name}", repo_type="dataset", path_in_repo="a.txt", path_or_fileobj=b"a")
        if gated:
            api.update_repo_settings(f"lab/{name}", repo_type="dataset", gated=gated)

    def fetch(name: str, token: str | bool) -> None:
        with tempfile.TemporaryDirectory() as cache:
            hf_hub_download(f"lab/{name}", "a.txt", repo_type="dataset", token=token, cache_dir=cache)

    def status(failure: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
        return failure.value.response.status_code

    fetch("open", False)
    fetch("secret", "hf_bob")
    fetch("gated", "hf_alice_read")
    for token, expected in ((False, 401), ("hf_carol", 404)):
        with pytest.raises(RepositoryNotFoundError) as hidden:
            api.dataset_info("lab/secret", token=token)
        assert status(hidden) == expected
        with pytest.raises(RepositoryNotFoundError):
            fetch("secret", token)
        for missing in ("lab/missing", "gpt2"):
            with pytest.raises(RepositoryNotFoundError):
                api.dataset_info(missing, token=token)
            with pytest.raises(RepositoryNotFoundError):
                hf_hub_download(missing, "a.txt", token=token)
    for token, expected in ((False, 401), ("hf_carol", 403)):
        with pytest.raises(GatedRepoError) as closed:
            fetch("gated", token)
        assert status(closed) == expected
        assert api.dataset_info("lab/gated", token=token).gated == "manual"
        with pytest.raises(GatedRepoError):
            api.auth_check("lab/gated", repo_type="dataset", token=token)
    api.grant_access("lab/gated", "carol", repo_type="dataset")
    fetch("gated", "hf_carol")

    for token in ("hf_alice_read", "hf_bob", "hf_carol"):
        with pytest.raises(HfHubHTTPError) as refused:
            api.upload_file(
                repo_id="lab/open", repo_type="dataset", path_in_repo="b", path_or_fileobj=b"b", token=token
            )
        assert status(refused) == 403
        with pytest.raises(HfHubHTTPError) as refused:
            api.create_repo("lab/new", token=token)
        assert status(refused) == 403
    with pytest.raises(HfHubHTTPError) as unknown:
        api.dataset_info("lab/open", token="hf_nobody")
    assert status(unknown) == 401
    assert not isinstance(unknown.value, RepositoryNotFoundError)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_nobody")
    pull = api.upload_file(
        repo_id="lab/open",
        repo_type="dataset",
        path_in_repo="b.bin",
        path_or_fileobj=b"b",
        token="hf_carol",
        create_pr=True,
    )
    assert pull.pr_num == 1


def test_strangers_readers_and_bad_tokens_meet_the_errors_of_the_real_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    play(knock_on_doors, hub, tmp_path)
    assert len(hub.commits("dataset", "lab/open")) == 2
    assert hub.leaks() == []


# The other clients


def push_and_load_rows() -> list[str]:
    import pytest
    from datasets import Dataset, get_dataset_config_names, load_dataset
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import HfApi

    rows = Dataset.from_dict({"number": list(range(30)), "text": [f"row {number}" for number in range(30)]})
    first = rows.push_to_hub("alice/rows", "half", split="train", num_shards=2, private=True)
    HfApi().create_tag("alice/rows", tag="v1", repo_type="dataset")
    rows.select(range(10)).push_to_hub("alice/rows", "half", split="train")
    rows.push_to_hub("alice/rows", "all", split="test")
    rows.select(range(5)).push_to_hub("alice/rows", "half", split="train", create_pr=True)
    assert sorted(get_dataset_config_names("alice/rows")) == ["all", "half"]
    lengths = {None: 10, "v1": 30, first.oid: 30, "refs/pr/1": 5}
    for revision, length in lengths.items():
        loaded = load_dataset("alice/rows", "half", split="train", revision=revision)
        assert loaded["number"][:] == list(range(length))
        stream = load_dataset("alice/rows", "half", split="train", revision=revision, streaming=True)
        assert [row["number"] for row in stream] == list(range(length))
    assert list(load_dataset("alice/rows", "all")) == ["test"]
    HfApi().create_repo("alice/hidden", repo_type="dataset", private=True)
    for name in ("alice/hidden", "alice/missing"):
        with pytest.raises(DatasetNotFoundError):
            load_dataset(name, token=False)
    return HfApi().list_repo_files("alice/rows", repo_type="dataset")


def test_datasets_pushes_and_loads_whole_streaming_by_tag_commit_and_pull_request(
    hub: LoopbackHub, tmp_path: Path
) -> None:
    files = play(push_and_load_rows, hub, tmp_path)
    assert [path for path in files if path.startswith("half/")] == ["half/train-00000-of-00001.parquet"]
    assert any(access.status == 206 and access.origin == "storage" for access in hub.log())
    assert not any(access.authorization for access in hub.log() if access.origin == "storage")
    assert hub.leaks() == []
    assert unanswered(hub) == []


def load_the_model(folder: str) -> list[int]:
    from huggingface_hub import HfApi
    from transformers import AutoModelForCausalLM, AutoTokenizer

    api = HfApi()
    api.create_repo("alice/tiny", private=True)
    first = api.upload_folder(repo_id="alice/tiny", folder_path=folder)
    api.delete_file("model.safetensors", "alice/tiny")
    tokenizer = AutoTokenizer.from_pretrained("alice/tiny", revision=first.oid)
    model = AutoModelForCausalLM.from_pretrained("alice/tiny", revision=first.oid)
    here = AutoModelForCausalLM.from_pretrained(folder)
    assert all(one.equal(two) for one, two in zip(model.parameters(), here.parameters(), strict=True))
    return tokenizer("1+2=")["input_ids"]


def test_transformers_loads_a_private_model_by_revision(hub: LoopbackHub, tmp_path: Path) -> None:
    assert play(load_the_model, hub, tmp_path, folder=str(MODEL))
    assert hub.leaks() == []
    assert unanswered(hub) == []


# Many at once, and faults


def race_for_the_head(rounds: int) -> list[list[int]]:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, barrier = HfApi(), Barrier(4)
    api.create_repo("alice/race", repo_type="dataset")

    def run(runner: int, turn: int) -> int:
        head = api.dataset_info("alice/race").sha
        operation = CommitOperationAdd(f"{turn}-{runner}.txt", f"{runner}".encode())
        barrier.wait()
        try:
            api.create_commit(
                "alice/race", [operation], commit_message=f"{turn}", repo_type="dataset", parent_commit=head
            )
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    with ThreadPoolExecutor(4) as pool:
        return [sorted(pool.map(run, range(4), [turn] * 4)) for turn in range(rounds)]


def test_of_four_commits_on_the_same_parent_exactly_one_wins(hub: LoopbackHub, tmp_path: Path) -> None:
    assert play(race_for_the_head, hub, tmp_path, rounds=6) == [[200, 412, 412, 412]] * 6
    assert [commit.title for commit in hub.commits("dataset", "alice/race")] == [*"543210", "initial commit"]
    assert len(hub.commits("dataset", "alice/race")[0].tree) == 7


def meet_faults() -> dict[str, Any]:
    import time

    from huggingface_hub import CommitOperationAdd, HfApi, get_session, hf_hub_download
    from huggingface_hub.constants import ENDPOINT

    api, session = HfApi(), get_session()
    api.create_repo("alice/f", repo_type="dataset")

    def fail(pattern: str, method: str = "POST", **how: object) -> None:
        fault = {"method": method, "pattern": pattern, **how}
        session.post(f"{ENDPOINT}/_admin/faults", json=fault).raise_for_status()

    def commit(name: str) -> str:
        """What happened, and whether the file is there afterwards."""
        try:
            operation = CommitOperationAdd(f"{name}.txt", name.encode())
            api.create_commit("alice/f", [operation], commit_message=name, repo_type="dataset")
            said = "done"
        except Exception as error:  # noqa: BLE001 - a cut connection comes as another class than a status
            response = getattr(error, "response", None)
            said = type(error).__name__ if response is None else str(response.status_code)
        return f"{said} {api.file_exists('alice/f', f'{name}.txt', repo_type='dataset')}"

    told = {}
    for name, how in {
        "stale": {"status": 412},
        "busy": {"status": 429, "retry_after": 7},
        "broken": {"status": 500},
        "unclear": {"status": 500, "when": "after"},
        "cut": {"cut": True},
        "lost": {"cut": True, "when": "after"},
    }.items():
        fail("/alice/f/commit/main$", **how)
        told[name] = commit(name)
    fail("/commit/", delay=0.3)
    started = time.monotonic()
    told["slow"] = commit("slow")
    assert time.monotonic() - started > 0.3
    fail("/preupload/", status=500)
    told["retried"] = commit("retried")
    api.upload_file(repo_id="alice/f", repo_type="dataset", path_in_repo="a.bin", path_or_fileobj=b"\0" * 1000)
    fail("^/datasets/alice/f/[0-9a-f]{64}", method="GET", cut=True, when="midway")
    with open(hf_hub_download("alice/f", "a.bin", repo_type="dataset"), "rb") as file:
        assert file.read() == b"\0" * 1000
    return told


def test_faults_strike_before_or_after_the_commit_as_told(hub: LoopbackHub, tmp_path: Path) -> None:
    assert play(meet_faults, hub, tmp_path) == {
        "stale": "412 False",
        "busy": "429 False",
        "broken": "500 False",
        "unclear": "500 True",
        "cut": "RemoteProtocolError False",
        "lost": "RemoteProtocolError True",
        "slow": "done True",
        "retried": "done True",
    }
    faults = [(access.status, access.fault) for access in hub.log() if access.route == "commit" and access.fault]
    assert faults == [(500, "after 500"), (0, "after cut"), (200, "before slow")]
    ranges = [access.status for access in hub.log() if access.route == "get_object"]
    assert ranges == [200, 200]  # cut, and asked for again


def test_a_fault_strikes_as_often_as_asked_and_carries_retry_after(hub: LoopbackHub) -> None:
    fault = hub.fail("GET", "^/api/whoami-v2$", 429, times=2, retry_after=3)
    answers = [ask(f"{hub.url}/api/whoami-v2", Authorization="Bearer hf_alice") for _ in range(3)]
    assert [answer.status for answer in answers] == [429, 429, 200]
    assert answers[0].getheader("Retry-After") == "3"
    assert fault.hits == 2
    assert json.loads(content(ask(f"{hub.url}/_admin/faults"))) == []
    assert ask(f"{hub.url}/_admin/faults", "POST", b'{"method": "GET", "pattern": "("}').status == 400
    log = json.loads(content(ask(f"{hub.url}/_admin/log")))
    assert [entry["status"] for entry in log] == [429, 429, 200]
    assert log[2] == {
        "method": "GET",
        "path": "/api/whoami-v2",
        "status": 200,
        "user": "alice",
        "authorization": True,
        "origin": "hub",
        "route": "whoami",
        "fault": "",
    }


# What the clients would not show


def repo_with_weights(hub: LoopbackHub) -> str:
    """A repository with one LFS file, written past the API; the raw address of its file."""
    repo = hub.core.registry.create("models", "alice/m", author="alice")
    entry = repo.write(bytes(range(100)))
    large = repo.lfs_entry(entry.sha256)
    repo.commit(
        "refs/heads/main", lambda tree: tree | {"a.bin": large}, parent=None, title="a", description="", author="alice"
    )
    repo.set_ref("refs/heads/x/y", hub.commits("model", "alice/m")[0].oid)
    return f"{hub.url}/alice/m/resolve/x%2Fy/a.bin"


def test_a_token_on_the_second_origin_in_a_path_or_in_a_file_is_recorded_as_a_leak(hub: LoopbackHub) -> None:
    url = repo_with_weights(hub)
    location = ask(url).getheader("Location", "")
    assert location.startswith(hub.storage_url)
    assert ask(location).status == 200
    assert hub.leaks() == []
    ask(location, Authorization="Bearer hf_alice")
    ask(f"{hub.url}/api/models/alice/m?token=hf_alice")
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "a.txt", "encoding": "base64", "content": "aGZfYWxpY2U="}},
    ]
    body = "\n".join(json.dumps(line) for line in lines).encode()
    ask(f"{hub.url}/api/models/alice/m/commit/main", "POST", body, Authorization="Bearer hf_alice")
    assert [leak.what for leak in hub.leaks()] == ["Authorization", "path", "file a.txt"]
    assert len(json.loads(content(ask(f"{hub.url}/_admin/leaks")))) == 3
    assert "hf_alice" not in repr([leak.what for leak in hub.leaks()])


def test_signed_addresses_serve_ranges_and_refuse_what_was_not_signed(hub: LoopbackHub) -> None:
    url = repo_with_weights(hub)
    head = ask(url, "HEAD")
    assert head.status == 302
    assert head.getheader("X-Linked-Size") == "100"
    assert head.getheader("X-Repo-Commit") == hub.commits("model", "alice/m")[0].oid
    location = head.getheader("Location", "")
    whole = bytes(range(100))
    for asked, expected in {"bytes=10-19": whole[10:20], "bytes=90-": whole[90:], "bytes=-5": whole[95:]}.items():
        answer = ask(location, Range=asked)
        assert (answer.status, content(answer)) == (206, expected)
    beyond = ask(location, Range="bytes=100-")
    assert (beyond.status, beyond.getheader("Content-Range")) == (416, "bytes */100")
    assert ask(location, "PUT", whole).status == 403
    assert ask(location.replace("signature=", "signature=0")).status == 403
    assert ask(location.partition("?")[0]).status == 403


def test_repositories_outlive_the_hub_that_wrote_them(tmp_path: Path) -> None:
    with LoopbackHub(tmp_path) as hub:
        repo_with_weights(hub)
        head = hub.commits("model", "alice/m")[0]
    with pytest.raises(ConnectionRefusedError):
        ask(hub.url)
    with LoopbackHub(tmp_path) as hub:
        assert hub.commits("model", "alice/m")[0] == head
        assert hub.read("model", "alice/m", "a.bin") == bytes(range(100))
        assert b"a.bin" in content(ask(f"{hub.url}/alice/m"))


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_would_give_trees_and_commits_the_same_names(tmp_path: Path) -> None:
    from loopback import git

    def real(*arguments: str) -> str:
        who = {f"GIT_{role}_{what}": "alice" for role in ("AUTHOR", "COMMITTER") for what in ("NAME",)}
        who |= {f"GIT_{role}_EMAIL": "alice@loopback.invalid" for role in ("AUTHOR", "COMMITTER")}
        who |= {f"GIT_{role}_DATE": "1700000000 +0000" for role in ("AUTHOR", "COMMITTER")}
        return subprocess.run(
            ["git", "-C", str(tmp_path), *arguments], env=os.environ | who, capture_output=True, text=True, check=True
        ).stdout.strip()

    real("init", "-q")
    blobs = {}
    for path in ("a/b.txt", "a.txt", "a/c/d", "ab"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
        blobs[path] = git.blob_id(path.encode())
    real("add", ".")
    tree = git.tree_ids(blobs)[""]
    assert tree == real("write-tree")
    assert git.commit_id(tree, [], "alice", 1700000000, "Title\n") == real("commit-tree", tree, "-m", "Title")


def test_by_hand_it_prints_three_lines_to_paste_and_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.hub.loopback", "--port", "0", "--folder", str(tmp_path / "hub")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as served:
        try:
            assert served.stdout is not None
            exports: dict[str, str] = {}
            while len(exports) < 3 and (line := served.stdout.readline()):
                if line.startswith("export "):
                    name, _, value = line.removeprefix("export ").strip().partition("=")
                    exports[name] = value
            assert list(exports) == ["HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET"]
            who = ask(f"{exports['HF_ENDPOINT']}/api/whoami-v2", Authorization=f"Bearer {exports['HF_TOKEN']}")
            assert json.loads(content(who))["name"] == "alice"
            served.send_signal(signal.SIGINT)
            assert served.wait(10) == 0
        finally:
            served.kill()
