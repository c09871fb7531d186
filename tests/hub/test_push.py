"""Pushing to the loopback Hub with the real clients: one commit, nothing of anybody else's lost, nothing said to
strangers."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import warm
import yaml
from clients import ROOT, Client, Failure, holding, load_checked, load_plain, make_repo, push_pool
from loopback import LoopbackHub

from hf_curate.hub.manifest import content_digest, digest_indices


def tree(hub: LoopbackHub, repo: str, revision: str = "main") -> dict[str, Any]:
    return dict(hub.commits("dataset", repo, revision)[0].tree)


def text(hub: LoopbackHub, repo: str, path: str = "README.md", revision: str = "main") -> str:
    return hub.read("dataset", repo, path, revision).decode()


def shards(hub: LoopbackHub, repo: str, config: str, split: str = "train", revision: str = "main") -> list[str]:
    return [path for path in tree(hub, repo, revision) if path.startswith(f"{config}/{split}-")]


def lines_lost(before: str, after: str) -> list[str]:
    compared = difflib.ndiff(before.splitlines(keepends=True), after.splitlines(keepends=True))
    return [line for line in compared if line.startswith("- ")]


def agrees(hub: LoopbackHub, repo: str, config: str, split: str = "train", revision: str = "main") -> list[int]:
    """The kept source rows of a config, after a look that parquet, manifest and README are of one push."""
    raw = hub.read("dataset", repo, f"{config}/{split}.manifest.json", revision)
    digest, manifest = content_digest(raw), json.loads(raw)
    paths = shards(hub, repo, config, split, revision)
    assert paths
    assert all(path.endswith(f"-{digest}.parquet") for path in paths)
    tables = [pq.read_table(BytesIO(hub.read("dataset", repo, path, revision))) for path in sorted(paths)]
    rows = [row for table in tables for row in table["source_row"].to_pylist()]
    assert digest_indices(rows) == manifest["digests"]["source_row"]
    readme = text(hub, repo, revision=revision)
    front = yaml.safe_load(readme.split("---\n")[1])
    [entry] = [entry for entry in front["configs"] if entry["config_name"] == config]
    [path] = [one["path"] for one in entry["data_files"] if one["split"] == split]
    assert path == f"{config}/{split}-*-{digest}.parquet"
    assert readme.count(f"<!-- hf_curate:begin config={config} split={split} v1 -->") == 1
    assert manifest["digests"]["source_row"] in readme
    return rows


# What lands


def test_a_push_is_one_commit_that_load_dataset_and_load_curated_read(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    pushed = alice.run(push_pool, repo=repo, config="grace-20pct", draw=True)
    commits = hub.commits("dataset", repo)
    assert commits[0].oid == pushed["oid"]
    assert len(commits) == 2
    assert commits[0].title == "Add grace-20pct (train)"
    [shard] = shards(hub, repo, "grace-20pct")
    rest = {f"grace-20pct/train.{name}" for name in ("manifest.json", *PLOTS)}
    assert set(tree(hub, repo)) == {shard, *rest, "README.md", ".gitattributes"}
    kept = pushed["kept"]["grace-20pct"]
    assert agrees(hub, repo, "grace-20pct") == kept
    assert alice.run(load_plain, repo=repo, config="grace-20pct") == kept
    loaded = alice.run(load_checked, repo=repo, config="grace-20pct")
    assert (loaded["rows"], loaded["problems"]) == (kept, [])
    assert hub.repo("dataset", repo).state["private"] is False


def test_the_same_push_again_adds_no_commit(hub: LoopbackHub, alice: Client, repo: str) -> None:
    first = alice.run(push_pool, repo=repo, config="grace")
    assert alice.run(push_pool, repo=repo, config="grace")["oid"] == first["oid"]
    assert len(hub.commits("dataset", repo)) == 2


def outside(readme: str) -> str:
    """A README without the comparison of its configs, which changes with each of them."""
    begin, end = "<!-- hf_curate:begin comparison v1 -->", "<!-- hf_curate:end comparison -->\n"
    before, found, rest = readme.partition(begin)
    return before + (rest.partition(end)[2] if found else "")


def test_a_second_config_and_a_second_split_leave_the_first_as_it_was(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    kept = {("one", "train"): alice.run(push_pool, repo=repo, config="one")["kept"]["one"]}
    for config, split, seed in (("two", "train", 1), ("one", "test", 2), ("one", "dev.v2", 3)):
        before, readme = tree(hub, repo), text(hub, repo)
        kept[config, split] = alice.run(push_pool, repo=repo, config=config, split=split, seed=seed)["kept"][config]
        after = tree(hub, repo)
        assert {path: after.get(path) for path in before if path != "README.md"} == {
            path: entry for path, entry in before.items() if path != "README.md"
        }
        assert lines_lost(outside(readme), text(hub, repo)) == []
    assert len(hub.commits("dataset", repo)) == 5
    for (config, split), rows in kept.items():
        assert agrees(hub, repo, config, split) == rows
        assert alice.run(load_plain, repo=repo, config=config, split=split) == rows


def verify_pushed(repo: str, config: str) -> dict[str, Any]:
    from hf_curate import verify_curated

    return verify_curated(repo, config).record()


def test_configs_of_a_repo_are_compared_by_the_rows_that_they_hold_and_each_can_be_verified(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    source = "local file rows.jsonl"
    one = set(alice.run(push_pool, repo=repo, config="one", source=source)["kept"]["one"])
    mine = section(text(hub, repo), "one")
    two = set(alice.run(push_pool, repo=repo, config="two", budget="30%", source=source)["kept"]["two"])
    assert section(text(hub, repo), "one") == mine
    readme = text(hub, repo)
    assert one < two
    assert f"| `one` | {len(one)} | {len(one)} (100.0 %) |" in readme
    assert f"| `two` | {len(one)} ({100 * len(one) / len(two):.1f} %) | {len(two)} |" in readme
    said = {one["claim"]: one["state"] for one in alice.run(verify_pushed, repo=repo, config="one")["verdicts"]}
    assert {said[claim] for claim in ("manifest", "rows", "budget", "summary", "card")} == {"verified"}
    assert said["source"] == said["scores"] == "not checked"


def section(readme: str, config: str) -> str:
    begin, end = (f"<!-- hf_curate:{mark} config={config} split=train" for mark in ("begin", "end"))
    return readme[readme.index(begin) : readme.index(end)]


def test_three_nested_budgets_land_in_one_commit(hub: LoopbackHub, alice: Client, repo: str) -> None:
    names = ["grace-5pct", "grace-10pct", "grace-20pct"]
    pushed = alice.run(push_pool, repo=repo, config=names, budget=["5%", "10%", "20%"])
    assert len(hub.commits("dataset", repo)) == 2
    five, ten, twenty = (pushed["kept"][name] for name in names)
    assert [len(five), len(ten), len(twenty)] == [5, 10, 20]
    assert set(five) < set(ten) < set(twenty)
    for name in names:
        assert agrees(hub, repo, name) == pushed["kept"][name]
        assert alice.run(load_plain, repo=repo, config=name) == pushed["kept"][name]


def save_pool(folder: str, configs: dict[str, str], seed: int = 0, draw: bool = False) -> None:
    from pools import Scorer, pool

    from hf_curate import select
    from hf_curate.plots import draw as plots

    stand_in, plots.plot = plots.plot, plots.real if draw else plots.plot  # type: ignore[attr-defined]
    for config, budget in configs.items():
        select(pool(seed=seed), Scorer(), budget).save(folder, config)
    plots.plot = stand_in


def test_what_is_pushed_is_byte_for_byte_what_save_writes_but_for_the_name_of_the_repo(
    hub: LoopbackHub, alice: Client, repo: str, tmp_path: Path
) -> None:
    configs = {"grace-10pct": "10%", "grace-20pct": "20%"}
    alice.run(save_pool, folder=str(tmp_path / "out"), configs=configs, draw=True)
    alice.run(push_pool, repo=repo, config=list(configs), budget=list(configs.values()), draw=True)
    saved = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    local = {path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in saved}
    assert {path.rpartition(".")[2] for path in local} == {"parquet", "json", "png", "md"}
    local["README.md"] = local["README.md"].replace(b"<repo or folder>", repo.encode())
    assert {path: hub.read("dataset", repo, path) for path in tree(hub, repo) if path != ".gitattributes"} == local


PLOTS = ("length.png", "nested.png", "scores.png", "steps.png")
HUMAN = """---
# a comment that matters
license:   apache-2.0   # ours
configs:
  - config_name: 'raw'
    data_files: "raw/*.parquet"
    some_future_key: {a: 1, b: [x, y]}
