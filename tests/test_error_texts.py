"""The wording of errors, pinned: each says what, why with both values, and what to type.

Regenerate goldens/errors.txt with HF_CURATE_UPDATE_GOLDENS=1, and read the difference like prose.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from pools import Scorer, plain, pool
from rollouts import policy, solved, tokenizer
from safetensors.torch import load_file, save_file

import hf_curate.demo
from hf_curate import (
    AccuracyGreedyScorer,
    GraceScorer,
    Rollouts,
    diff_curated,
    load_curated,
    score,
    select,
    verify_curated,
    write_report,
)
from hf_curate.budgets import parse_budget
from hf_curate.curriculum.selector import OnlineSelector
from hf_curate.errors import CurateError, MissingPackageError
from hf_curate.gradients.directions import read_record
from hf_curate.hub.manifest import check_names, read_manifest
from hf_curate.rows import detect_columns
from hf_curate.runs.local import load_run
from hf_curate.scorers.align import AlignScorer
from hf_curate.scorers.gradalign import GradAlignScorer
from hf_curate.scorers.learnalign import LearnAlignScorer
from hf_curate.sources import load_source, parse

sys.path.append(str(Path(__file__).parent / "integrations"))
import online

GOLDEN = Path(__file__).parent / "goldens" / "errors.txt"
MODEL = hf_curate.demo.MODEL
GOOD = {"prompt": "45+58-32?\n", "completion": "45+58=3\n3-32=71\n#71"}


def grace(**options: Any) -> GraceScorer:
    return GraceScorer(MODEL, dtype="float32", **options)


def scored() -> Dataset:
    return pool(20, 4)


def saved(folder: Path) -> Path:
    """A dataset repo with the config `grace`, splits `train` and `dev`."""
    kept = select(scored(), Scorer(), 5)
    kept.save(folder / "repo", "grace")
    kept.save(folder / "repo", "grace", split="dev")
    return folder / "repo"


def with_manifest(folder: Path, text: str) -> Path:
    (folder / "train.manifest.json").write_text(text, "utf-8")
    return folder / "train.manifest.json"


def files(folder: Path, **content: bytes) -> Path:
    for name, data in content.items():
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def run_folder(folder: Path, scorer: Any = None) -> Path:
    score(Dataset.from_list([GOOD] * 2), scorer or grace(), out=folder / "run")
    return folder / "run"


def pickled(folder: Path) -> Path:
    place = folder / "old-model"
    place.mkdir()
    shutil.copy(MODEL / "config.json", place)
    (place / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return place


ROWS = solved(3)
ROLLOUTS = Dataset.from_list(ROWS)
SILENT = Dataset.from_list([{**row, "rewards": [float(row is ROWS[0])] * 4} for row in ROWS])
UNREADABLE = Dataset.from_list([{**row, "rewards": [1.0]} for row in ROWS])
OVERFLOWING = Dataset.from_list([ROWS[0], {**ROWS[1], "rewards": [1e200, 0.0, 0.0, 0.0]}])


def gradalign(seed: int = 0, shape: int = 48, **options: Any) -> GradAlignScorer:
    return GradAlignScorer(policy(seed=seed, intermediate_size=shape), tokenizer=tokenizer(), **options)


def learnalign(dim: int | None = None, **options: Any) -> LearnAlignScorer:
    return LearnAlignScorer(policy(), dim, tokenizer=tokenizer(), **options)


def direction(folder: Path) -> Path:
    gradalign(validation=ROLLOUTS).fit(ROLLOUTS, out=folder / "val.safetensors")
    return folder / "val.safetensors"


def mean_direction(folder: Path, dim: int | None = None) -> Path:
    learnalign(dim).fit(ROLLOUTS, out=folder / "mean")
    return folder / "mean"


def replaced(folder: Path) -> Any:
    """A scorer whose direction became another file."""
    scorer = gradalign(direction=direction(folder))
    (folder / "val.safetensors").unlink()
    gradalign(validation=SOME).fit(SOME, out=folder / "val.safetensors")
    return scorer


def with_tensors(folder: Path, dtype: torch.dtype) -> Path:
    """A direction with its record and other tensors."""
    file = direction(folder)
    tensors = {name: (2 * tensor).to(dtype) for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"hf_curate": json.dumps(read_record(file))})
    return file


SOME = ROLLOUTS.select([0])
CASES: dict[str, Callable[[Path], Any]] = {
    # columns
    "columns: none that fit": lambda _: detect_columns(["a", "b"]),
    "columns: text alone": lambda _: detect_columns(["text"]),
    "columns: no completion": lambda _: detect_columns(["prompt"]),
    "columns: two prompts": lambda _: detect_columns(["question", "problem", "solution"]),
    "columns: two completions": lambda _: detect_columns(["question", "solution", "output"]),
    "columns: a typing error": lambda _: detect_columns(["question", "solution"], prompt="qestion"),
    "columns: no such": lambda _: detect_columns(["question", "solution"], answer="zzz"),
    "columns: messages and prompt": lambda _: detect_columns(["messages", "q"], messages="messages", prompt="q"),
    "columns: one for both": lambda _: detect_columns(["q"], prompt="q", completion="q"),
    "columns: to rank by": lambda _: select(plain(), "scor", 1),
    "columns: not scored yet": lambda _: select(plain(), Scorer(), 1),
    "columns: of text": lambda _: select(plain(), "prompt", 1),
    "columns: source_row is there": lambda _: select(select(plain(), "score", 2).dataset, "score", 1),
    "columns: no group": lambda _: select(plain(), "score", 1, strategy="stratified", group="topic"),
    "columns: group of lists": lambda _: select(
        scored(), Scorer(), 1, strategy="stratified", group="grace_step_scores"
    ),
    "columns: no measure": lambda _: select(plain(), "score", 1, strategy="longest"),
    "columns: no measure of rollouts": lambda _: select(
        plain(rewards=[[0.0, 1.0]] * 4), "score", 1, strategy="lowest_loss"
    ),
    # budgets
    "budget: 0%": lambda _: parse_budget("0%"),
    "budget: 101%": lambda _: parse_budget("101%"),
    "budget: -3": lambda _: parse_budget(-3),
    "budget: abc": lambda _: parse_budget("abc"),
    "budget: a fraction": lambda _: parse_budget(0.2),
    "budget: 2.5 rows": lambda _: parse_budget("2.5 rows"),
    "budget: a decimal comma": lambda _: parse_budget("1,5%"),
    "budget: of many digits": lambda _: parse_budget(10**5000),
    "budget: more than scored": lambda _: select(scored(), Scorer(), "90%"),
    "budget: nothing scored": lambda _: select(plain([None, None]), "score", "50%"),
    "budget: of an empty dataset": lambda _: select(plain([]), "score", "50%"),
    "budget: missing": lambda _: select(plain(), "score"),
    "budget: tokens not known": lambda _: select(plain(), "score", "2M tokens"),
    "budget: tokens for no row": lambda _: select(scored(), Scorer(), "3 tokens"),
    # select
    "select: strategy": lambda _: select(plain(), "score", 1, strategy="best"),
    "select: threshold with a budget": lambda _: select(plain(), "score", 1, strategy="threshold", min_score=0.5),
    "select: threshold without min_score": lambda _: select(plain(), "score", strategy="threshold"),
    "select: threshold that nothing reaches": lambda _: select(plain(), "score", strategy="threshold", min_score=9),
    "select: min_score of nan": lambda _: select(plain(), "score", 1, min_score=float("nan")),
    "select: group without strata": lambda _: select(plain(), "score", 1, group="prompt"),
    "select: strata without group": lambda _: select(plain(), "score", 1, strategy="stratified"),
    "select: seed": lambda _: select(plain(), "score", 1, seed=-1),
    "select: DatasetDict": lambda _: select(DatasetDict(train=plain()), "score", 1),  # type: ignore[arg-type]
    "select: no scorer": lambda _: select(plain(), None, 1),  # type: ignore[arg-type]
    # settings
    "settings: alpha": lambda _: grace(alpha=1.5),
    "settings: history": lambda _: grace(history=("window", 0)),
    "settings: target": lambda _: grace(target="all"),
    "settings: proxy": lambda _: grace(proxy="fast"),
    "settings: max_length": lambda _: grace(max_length=1),
    "settings: batch_tokens": lambda _: grace(batch_tokens=0),
    "settings: dtype": lambda _: GraceScorer(MODEL, dtype="int8"),
    "settings: splitter": lambda _: grace(split_steps="("),
    "settings: two revisions": lambda _: GraceScorer("org/name@v1", revision="v2"),
    "settings: revision of a folder": lambda _: GraceScorer(MODEL, revision="main"),
    # models
    "model: no such folder": lambda _: GraceScorer("./no-such-model"),
    "model: not a model": lambda _: GraceScorer(3),
    "model: an empty folder": lambda folder: GraceScorer(folder),
    "model: pickles alone": lambda folder: GraceScorer(pickled(folder)),
    "model: on the Hub without network": lambda _: GraceScorer("no-such-org/no-such-model").identity,
    "model: remote code": lambda _: grace(model_kwargs={"trust_remote_code": True})(GOOD),
    "model: no chat template": lambda _: grace()(
        {"messages": [{"role": "user", "content": "2+3?"}, {"role": "assistant", "content": "2+3=5\n#5"}]}
    ),
    "model: peft": lambda _: raise_(MissingPackageError("peft", "peft", "the adapter 'mine'")),
    # scoring
    "score: an empty dataset": lambda _: score(Dataset.from_list([GOOD]).select([]), grace()),
    "score: DatasetDict": lambda _: score(DatasetDict(), grace()),  # type: ignore[arg-type]
    "score: every row failed": lambda _: score(
        Dataset.from_list([{**GOOD, "completion": c} for c in ("", "x")]), grace()
    ),
    "score: a folder in use": lambda folder: score(
        Dataset.from_list([GOOD]), grace(), out=files(folder, notes__txt=b"x")
    ),
    "score: a file": lambda folder: score(Dataset.from_list([GOOD]), grace(), out=files(folder, run=b"x") / "run"),
    "score: another run": lambda folder: score(
        Dataset.from_list([GOOD]), grace(alpha=0.5), out=changed_identity(run_folder(folder))
    ),
    "score: other rows": lambda folder: score(Dataset.from_list([GOOD]), grace(), out=run_folder(folder)),
    "score: other shards": lambda folder: score(
        Dataset.from_list([GOOD] * 2), grace(), out=run_folder(folder), shard_rows=1
    ),
    "score: strict": lambda _: score(Dataset.from_list([GOOD, {**GOOD, "completion": ""}]), grace(), strict=True),
    "score: shards without a folder": lambda _: score(Dataset.from_list([GOOD]), grace(), shard_rows=8),
    "run: no folder": lambda folder: load_run(folder / "nothing"),
    "run: not finished": lambda folder: load_run(files(folder, plan__json=b"{}")),
    "run: another schema": lambda folder: load_run(files(folder, run__json=b'{"schema": "hf_curate/run/9"}')),
    "run: incomplete": lambda folder: load_run(files(folder, run__json=b'{"schema": "hf_curate/run/1"}')),
    "run: scores are gone": lambda folder: load_run(without_scores(run_folder(folder))),
    # policy gradients
    "gradalign: neither": lambda _: gradalign(),
    "gradalign: both": lambda _: gradalign(validation=ROLLOUTS, direction="val.safetensors"),
    "gradalign: statistic": lambda _: gradalign(validation=ROLLOUTS, statistic="cos"),
    "gradalign: parameters": lambda _: gradalign(validation=ROLLOUTS, parameters=""),
    "gradalign: no such parameters": lambda _: gradalign(validation=ROLLOUTS, parameters="layers.7")(ROWS[0]),
    "gradalign: no adapter": lambda _: gradalign(validation=ROLLOUTS, parameters="adapters")(ROWS[0]),
    "gradalign: a list of rows": lambda _: gradalign(validation=ROWS),
    "learnalign: not fitted": lambda _: learnalign()(ROWS[0]),
    "learnalign: projection_dim": lambda _: learnalign(0),
    "learnalign: correct_above": lambda _: learnalign(correct_above="half"),
    "learnalign: seed": lambda _: learnalign(seed=-1),
    "fit: no signal": lambda _: gradalign(validation=SILENT)(ROWS[0]),
    "fit: no signal in the pool": lambda _: AlignScorer(policy(), tokenizer=tokenizer()).fit(SILENT),
    "fit: nothing readable": lambda _: learnalign().fit(UNREADABLE),
    "fit: an empty dataset": lambda _: learnalign().fit(ROLLOUTS.select([])),
    "fit: no rewards": lambda _: learnalign().fit(ROLLOUTS.remove_columns("rewards")),
    "fit: over another fit": lambda folder: learnalign().fit(SOME, out=mean_direction(folder)),
    "fit: over other features": lambda folder: learnalign(8).fit(SOME, out=mean_direction(folder, 8)),
    "fit: a place that cannot be written": lambda folder: learnalign().fit(
        SOME, out=files(folder, taken=b"") / "taken" / "mean"
    ),
    "fit: a gradient that overflows": lambda _: AlignScorer(policy(), tokenizer=tokenizer()).fit(OVERFLOWING),
    "direction: no file": lambda folder: gradalign(direction=folder / "val.safetensors"),
    "direction: of another model": lambda folder: gradalign(1, direction=direction(folder))(ROWS[0]),
    "direction: of other shapes": lambda folder: gradalign(shape=64, direction=direction(folder))(ROWS[0]),
    "direction: of other parameters": lambda folder: gradalign(direction=direction(folder), parameters="mlp")(ROWS[0]),
    "direction: of another kind": lambda folder: gradalign(direction=mean_direction(folder))(ROWS[0]),
    "direction: changed": lambda folder: replaced(folder)(ROWS[0]),
    "direction: tensors changed": lambda folder: gradalign(direction=with_tensors(folder, torch.float32))(ROWS[0]),
    "direction: of half precision": lambda folder: gradalign(direction=with_tensors(folder, torch.float16))(ROWS[0]),
    "direction: another mark": lambda folder: learnalign(direction=mean_direction(folder), correct_above=0)(ROWS[0]),
    "direction: another seed": lambda folder: learnalign(8, seed=1, direction=mean_direction(folder, 8))(ROWS[0]),
    "direction: no features": lambda folder: learnalign(8, direction=mean_direction(folder)),
    "direction: of another schema": lambda folder: gradalign(direction=other_schema(folder)),
    # selection while a policy trains
    "selector: no scorer": lambda _: selector("gradalign"),
    "selector: no dataset": lambda _: selector(AccuracyGreedyScorer(), ROWS),
    "selector: keep": lambda _: selector(keep=9),
    "selector: temperature": lambda _: selector(temperature=0),
    "selector: every": lambda _: selector(every=0),
    "selector: stop_early of a cosine": lambda _: selector(stop_early=0.95),
    "selector: stop_early of few rollouts": lambda _: selector(
        GradAlignScorer(validation=ROLLOUTS, statistic="t"), stop_early=0.95
    ),
    "selector: reuse_rollouts of everything": lambda _: selector(keep="100%", reuse_rollouts=True),
    "selector: the state of another": lambda _: selector().load_state(selector(every=3).state(), ""),
    "selector: a history of another state": lambda _: selector().load_state(selector().state(), "{}\n"),
    "selector: no state": lambda _: selector().load_state({}, ""),
    "selector: nothing used": lambda _: selector().history_dataset(),
    "online: max_steps": lambda folder: online.trainer(folder, selector(), max_steps=-1),
    "online: no selector": lambda folder: online.trainer(folder, AccuracyGreedyScorer()),  # type: ignore[arg-type]
    "online: no prompts": lambda folder: online.trainer(
        folder, selector(data=ROLLOUTS.rename_column("prompt", "question"))
    ),
    "online: a small pool": lambda folder: online.trainer(folder, selector(), per_device_train_batch_size=16),
    "online: a scorer with a model": lambda folder: online.trainer(
        folder, selector(AlignScorer(policy(), tokenizer=tokenizer()))
    ),
    "online: a scorer with rollouts": lambda folder: online.trainer(
        folder, selector(AlignScorer(rollouts=Rollouts(MODEL, "exact")))
    ),
    "online: projected features": lambda folder: online.trainer(folder, selector(LearnAlignScorer(projection_dim=4))),
    "online: other responses": lambda folder: online.trainer(folder, selector(reuse_rollouts=True)),
    "online: a reward that raises": lambda folder: online.trained(folder, selector(), rewards=raises),
    "online: no reward": lambda folder: online.trained(
        folder, selector(AccuracyGreedyScorer()), rewards=lambda completions, **_: [None] * len(completions)
    ),
    "online: a scorer without a model": lambda _: LearnAlignScorer()(ROWS[0]),
    # names
    "config name": lambda _: check_names("a/b", "train"),
    "config name: endless": lambda _: check_names("x" * 300, "train"),
    "split name": lambda _: check_names("grace", "a-b"),
    # sources
    "source: not readable": lambda _: parse("a/b/c"),
    "source: missing file": lambda _: load_source("rows.jsonl"),
    "source: csv": lambda folder: load_source(str(files(folder, rows__csv=b"a,b") / "rows.csv")),
    "source: empty file": lambda folder: load_source(str(files(folder, rows__jsonl=b"") / "rows.jsonl")),
    "source: broken file": lambda folder: load_source(str(files(folder, rows__parquet=b"PAR1") / "rows.parquet")),
    "source: folder": lambda folder: load_source(str(saved(folder))),
    "source: on the Hub without network": lambda _: load_source("no-such-org/no-such-set"),
    # saving and loading
    "save: the folder is a file": lambda folder: select(plain(), "score", 1).save(files(folder, x=b"") / "x", "c"),
    "save: README.md is not UTF-8": lambda folder: select(plain(), "score", 1).save(readme(folder, b"\xe9"), "c"),
    "save: front matter is a list": lambda folder: select(plain(), "score", 1).save(
        readme(folder, b"---\n[1]\n---\n"), "c"
    ),
    "load: no folder": lambda _: load_curated("no-such-folder", "c"),
    "load: another config": lambda folder: load_curated(saved(folder), "random"),
    "load: which split": lambda folder: load_curated(saved(folder), "grace"),
    "load: another split": lambda folder: load_curated(saved(folder), "grace", split="test"),
    "load: files are gone": lambda folder: load_curated(without_files(saved(folder)), "grace", split="dev"),
    "report: rows": lambda folder: write_report(saved(folder), "grace", rows=0),
    "report: no such folder": lambda folder: write_report(folder / "repo"),
    "load: no repo": lambda _: load_curated("no-such-org/none", "grace"),
    "report: which config of a repo": lambda _: write_report("me/repo"),
    "report: a budget of a config": lambda folder: write_report(saved(folder), "grace", budget="10%"),
    "report: the file cannot be written": lambda folder: write_report(
        saved(folder), "grace", split="train", out=folder / "no" / "report.html"
    ),
    "verify: rows": lambda folder: verify_curated(saved(folder), "grace", rows=-1),
    "verify: a model beside a commit": lambda folder: verify_curated(
        saved(folder), "grace", split="train", model=hf_curate.demo.MODEL
    ),
    "verify: other weights": lambda folder: verify_curated(of_other_weights(folder), "c", model=hf_curate.demo.MODEL),
    "verify: the source is not there": lambda folder: verify_curated(
        saved(folder), "grace", split="train", source="missing.parquet"
    ),
    "diff: which config": lambda folder: diff_curated(str(saved(folder)), "curated:grace"),
    "training: empty": lambda _: select(plain(), "score", 1).with_training({}),
    "training: no JSON": lambda _: select(plain(), "score", 1).with_training({"accuracy": float("nan")}),
    "manifest: not JSON": lambda folder: read_manifest(with_manifest(folder, "{")),
    "manifest: missing": lambda folder: read_manifest(folder / "train.manifest.json"),
    "manifest: another schema": lambda folder: read_manifest(with_manifest(folder, '{"schema": "other/2"}')),
    "manifest: incomplete": lambda folder: read_manifest(with_manifest(folder, '{"schema": "hf_curate/manifest/1"}')),
}


def of_other_weights(folder: Path) -> Path:
    """A config whose scores came from a folder of other weights than the demo's."""
    picked = select(pool(), Scorer(), "20%")
    picked.manifest["model"] = {**picked.manifest["model"], "id": "mine", "sha": None, "digest": "0" * 64}
    return picked.save(folder / "other", "c")


