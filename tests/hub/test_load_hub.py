"""Loading from the loopback Hub: exactly the commit that was resolved, online and offline, by every kind of name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from clients import Client, holding, load_checked, load_plain, make_repo, push_pool
from loopback import LoopbackHub
from realdata import gsm8k_rows, needs_gsm8k

from hf_curate.demo import MODEL, TRACES

OFFLINE = {"HF_HUB_OFFLINE": "1"}


def tag(repo: str, name: str, revision: str) -> None:
    from huggingface_hub import HfApi

    HfApi().create_tag(repo, tag=name, revision=revision, repo_type="dataset")


def write_file(hub: LoopbackHub, repo: str, path: str, content: bytes) -> None:
    where = hub.repo("dataset", repo)
    entry = where.write(content)
    where.commit(
        "refs/heads/main", lambda tree: tree | {path: entry}, parent=None, title="W", description="", author=""
    )


# By name


def test_every_kind_of_revision_gives_its_own_rows_to_load_dataset_and_load_curated(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    first = alice.run(push_pool, repo=repo, config="grace", budget="10%")
    alice.run(tag, repo=repo, name="v1.0", revision=first["oid"])
    second = alice.run(push_pool, repo=repo, config="grace", budget="20%", seed=1)
    branch = alice.run(push_pool, repo=repo, config="grace", budget="30%", seed=2, revision="try/one")
    pulled = alice.run(push_pool, repo=repo, config="grace", budget="40%", seed=3, create_pr=True)
    expected = {
        None: second,
        "main": second,
        "v1.0": first,
        first["oid"]: first,
        second["oid"]: second,
        "try/one": branch,
        "refs/pr/1": pulled,
    }
    for revision, pushed in expected.items():
        rows = pushed["kept"]["grace"]
        assert alice.run(load_plain, repo=repo, config="grace", revision=revision) == rows
        found = alice.run(load_checked, repo=repo, config="grace", revision=revision)
        assert (found["rows"], found["problems"]) == (rows, [])


def test_a_split_may_be_left_out_where_there_is_one(hub: LoopbackHub, alice: Client, repo: str) -> None:
    kept = alice.run(push_pool, repo=repo, config="grace", split="dev")["kept"]["grace"]
    assert alice.run(load_checked, repo=repo, config="grace")["rows"] == kept
    alice.run(push_pool, repo=repo, config="grace", split="test", seed=1)
    failure = alice.fail(load_checked, repo=repo, config="grace")
    assert "has the splits dev, test" in failure.text
    failure = alice.fail(load_checked, repo=repo, config="grace", split="train")
    assert "has no split 'train'; it has dev, test" in failure.text
    assert alice.run(load_checked, repo=repo, config="grace", split="dev")["rows"] == kept


def test_a_wrong_name_lists_what_there_is(hub: LoopbackHub, alice: Client, repo: str) -> None:
    alice.run(push_pool, repo=repo, config=["grace-5pct", "grace-10pct"], budget=["5%", "10%"])
    for name in ("grace-5pc", "*", "[g]race", "../x", ""):
        failure = alice.fail(load_checked, repo=repo, config=name)
        assert "'grace-10pct', 'grace-5pct'" in failure.text
        assert repo in failure.text
    wrong = {
        "alice/not-there": "there is no such repo",
        "not a name": "neither a folder that exists nor a repo id",
        "alice/a--b": "",
    }
    for name, said in wrong.items():
        assert said in alice.fail(load_checked, repo=name, config="x").text
    assert (
        "there is no revision 'nowhere'"
        in alice.fail(load_checked, repo=repo, config="grace-5pct", revision="nowhere").text
    )
    alice.run(make_repo, repo=f"{repo}-plain", files={"a.txt": "a"})
    assert "there are: none" in alice.fail(load_checked, repo=f"{repo}-plain", config="x").text


def test_what_is_loaded_is_the_resolved_commit_even_if_the_branch_moves_meanwhile(
    hub: LoopbackHub, alice: Client, homes: Path, repo: str
) -> None:
    first = alice.run(push_pool, repo=repo, config="grace", budget="10%")
    second = alice.run(push_pool, repo=f"{repo}-b", config="grace", budget="20%", seed=1)
    commits = [hub.commits("dataset", name)[0] for name in (repo, f"{repo}-b")]
    assert commits[0].oid == first["oid"]
    other = hub.repo("dataset", f"{repo}-b")
    where = hub.repo("dataset", repo)
    hub.log(clear=True)
    loader = Client(hub, homes / "loader")
    slow = hub.fail("GET", f"^/api/datasets/{repo}/revision/main", delay=0.5, when="after")
    loader.start(load_checked, repo=repo, config="grace")
    while not slow.hits:
        time.sleep(0.01)
    entries = {path: where.write(other.read(entry.sha256)) for path, entry in commits[1].tree.items()}
    moved = where.commit("refs/heads/main", lambda tree: entries, parent=None, title="M", description="", author="")
    assert loader.answer()["rows"] == first["kept"]["grace"]
    asked = [access.path for access in hub.log() if access.route == "resolve"]
    assert asked
    assert all(first["oid"] in path for path in asked)
    assert loader.run(load_checked, repo=repo, config="grace")["rows"] == second["kept"]["grace"]
    assert moved.oid == hub.commits("dataset", repo)[0].oid
    loader.close()


def test_data_that_is_not_what_its_manifest_says_is_loaded_with_a_warning(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    alice.run(push_pool, repo=repo, config="grace")
    manifest = json.loads(hub.read("dataset", repo, "grace/train.manifest.json"))
    manifest["rows"]["kept"] = 19
    write_file(hub, repo, "grace/train.manifest.json", json.dumps(manifest).encode())
    found = alice.run(load_checked, repo=repo, config="grace")
    assert found["problems"] == ["the manifest says 19 rows, the data has 20"]
    assert any("the manifest says 19 rows" in line for line in alice.said)


# Who may


def test_a_private_repo_loads_with_a_token_and_is_not_there_without(
    hub: LoopbackHub, alice: Client, homes: Path, repo: str
) -> None:
    kept = alice.run(push_pool, repo=repo, config="grace", private=True)["kept"]["grace"]
    stranger = Client(hub, homes / "stranger", token=None)
    assert stranger.run(load_checked, repo=repo, config="grace", token="hf_alice_read")["rows"] == kept
    for token in (None, "hf_carol"):
        failure = stranger.fail(load_checked, repo=repo, config="grace", token=token)
        assert "there is no such repo, or the token may not see it" in failure.text
    failure = stranger.fail(load_checked, repo=repo, config="grace", token="hf_nobody")
    assert "HubError" in failure.kinds
    assert "hf_nobody" not in failure.trace
    for token in ("hf_alice\n", "hf_alicé"):
        failure = stranger.fail(load_checked, repo=repo, config="grace", token=token)
        assert "holds characters that no token has" in failure.text
        assert "hf_alic" not in failure.trace
    stranger.close()
    assert "hf_alice" not in stranger.heard
    assert alice.run(load_plain, repo=repo, config="grace") == kept


# Without the Hub


def test_offline_the_cache_gives_a_commit_main_and_branches_as_they_were_last_loaded(
    hub: LoopbackHub, alice: Client, homes: Path, repo: str
) -> None:
    first = alice.run(push_pool, repo=repo, config=["grace", "never"], budget=["10%", "10%"])
    second = alice.run(push_pool, repo=repo, config="grace", budget="20%", seed=1)
    branch = alice.run(push_pool, repo=repo, config="grace", budget="30%", seed=2, revision="try")
    online = Client(hub, homes / "travels")
    for revision in (first["oid"], "try", None):
        online.run(load_checked, repo=repo, config="grace", revision=revision)
    online.close()
    alice.run(push_pool, repo=repo, config="grace", budget="40%", seed=3)
    hub.log(clear=True)
    away = Client(hub, homes / "travels", **OFFLINE)
    expected = {first["oid"]: first, second["oid"]: second, None: second, "main": second, "try": branch}
    for revision, pushed in expected.items():
        found = away.run(load_checked, repo=repo, config="grace", revision=revision)
        assert (found["rows"], found["problems"]) == (pushed["kept"]["grace"], [])
    for revision in ("elsewhere", "0" * 40):
        assert "HubError" in away.fail(load_checked, repo=repo, config="grace", revision=revision).kinds
    assert "local cache" in away.fail(load_checked, repo="alice/unknown", config="grace").text
    failure = away.fail(load_checked, repo=repo, config="never", revision=first["oid"])
    assert "save the config again" not in failure.text
    away.close()
    assert hub.log() == []


def test_a_hub_that_stumbles_gives_way_to_the_cache_with_a_word_and_one_that_refuses_does_not(
    hub: LoopbackHub, alice: Client, homes: Path, repo: str
) -> None:
    kept = alice.run(push_pool, repo=repo, config="grace")["kept"]["grace"]
    reader = Client(hub, homes / "reader")
    reader.run(load_checked, repo=repo, config="grace")
    hub.fail("GET", f"^/api/datasets/{repo}", 500, times=9)
    assert reader.run(load_checked, repo=repo, config="grace")["rows"] == kept
    assert any("The Hub gives no answer" in line for line in reader.said)
    hub.core.faults.clear()
    assert "HubError" in reader.fail(load_checked, repo=repo, config="grace", token="hf_nobody").kinds
    reader.close()


def test_pushing_leaves_nothing_in_the_cache_that_loading_offline_could_take_for_data(
    hub: LoopbackHub, alice: Client, homes: Path, repo: str
) -> None:
    pusher = Client(hub, homes / "pusher")
    for seed in range(2):
        pusher.run(push_pool, repo=repo, config="grace", seed=seed)
    pusher.close()
    away = Client(hub, homes / "pusher", **OFFLINE)
    assert "not in the local cache" in away.fail(load_checked, repo=repo, config="grace").text
    away.close()


# Hub ids as sources and models


def push_rows(repo: str, rows: list[dict[str, Any]], **options: Any) -> str:
    from datasets import Dataset

    return Dataset.from_list(rows).push_to_hub(repo, **options).oid


def put_readme(repo: str, text: str) -> str:
    from huggingface_hub import HfApi

    card = HfApi().upload_file(
        path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=repo, repo_type="dataset"
    )
    return card.oid


def put_model(repo: str, folder: str, branch: str) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo(repo, private=True, exist_ok=True)
    api.create_branch(repo, branch=branch, exist_ok=True)
    return api.upload_folder(repo_id=repo, folder_path=folder, revision=branch).oid


def traces(rows: int) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(TRACES).slice(0, rows).to_pylist()


def command(arguments: list[str], folder: str) -> tuple[int, str, str]:
    import contextlib
    import io
    import os

    os.chdir(folder)
    from hf_curate.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


def test_select_records_the_commit_and_the_licence_of_a_source_on_the_hub(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    readme = "---\nlicense: cc-by-4.0\n---\n"
    commit = alice.run(make_repo, repo=f"{repo}-src", files={"README.md": readme})
    alice.run(push_pool, repo=repo, config="grace", source=f"{repo}-src@main:main/train")
    source = alice.run(load_checked, repo=repo, config="grace")["manifest"]["source"]
    named = {key: source[key] for key in ("id", "revision", "sha", "config", "split", "license")}
    assert named == {
        "id": f"{repo}-src",
        "revision": "main",
        "sha": commit,
        "config": "main",
        "split": "train",
        "license": "cc-by-4.0",
    }
    assert commit[:7] in hub.read("dataset", repo, "README.md").decode()


def load_named(source: str) -> list[Any]:
    from hf_curate.sources import load_source

    dataset, name = load_source(source)
    return [len(dataset), name]


def test_offline_a_source_is_that_of_the_commit_that_is_recorded_or_not_recorded(
    hub: LoopbackHub, alice: Client, homes: Path, repo: str
) -> None:
    first = alice.run(push_rows, repo=repo, rows=traces(3), config_name="c")
    alice.run(branch_off, repo=repo, name="old")
    online = Client(hub, homes / "sources")
    assert online.run(load_named, source=f"{repo}:c/train") == [3, f"{repo}@{first}:c/train"]
    assert online.run(load_named, source=f"{repo}@old:c/train") == [3, f"{repo}@{first}:c/train"]
    alice.run(push_rows, repo=repo, rows=traces(5), config_name="c")
    second = hub.commits("dataset", repo)[0].oid
    assert online.run(load_named, source=f"{repo}:c/train") == [5, f"{repo}@{second}:c/train"]
    online.close()
    alice.run(push_rows, repo=repo, rows=traces(7), config_name="c")
    away = Client(hub, homes / "sources", **OFFLINE)
    assert away.run(load_named, source=f"{repo}:c/train") == [5, f"{repo}@{second}:c/train"]
    for revision in ("old", first, "0" * 40, "never-seen"):  # datasets would give the 5 rows
        assert "cannot be loaded" in away.fail(load_named, source=f"{repo}@{revision}:c/train").text
    away.close()


def branch_off(repo: str, name: str) -> None:
    from huggingface_hub import HfApi

    HfApi().create_branch(repo, branch=name, repo_type="dataset")


def test_score_select_push_and_load_with_hub_ids_alone_record_all_commits_and_work_offline(
    hub: LoopbackHub, alice: Client, homes: Path, repo: str, tmp_path: Path
) -> None:
    rows = traces(24)
    first = alice.run(push_rows, repo=f"{repo}-src", rows=rows, config_name="main", private=True)
    model = alice.run(put_model, repo=f"{repo}-model", folder=str(MODEL), branch="warm/one")
    client = Client(hub, homes / "scores")

    def run(who: Client, *arguments: str) -> str:
        code, out, err = who.run(command, arguments=list(arguments), folder=str(tmp_path))
        assert code == 0, err
        return out

    spec = f"{repo}-src@main:main/train"
    run(client, "score", spec, "--model", f"{repo}-model@warm/one", "--device", "cpu", "--out", "run")
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert record["source"] == f"{repo}-src@{first}:main/train"
    assert (record["scorer"]["model"]["id"], record["scorer"]["model"]["sha"]) == (f"{repo}-model", model)
    run(client, "select", "run", "--budget", "25%", "--out", "curated", "--config", "grace-25pct")
    run(client, "push", "curated", repo)
    assert hub.repo("dataset", repo).state["private"]  # as its source
    found = client.run(load_checked, repo=repo, config="grace-25pct")
    assert (len(found["rows"]), found["problems"]) == (6, [])
    assert found["manifest"]["source"]["sha"] == first
    assert found["manifest"]["model"]["sha"] == model
    assert client.run(load_plain, repo=repo, config="grace-25pct") == found["rows"]
    client.close()

    alice.run(push_rows, repo=f"{repo}-src", rows=rows[:5], config_name="main")  # the world goes on
    alice.run(put_readme, repo=f"{repo}-src", text="# moved\n")
    hub.log(clear=True)
    away = Client(hub, homes / "scores", **OFFLINE)
    run(away, "score", spec, "--model", f"{repo}-model@warm/one", "--device", "cpu", "--out", "again")
    away.close()
    again = json.loads((tmp_path / "again" / "run.json").read_text("utf-8"))
    assert again["source"] == record["source"]
    assert again["scorer"] == record["scorer"]
    assert hub.log() == []
    assert holding(tmp_path, b"hf_alice") == []


def test_a_source_or_model_that_is_not_there_ends_with_2_and_one_line(
    hub: LoopbackHub, alice: Client, repo: str, tmp_path: Path
) -> None:
    alice.run(push_rows, repo=f"{repo}-src", rows=traces(3), config_name="main")
    wrong = {
        "cannot be loaded": ["score", f"{repo}-none", "--model", str(MODEL), "--out", "run"],
        "cannot be resolved to a commit": ["score", f"{repo}-src", "--model", f"{repo}-none", "--out", "run"],
        "there is no revision": ["score", f"{repo}-src", "--model", f"{repo}-model@nowhere", "--out", "run"],
    }
    alice.run(put_model, repo=f"{repo}-model", folder=str(MODEL), branch="warm")
    for said, arguments in wrong.items():
        code, _, err = alice.run(command, arguments=arguments, folder=str(tmp_path))
        assert code == 2
        assert said in err.splitlines()[-1]
        assert "Traceback" not in err


# Real data


def select_and_push_real(repo: str, source: str) -> list[int]:
    import numpy as np
    from datasets import Features, Value

    from hf_curate import select
    from hf_curate.sources import load_source

    dataset, name = load_source(source)
    scores = np.array([len(text) for text in dataset["answer"]], dtype=np.float32)
    features = Features({**dataset.features, "length_score": Value("float32")})
    scored = dataset.add_column("length_score", scores).cast(features)
    picked = select(scored, "length_score", "20%", source=name)
    picked.push_to_hub(repo, "longest-20pct")
    return picked.indices.tolist()


def load_rows(repo: str, config: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    return load_dataset(repo, config, split="train").to_list()


@needs_gsm8k
@pytest.mark.realdata
def test_a_subset_of_gsm8k_makes_the_round_trip(hub: LoopbackHub, alice: Client, repo: str) -> None:
    rows = gsm8k_rows()[:100]
    commit = alice.run(push_rows, repo=f"{repo}-src", rows=rows, config_name="main")
    kept = alice.run(select_and_push_real, repo=repo, source=f"{repo}-src:main/train")
    lengths = sorted((len(row["answer"]) for row in rows), reverse=True)
    assert len(kept) == 20
    assert min(len(rows[i]["answer"]) for i in kept) >= lengths[19]
    plain = alice.run(load_rows, repo=repo, config="longest-20pct")
    assert [{key: row[key] for key in ("question", "answer")} for row in plain] == [rows[i] for i in kept]
    found = alice.run(load_checked, repo=repo, config="longest-20pct")
    assert (found["rows"], found["problems"]) == (kept, [])
    assert found["manifest"]["source"]["sha"] == commit


def test_no_token_is_in_any_file_that_loading_wrote(hub: LoopbackHub, homes: Path) -> None:
    assert len(list(homes.rglob("*"))) > 50
    assert holding(hub.folder, b"hf_alice") == []
    assert holding(homes, b"hf_alice") == []