dataset_info:
- config_name: raw
  features:
  - {name: question, dtype: string}
unknown_key:
    nested: "\\u00e9"
tags: [math]
---

# My data   \r
A table | with | pipes

<!-- a comment -->
```python
load_dataset("x")
```
no line end at the end"""


def test_foreign_yaml_and_human_text_survive_byte_for_byte(hub: LoopbackHub, alice: Client, repo: str) -> None:
    sink = BytesIO()
    pq.write_table(pa.table({"question": ["1+1"]}), sink)
    raw = sink.getvalue()
    files = {"README.md": HUMAN, "raw/train.parquet": raw.decode("latin-1"), "notes.txt": "mine"}
    alice.run(make_repo, repo=repo, files=files)
    kept = alice.run(push_pool, repo=repo, config="grace")["kept"]["grace"]
    now = hub.read("dataset", repo, "README.md").decode()
    front, body = HUMAN.split("\n---\n", 1)
    assert body in now
    assert [line for line in front.splitlines() if line not in now and not line.startswith("tags:")] == []
    data = yaml.safe_load(now.split("\n---\n")[0].removeprefix("---\n"))
    before = yaml.safe_load(front.removeprefix("---\n"))
    assert data["configs"][:1] == before["configs"]
    assert {key: data[key] for key in ("license", "dataset_info", "unknown_key")} == {
        key: before[key] for key in ("license", "dataset_info", "unknown_key")
    }
    assert data["tags"][0] == "math"
    assert hub.read("dataset", repo, "raw/train.parquet") == raw
    assert alice.run(load_plain, repo=repo, config="grace") == kept
    assert alice.run(first_rows, repo=repo, config="raw") == [{"question": "1+1"}]


def first_rows(repo: str, config: str) -> list[dict[str, Any]]:
    from datasets import load_dataset

    return load_dataset(repo, config, split="train").to_list()


def test_a_repo_of_files_in_another_format_is_pushed_to_with_a_word_of_warning(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    readme = "---\nconfigs:\n- config_name: raw\n  data_files: raw/*.jsonl\n---\n"
    alice.run(make_repo, repo=repo, files={"README.md": readme, "raw/a.jsonl": '{"question": "1+1"}\n'})
    kept = alice.run(push_pool, repo=repo, config="grace")["kept"]["grace"]
    assert any("cannot load what was pushed by name" in line for line in alice.said)
    assert alice.run(load_checked, repo=repo, config="grace")["rows"] == kept
    assert alice.run(first_rows, repo=repo, config="raw") == [{"question": "1+1"}]


def test_a_readme_edited_between_two_pushes_keeps_the_edits_and_gets_the_new_section(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    alice.run(push_pool, repo=repo, config=["one", "two"], budget=["10%", "20%"])
    pieces = text(hub, repo).replace("# Curated reasoning data", "# By hand\n\nWhy I made this. | ` <b>")
    edited = pieces.replace("---\n", "---\npretty_name: Mine\n", 1) + "\nAn appendix.\n"
    assert edited != pieces
    alice.run(make_repo, repo=repo, files={"README.md": edited})
    kept = alice.run(push_pool, repo=repo, config="one", budget="30%")["kept"]["one"]
    now = text(hub, repo)
    assert agrees(hub, repo, "one") == kept
    assert len(agrees(hub, repo, "two")) == 20
    begin, end = "<!-- hf_curate:begin config=one split=train v1 -->", "<!-- hf_curate:end config=one split=train -->"
    for half in (0, 1):
        mark = (begin, end)[half]
        mine, theirs = now.split(mark)[half], edited.split(mark)[half]
        if half:
            assert mine == theirs
        else:
            assert outside(mine.split("\n---\n")[1]) == outside(theirs.split("\n---\n")[1])
    assert "pretty_name: Mine" in now
    assert now.endswith("\nAn appendix.\n")


@pytest.mark.parametrize("damage", ["end missing", "begin missing", "doubled", "both missing"])
def test_missing_or_doubled_markers_append_the_card_and_say_so(
    hub: LoopbackHub, alice: Client, repo: str, damage: str
) -> None:
    alice.run(push_pool, repo=repo, config="grace")
    readme = text(hub, repo)
    begin, end = (
        "<!-- hf_curate:begin config=grace split=train v1 -->\n",
        "<!-- hf_curate:end config=grace split=train -->\n",
    )
    section = readme[readme.index(begin) : readme.index(end) + len(end)]
    damaged = {
        "end missing": readme.replace(end, ""),
        "begin missing": readme.replace(begin, ""),
        "doubled": f"{readme}\n{section}",
        "both missing": readme.replace(begin, "").replace(end, ""),
    }[damage]
    alice.run(make_repo, repo=repo, files={"README.md": damaged})
    kept = alice.run(push_pool, repo=repo, config="grace", budget="30%")["kept"]["grace"]
    said = "is gone from README.md" if damage == "both missing" else "are doubled or broken"
    assert any(said in line and "'grace', split 'train'" in line for line in alice.said)
    now = text(hub, repo)
    assert damaged.split("\n---\n", 1)[1] in now.split("\n---\n", 1)[1]
    assert now.rstrip().endswith(end.strip())
    assert alice.run(load_plain, repo=repo, config="grace") == kept


def test_stale_shards_of_the_same_split_go_in_the_same_commit(hub: LoopbackHub, alice: Client, repo: str) -> None:
    alice.run(push_pool, repo=repo, config="grace", max_shard_size=400)
    alice.run(push_pool, repo=repo, config="grace", split="train2", max_shard_size=400)
    alice.run(
        make_repo, repo=repo, files={"grace/train-notes.parquet.txt": "mine", "train-00000-of-00001.parquet": "x"}
    )
    assert len(shards(hub, repo, "grace")) > 3
    others = [path for path in tree(hub, repo) if not path.startswith("grace/train-0") and path != "README.md"]
    kept = alice.run(push_pool, repo=repo, config="grace", budget="30%")["kept"]["grace"]
    assert len(hub.commits("dataset", repo)) == 5
    assert len([path for path in shards(hub, repo, "grace") if path.endswith(".parquet")]) == 1
    assert set(others) <= set(tree(hub, repo))
    assert alice.run(load_plain, repo=repo, config="grace") == kept
    assert len(agrees(hub, repo, "grace", "train2")) == 20


# Looking before sending


def test_a_dry_run_returns_the_plan_and_touches_nothing(hub: LoopbackHub, alice: Client, repo: str) -> None:
    plan = alice.run(push_pool, repo=repo, config="grace", dry_run=True)
    [shard] = [path for path in plan["files"] if path.endswith(".parquet")]
    own = {f"grace/train.{name}" for name in ("manifest.json", *PLOTS)}
    assert set(plan["files"]) == {shard, *own, "README.md"}
    assert plan["deleted"] == []
    assert f"{plan['files'][shard]:,}  {shard}" in plan["text"]
    with pytest.raises(KeyError):
        hub.repo("dataset", repo)
    first = alice.run(push_pool, repo=repo, config="grace")["oid"]
    assert {path: entry.size for path, entry in tree(hub, repo).items() if path in plan["files"]} == plan["files"]
    assert text(hub, repo) == plan["readme"]
    [old] = shards(hub, repo, "grace")
    hub.log(clear=True)
    for revision in (None, "a/new-branch"):
        again = alice.run(push_pool, repo=repo, config="grace", budget="30%", dry_run=True, revision=revision)
        assert again["deleted"] == [old]
        assert f"deleted  {old}" in again["text"]
    assert {access.method for access in hub.log()} <= {"GET", "HEAD"}
    assert hub.commits("dataset", repo)[0].oid == first
    assert list(hub.repo("dataset", repo).refs) == ["refs/heads/main"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"config": "x*"},
        {"config": "[x]"},
        {"config": "a/b"},
        {"config": "-x"},
        {"config": "x\n"},
        {"config": "data"},
        {"config": ""},
        {"config": "x" * 97},
        {"config": ["good", "not good"], "budget": ["10%", "20%"]},
        {"config": "x", "split": "a-b"},
        {"config": "x", "split": "../x"},
        {"config": "x", "split": ""},
        {"config": "x", "repo": "no-owner"},
        {"config": "x", "repo": "a/b/c"},
        {"config": "x", "repo": "alice/a--b"},
        {"config": "x", "repo": "alice/x.git"},
        {"config": "x", "repo": "alice/x y"},
        {"config": "x", "repo": "alice/" + "x" * 100},
        {"config": "x", "create_pr": True, "revision": "dev"},
        {"config": "x", "token": "hf_alice\n"},
        {"config": "x", "token": "hf_alicé"},
    ],
    ids=lambda wrong: repr(wrong)[:50],
)
def test_names_that_cannot_be_used_are_refused_before_anything_is_sent(
    hub: LoopbackHub, alice: Client, wrong: dict[str, Any]
) -> None:
    failure = alice.fail(push_pool, **{"repo": "alice/never", **wrong})
    assert {"ConfigNameError", "HubError"} & set(failure.kinds)
    assert "hf_alic" not in failure.trace
    assert hub.log() == []


# Many at once


def test_six_processes_that_push_different_configs_at_once_all_land(
    hub: LoopbackHub, alice: Client, homes: Path, repo: str
) -> None:
    clients = [Client(hub, homes / f"runner{number}") for number in range(6)]
    for number, client in enumerate(clients):
        client.start(push_pool, repo=repo, config=f"grace-{number}", seed=number)
    pushed = [client.answer() for client in clients]
    for client in clients:
        client.close()
    assert not [one.trace for one in pushed if isinstance(one, Failure)]
    for number, one in enumerate(pushed):
        assert agrees(hub, repo, f"grace-{number}") == one["kept"][f"grace-{number}"]
        assert alice.run(load_plain, repo=repo, config=f"grace-{number}") == one["kept"][f"grace-{number}"]
    assert len(hub.commits("dataset", repo)) == 7
    assert "hf_alice" not in "".join(client.heard for client in clients)


@pytest.fixture(scope="module")
def second(hub: LoopbackHub, homes: Path) -> Iterator[Client]:
    client = Client(hub, homes / "second")
    yield client
    client.close()


def test_of_the_same_config_from_two_processes_one_wins_whole(
    hub: LoopbackHub, alice: Client, second: Client, repo: str
) -> None:
    alice.run(push_pool, repo=repo, config="grace")
    second.run(push_pool, repo=f"{repo}-warm", config="grace")  # it has imported all that it needs
    hub.fail("POST", f"{repo}/commit/main$", delay=2)  # whoever is first finds that the other was faster
    alice.start(push_pool, repo=repo, config="grace", seed=1, budget="10%")
    second.start(push_pool, repo=repo, config="grace", seed=2, budget="30%", max_shard_size=600)
    answers = [alice.answer(), second.answer()]
    assert any(access.status == 412 for access in hub.log())  # they did meet
    assert agrees(hub, repo, "grace") in [answer["kept"]["grace"] for answer in answers]
    assert len(hub.commits("dataset", repo)) == 4


# Branches and pull requests


def merge(repo: str, number: int) -> None:
    from huggingface_hub import HfApi

    HfApi().merge_pull_request(repo, number, repo_type="dataset")


def test_a_pull_request_leaves_main_alone_until_it_is_merged(hub: LoopbackHub, alice: Client, repo: str) -> None:
    before = alice.run(push_pool, repo=repo, config="one")["oid"]
    pulled = alice.run(push_pool, repo=repo, config="two", seed=1, create_pr=True)
    assert pulled["pr"] == "refs/pr/1"
    assert hub.commits("dataset", repo)[0].oid == before
    assert alice.run(load_plain, repo=repo, config="two", revision="refs/pr/1") == pulled["kept"]["two"]
    loaded = alice.run(load_checked, repo=repo, config="two", revision="refs/pr/1")
    assert (loaded["rows"], loaded["problems"]) == (pulled["kept"]["two"], [])
    more = alice.run(push_pool, repo=repo, config="three", revision="refs/pr/1")
    assert hub.commits("dataset", repo)[0].oid == before
    alice.run(merge, repo=repo, number=1)
    assert agrees(hub, repo, "three") == more["kept"]["three"]
    assert len(agrees(hub, repo, "one")) == 20


def test_somebody_without_write_access_may_open_a_pull_request_and_not_commit(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    alice.run(push_pool, repo=repo, config="one")
    pulled = alice.run(push_pool, repo=repo, config="two", create_pr=True, token="hf_carol")
    assert agrees(hub, repo, "two", revision=pulled["pr"]) == pulled["kept"]["two"]
    failure = alice.fail(push_pool, repo=repo, config="two", token="hf_carol")
    assert "the token may not write there" in failure.text
    assert len(hub.commits("dataset", repo)) == 2


def test_a_branch_is_made_where_it_is_missing_and_main_stays(hub: LoopbackHub, alice: Client, repo: str) -> None:
    before = alice.run(push_pool, repo=repo, config="one")["oid"]
    for config in ("two", "three"):
        kept = alice.run(push_pool, repo=repo, config=config, revision="try/this")["kept"][config]
        assert alice.run(load_plain, repo=repo, config=config, revision="try/this") == kept
        assert agrees(hub, repo, config, revision="try/this") == kept
    assert hub.commits("dataset", repo)[0].oid == before
    assert len(hub.commits("dataset", repo, "try/this")) == 4


# Private and gated sources, licences


def is_private(hub: LoopbackHub, repo: str) -> bool:
    return hub.repo("dataset", repo).state["private"]


@pytest.mark.parametrize(
    ("how", "source", "asked", "expected"),
    [
        ("public", "alice/src-open", None, False),
        ("public", "alice/src-open", True, True),
        ("private", "alice/src-secret", None, True),
        ("private", "alice/src-secret", False, False),
        ("private, and the Hub stumbles", "alice/src-secret", None, True),
        ("of somebody else", "bob/hidden", None, True),
        ("a file", "rows.jsonl", None, False),
    ],
)
def test_a_new_repo_is_private_where_its_source_is_or_may_be(
    hub: LoopbackHub, alice: Client, repo: str, how: str, source: str, asked: bool | None, expected: bool
) -> None:
    alice.run(make_repo, repo="alice/src-open", files={"a.txt": "a"})
    alice.run(make_repo, repo="alice/src-secret", files={"a.txt": "a"}, private=True)
    if "stumbles" in how:
        hub.fail("GET", "^/api/datasets/alice/src-secret$", 500)
    alice.run(push_pool, repo=repo, config="grace", source=source, private=asked)
    assert is_private(hub, repo) is expected
    assert any("cannot be seen with this token" in line for line in alice.said) == (source == "bob/hidden")


def test_a_private_source_is_not_pushed_to_a_public_repo_unless_that_is_said(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    alice.run(make_repo, repo="alice/src-closed", files={"a.txt": "a"}, private=True)
    alice.run(make_repo, repo=repo, files={"a.txt": "a"})
    before = hub.commits("dataset", repo)
    failure = alice.fail(push_pool, repo=repo, config="grace", source="alice/src-closed")
    assert "private=False" in str(failure)
    assert hub.commits("dataset", repo) == before
    alice.run(push_pool, repo=repo, config="grace", source="alice/src-closed", private=False)
    assert len(hub.commits("dataset", repo)) == len(before) + 1


def test_a_source_that_was_not_resolved_when_selecting_is_still_looked_at(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    alice.run(make_repo, repo="alice/src-late", files={"a.txt": "a"}, private=True)
    hub.fail("GET", "^/api/datasets/alice/src-late/revision/main$", 500)
    alice.run(push_pool, repo=repo, config="grace", source="alice/src-late")
    assert json.loads(text(hub, repo, "grace/train.manifest.json"))["source"]["sha"] is None
    assert is_private(hub, repo)


def test_a_gated_source_is_refused_with_the_reason_unless_allowed(hub: LoopbackHub, alice: Client, repo: str) -> None:
    alice.run(make_repo, repo="alice/src-gated", files={"a.txt": "a"}, gated="manual")
    failure = alice.fail(push_pool, repo=repo, config="grace", source="alice/src-gated")
    assert "alice/src-gated is gated" in failure.text
    assert "allow_gated=True" in failure.text
    with pytest.raises(KeyError):
        hub.repo("dataset", repo)
    alice.run(push_pool, repo=repo, config="grace", source="alice/src-gated", allow_gated=True)
    assert is_private(hub, repo)


def test_the_licence_is_the_sources_or_said_to_be_unknown(hub: LoopbackHub, alice: Client, repo: str) -> None:
    alice.run(make_repo, repo="alice/src-mit", files={"README.md": "---\nlicense: mit\n---\n"})
    alice.run(make_repo, repo="alice/src-none", files={"README.md": "# none\n"})
    alice.run(push_pool, repo=repo, config="grace", source="alice/src-mit")
    readme = text(hub, repo)
    assert yaml.safe_load(readme.split("---\n")[1])["license"] == "mit"
    sha = hub.commits("dataset", "alice/src-mit")[0].oid
    source = json.loads(text(hub, repo, "grace/train.manifest.json"))["source"]
    assert (source["license"], source["sha"], source["revision"]) == ("mit", sha, "main")
    alice.run(push_pool, repo=f"{repo}-b", config="grace", source="alice/src-none")
    readme = text(hub, f"{repo}-b")
    assert "license" not in yaml.safe_load(readme.split("---\n")[1])
    assert "unknown: see source" in readme


# A card that fails


def load_files(path: str, split: str = "train") -> list[int]:
    from datasets import load_dataset

    return load_dataset("parquet", data_files=path, split=split)["source_row"][:]


UNREADABLE = {
    "YAML": "---\nconfigs: [\nlicense: {\n---\n# Mine\n",
    "a list": "---\n- a\n- b\n---\n# Mine\n",
    "Latin-1": "# caf\xe9\n",
    "anchors": "---\nconfigs: &c\n- config_name: a\n  data_files: a.txt\nother: *c\ntags: *c\n---\n# Mine\n",
}


def write_past_the_checks(hub: LoopbackHub, repo: str, content: bytes) -> None:
    """A README as somebody's git may have pushed it."""
    where = hub.repo("dataset", repo)
    entry = where.write(content)
    where.commit(
        "refs/heads/main",
        lambda files: files | {"README.md": entry},
        parent=None,
        title="R",
        description="",
        author="",
    )


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_readme_that_cannot_be_edited_is_left_as_it_is_and_the_data_lands(
    hub: LoopbackHub, alice: Client, repo: str, kind: str
) -> None:
    broken = UNREADABLE[kind].encode("latin-1")
    alice.run(make_repo, repo=repo, files={"a.txt": "a"})
    write_past_the_checks(hub, repo, broken)
    plan = alice.run(push_pool, repo=repo, config="grace", dry_run=True)
    assert "README.md" not in plan["files"]
    assert "was left as it is" in plan["text"]
    kept = alice.run(push_pool, repo=repo, config="grace")["kept"]["grace"]
    [warning] = [line for line in alice.said if "README.md of" in line]
    assert hub.read("dataset", repo, "README.md") == broken
    assert {"grace/train.manifest.json", "grace/train.scores.png"} <= set(tree(hub, repo))
    assert "Nothing was changed" not in warning
    assert "Repair README.md and push again" in warning
    assert "\n" not in warning
    path = warning.partition("data_files='")[2].partition("'")[0]
    assert alice.run(load_files, path=path) == kept
    loaded = alice.run(load_checked, repo=repo, config="grace")
    assert (loaded["rows"], loaded["problems"]) == (kept, [])
    write_past_the_checks(hub, repo, b"# Repaired\n")
    alice.run(push_pool, repo=repo, config="grace")
    assert agrees(hub, repo, "grace") == kept
    assert alice.run(load_plain, repo=repo, config="grace") == kept