def other_schema(folder: Path) -> Path:
    save_file({"x": torch.zeros(1)}, folder / "val.safetensors", {"hf_curate": '{"schema": "hf_curate/direction/9"}'})
    return folder / "val.safetensors"


def raise_(error: Exception) -> None:
    raise error


def selector(scorer: Any = None, data: Any = ROLLOUTS, **others: Any) -> OnlineSelector:
    given: dict[str, Any] = {"chunk": 3, "keep": 2, "every": 2, "rollouts": 4}
    return OnlineSelector(scorer or GradAlignScorer(validation=ROLLOUTS), data, **(given | others))


def raises(completions: list[str], **_: Any) -> list[float]:
    raise RuntimeError("the judge is out")


def readme(folder: Path, content: bytes) -> Path:
    (folder / "repo").mkdir()
    (folder / "repo" / "README.md").write_bytes(content)
    return folder / "repo"


def changed_identity(folder: Path) -> Path:
    """The run as that of a scorer whose identity does not change with our code."""
    record = json.loads((folder / "run.json").read_text("utf-8"))
    record["scorer"]["identity"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(record), "utf-8")
    return folder


def without_scores(folder: Path) -> Path:
    (folder / "scored.parquet").unlink()
    return folder


def without_files(folder: Path) -> Path:
    for path in folder.rglob("dev-*.parquet"):
        path.unlink()
    return folder