def test_a_readme_that_the_hub_does_not_take_is_left_out_and_the_data_lands(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    hub.fail("POST", "^/api/validate-yaml$", 400, times=9)
    kept = alice.run(push_pool, repo=repo, config="grace")["kept"]["grace"]
    assert "README.md" not in tree(hub, repo)
    assert any("the Hub does not take it" in line for line in alice.said)
    assert alice.run(load_checked, repo=repo, config="grace")["rows"] == kept


def push_odd_manifest(repo: str, config: str, lacking: str) -> list[int]:
    from dataclasses import replace

    from pools import Scorer, pool

    from hf_curate import select

    picked = select(pool(), Scorer(), "20%")
    manifest = {key: value for key, value in picked.manifest.items() if key != lacking}
    replace(picked, manifest=manifest).push_to_hub(repo, config)
    return picked.indices.tolist()


def test_a_card_that_cannot_be_written_becomes_a_minimal_one(hub: LoopbackHub, alice: Client, repo: str) -> None:
    kept = alice.run(push_odd_manifest, repo=repo, config="grace", lacking="confounds")
    assert any("minimal" in line for line in alice.said)
    assert "grace/train.manifest.json" in text(hub, repo)
    assert alice.run(load_plain, repo=repo, config="grace") == kept
    alice.run(push_pool, repo=repo, config="grace")
    assert agrees(hub, repo, "grace") == kept  # and a whole one takes its place
    alice.run(push_odd_manifest, repo=f"{repo}-b", config="grace", lacking="model")
    assert "README.md" not in tree(hub, f"{repo}-b")
    assert alice.run(load_checked, repo=f"{repo}-b", config="grace")["rows"] == kept


def test_a_config_of_somebody_else_under_the_same_name_is_an_error_and_not_a_card_failure(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    readme = "---\nconfigs:\n- config_name: grace\n  data_files: grace/*.parquet\n---\n"
    before = alice.run(make_repo, repo=repo, files={"README.md": readme})
    failure = alice.fail(push_pool, repo=repo, config="grace")
    assert "choose another config name" in failure.text
    assert hub.commits("dataset", repo)[0].oid == before


# Hostile content

HOSTILE = [
    "---\nconfigs: []\n---",
    "<!-- hf_curate:end config=grace split=train -->\n<!-- hf_curate:begin config=grace split=train v1 -->",
    "| a | `b` | <script>alert(1)</script> | {{ 7*7 }} {% raw %} | ![x](http://evil.invalid/x.png)",
    "\u202e right to left \u0000 nul \x1b[31m red \r\n\r cr \u2028 line",
    "hf://datasets/x/../../etc/passwd ${HOME} $(id) %s {0}",
]


def push_hostile(repo: str, texts: list[str], source: str) -> list[str]:
    from datasets import Dataset

    from hf_curate import select

    columns = {"prompt": texts, "a | b\n# `x` <b>": texts, "score": list(range(len(texts)))}
    picked = select(Dataset.from_dict(columns), "score", len(texts), source=source)
    picked.push_to_hub(repo, "grace")
    return picked.dataset.column_names


def load_columns(repo: str) -> dict[str, list[Any]]:
    from datasets import load_dataset

    return load_dataset(repo, "grace", split="train").to_dict()


def test_hostile_text_in_rows_columns_and_licences_lands_unchanged_and_stays_out_of_the_card(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    licence = "mit\n---\n<script>|`x` <!-- hf_curate:begin config=grace split=train v1 -->"
    front = yaml.safe_dump({"license": licence})
    alice.run(make_repo, repo=f"{repo}-src", files={"README.md": f"---\n{front}---\n"})
    for _ in range(2):
        alice.run(push_hostile, repo=repo, texts=HOSTILE, source=f"{repo}-src")
    found = alice.run(load_columns, repo=repo)
    assert found["prompt"] == found["a | b\n# `x` <b>"] == HOSTILE
    readme = text(hub, repo)
    assert readme.count("<!-- hf_curate:begin") == readme.count("<!-- hf_curate:end") == 1
    assert "<script>" not in readme
    assert "evil.invalid" not in readme
    assert "\n# `x`" not in readme
    assert alice.run(load_checked, repo=repo, config="grace")["problems"] == []
    assert "license" not in yaml.safe_load(readme.split("---\n")[1])


# Tokens


def test_a_token_that_may_not_write_and_one_that_is_none_are_refused_in_words(
    hub: LoopbackHub, alice: Client, repo: str
) -> None:
    alice.run(push_pool, repo=repo, config="one")
    before = tree(hub, repo)
    for where in (repo, f"{repo}-new"):
        failure = alice.fail(push_pool, repo=where, config="two", token="hf_alice_read")
        assert "HubError" in failure.kinds
        assert "the token may not write there" in failure.text
        failure = alice.fail(push_pool, repo=where, config="two", token="hf_nobody")
        assert "no valid token" in failure.text
        assert "hf_nobody" not in failure.trace
        failure = alice.fail(push_pool, repo=where, config="two", token=False)
        assert "no valid token" in failure.text
    assert tree(hub, repo) == before
    with pytest.raises(KeyError):
        hub.repo("dataset", f"{repo}-new")


def knock(token: bool | None) -> list[str]:
    """The hosts that were looked up by a push, two loads, a select and a model, and what they raised."""
    import socket

    from pools import Scorer, pool

    from hf_curate import CurateError, load_curated, select
    from hf_curate.hub.resolve import model_commit
    from hf_curate.sources import load_source

    looked_up, real = [], socket.getaddrinfo

    def watch(host: str, *arguments: object, **options: object) -> object:
        looked_up.append(str(host))
        raise OSError("nobody may be asked")

    socket.getaddrinfo = watch
    try:
        picked, commit = select(pool(), Scorer(), "20%"), "0" * 40
        calls = [
            lambda: picked.push_to_hub("alice/x", "grace", dry_run=True, token=token),
            lambda: picked.push_to_hub("alice/x", "grace", token=token),
            lambda: load_curated("alice/x", "grace", token=token),
            lambda: load_curated("alice/x", "grace", revision=commit, token=token),
        ]
        if token is None:
            calls += [
                lambda: select(pool(), Scorer(), "20%", source="alice/x"),
                lambda: load_source("alice/x@main:default/train"),
                lambda: model_commit("alice/x", "main"),
                lambda: model_commit("alice/x", commit),
            ]
        texts = []
        for call in calls:
            try:
                call()
            except CurateError as error:
                texts.append(str(error))
            if token is False:
                break
    finally:
        socket.getaddrinfo = real
    assert len(texts) == (1 if token is False else len(calls))
    return [*looked_up, *("not encrypted" if "is not encrypted" in text else text for text in texts)]


def test_a_token_is_not_sent_over_plain_http_to_another_machine(hub: LoopbackHub, alice: Client, homes: Path) -> None:
    there = {"HF_ENDPOINT": "http://example.invalid"}
    client = Client(hub, homes / "plain", **there)
    assert client.run(knock, token=None) == ["not encrypted"] * 8
    client.close()
    assert "hf_alice" not in client.heard


# The command


def command(arguments: list[str], folder: str) -> tuple[int, str, str]:
    import contextlib
    import io
    import os

    from hf_curate.cli import main

    os.chdir(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def saved(shared: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    shared.run(save_pool, folder=str(folder / "curated"), configs={"grace-10pct": "10%", "grace-20pct": "20%"})
    return folder


def test_the_command_pushes_all_configs_of_a_folder_in_one_commit(
    hub: LoopbackHub, alice: Client, repo: str, saved: Path
) -> None:
    code, out, err = alice.run(command, arguments=["push", "curated", repo], folder=str(saved))
    assert (code, err) == (0, "")
    [address, following] = out.splitlines()
    commits = hub.commits("dataset", repo)
    assert len(commits) == 2
    assert address == f"{hub.url}/datasets/{repo}/commit/{commits[0].oid}"
    assert following == f'next: load_dataset("{repo}", "grace-10pct", split="train")'
    assert len(agrees(hub, repo, "grace-10pct")) == 10
    assert len(agrees(hub, repo, "grace-20pct")) == 20
    assert text(hub, repo) == (saved / "curated" / "README.md").read_text("utf-8").replace("<repo or folder>", repo)


def test_the_command_knows_config_dry_run_create_pr_private_and_revision(
    hub: LoopbackHub, alice: Client, repo: str, saved: Path
) -> None:
    def push(*arguments: str) -> str:
        code, out, err = alice.run(command, arguments=["push", "curated", repo, *arguments], folder=str(saved))
        assert (code, err) == (0, "")
        return out

    dry = push("--dry-run", "--config", "grace-10pct")
    assert "grace-10pct/train.manifest.json" in dry
    assert "grace-20pct" not in dry
    with pytest.raises(KeyError):
        hub.repo("dataset", repo)
    push("--config", "grace-10pct", "--private", "--commit-message", "Mine")
    assert is_private(hub, repo)
    assert hub.commits("dataset", repo)[0].title == "Mine"
    assert not shards(hub, repo, "grace-20pct")
    pulled = push("--config", "grace-20pct", "--create-pr")
    assert f"{repo}/discussions/1" in pulled
    assert 'revision="refs/pr/1"' in pulled
    assert not shards(hub, repo, "grace-20pct")
    assert len(agrees(hub, repo, "grace-20pct", revision="refs/pr/1")) == 20
    assert 'revision="dev"' in push("--revision", "dev")
    assert len(agrees(hub, repo, "grace-20pct", revision="dev")) == 20


def test_the_command_says_in_one_line_why_it_refuses(hub: LoopbackHub, alice: Client, repo: str, saved: Path) -> None:
    wrong: dict[str, list[str]] = {
        "holds no config 'x'": ["curated", repo, "--config", "x"],
        "holds no curated config": ["nowhere", repo],
        "repo id": ["curated", "x"],
        "leave one out": ["curated", repo, "--create-pr", "--revision", "dev"],
    }
    for said, arguments in wrong.items():
        code, out, err = alice.run(command, arguments=["push", *arguments], folder=str(saved))
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("hf-curate: error: ")
        assert said in err
    assert hub.log() == []


def damage_shard(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


@pytest.mark.parametrize(
    "damage",
    [damage_shard, lambda path: path.write_bytes(b"PAR1"), lambda path: path.unlink(), "manifest"],
    ids=["a row less", "no parquet", "no shard", "another manifest"],
)
def test_a_folder_that_does_not_hold_what_its_manifest_says_is_refused_before_anything_is_sent(
    hub: LoopbackHub, alice: Client, repo: str, tmp_path: Path, damage: Callable[[Path], Any] | str
) -> None:
    alice.run(save_pool, folder=str(tmp_path / "curated"), configs={"grace": "10%"})
    [shard] = (tmp_path / "curated" / "grace").glob("*.parquet")
    if isinstance(damage, str):
        manifest = shard.parent / "train.manifest.json"
        manifest.write_text(manifest.read_text("utf-8").replace('"seed": 0', '"seed": 1'), "utf-8")
    else:
        damage(shard)
    code, out, err = alice.run(command, arguments=["push", "curated", repo], folder=str(tmp_path))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "save the config again" in err
    assert str(tmp_path) not in err
    assert hub.log() == []


def test_as_a_program_it_ends_with_2_and_no_traceback_for_a_token_that_may_not_write(
    hub: LoopbackHub, homes: Path, repo: str, saved: Path
) -> None:
    command = [sys.executable, "-m", "hf_curate.cli", "push", str(saved / "curated"), repo]
    done = warm.run(command, env=os.environ | hub.env("hf_alice_read", homes / "program"), cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1].startswith(f"hf-curate: error: {repo}: the Hub refused (403)")
    assert "Traceback" not in done.stderr
    assert "hf_alice" not in done.stderr


# Last: what all of the above has left behind


def test_no_token_is_in_any_file_that_the_pushes_wrote(hub: LoopbackHub, homes: Path, saved: Path) -> None:
    assert len(list(hub.folder.rglob("*"))) > 100
    assert holding(hub.folder, b"hf_alice") == []
    assert holding(homes, b"hf_alice") == []
    assert holding(saved, b"hf_alice") == []