def text_of(call: Callable[[Path], Any], folder: Path) -> str:
    """The class and words of the error, without the numbers in them that change with our code."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(CurateError) as caught:
            call(folder)
    text = re.sub(r"now [0-9a-f]{12}", "now <identity>", f"{type(caught.value).__name__}: {caught.value}")
    text = re.sub(r"another fit \([0-9a-f]{12}", "another fit (<key>", text)
    return re.sub(r"\([0-9a-f]{12}\)", "(<digest>)", text)


def pinned() -> dict[str, str]:
    blocks = GOLDEN.read_text("utf-8").split("\n\n== ")
    blocks[0] = blocks[0].removeprefix("== ")
    return {label: text.rstrip("\n") for label, _, text in (block.partition("\n") for block in blocks)}


def test_every_text_is_pinned_and_none_is_left_over(tmp_path: Path) -> None:
    if os.environ.get("HF_CURATE_UPDATE_GOLDENS"):
        texts = {}
        for number, (label, call) in enumerate(CASES.items()):
            (tmp_path / f"{number}" / "place").mkdir(parents=True)
            texts[label] = text_of(call, tmp_path / f"{number}" / "place")
        GOLDEN.write_text("\n\n".join(f"== {label}\n{text}" for label, text in texts.items()) + "\n", "utf-8")
    assert list(pinned()) == list(CASES)


@pytest.mark.parametrize("label", CASES)
def test_the_text_is_the_pinned_one(label: str, tmp_path: Path) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    text = text_of(CASES[label], folder)
    assert str(tmp_path) not in text
    assert text == pinned()[label]
