"""hf-curate: score, select, inspect in a row; errors as one line; help that is pinned and quick."""

from __future__ import annotations

import argparse
import inspect
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import warm
from datasets import load_dataset

import hf_curate.demo
from hf_curate import AccuracyGreedyScorer, GradAlignScorer, cli, load_curated
from hf_curate.demo import world
from hf_curate.scoring import KINDS, OPTIONS

GOLDEN = Path(__file__).parent / "goldens" / "cli_help.txt"
COMMANDS = ("", "rollouts", "score", "select", "push", "run", "inspect", "report", "verify", "diff", "demo")


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hf_curate.cli", *map(str, arguments)]
    return warm.run(command, timeout=120, **options)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 of the demo's traces and two rows that cannot be scored."""
    folder = tmp_path_factory.mktemp("cli") / "MARKER"
    folder.mkdir()
    rows = hf_curate.demo.load_traces().select(range(40)).to_list()
    rows[3]["completion"], rows[7]["completion"] = "", "no answer here"
    (folder / "traces.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder


@pytest.fixture(scope="module")
def scored(place: Path) -> subprocess.CompletedProcess[str]:
    model = ["--model", hf_curate.demo.MODEL, "--dtype", "float32"]
    return run("score", place / "traces.jsonl", *model, "--out", place / "run")


def write_rollouts(path: Path, count: int, seed: int) -> list[dict[str, Any]]:
    """Problems with four responses each, of which 0 to 4 are right in turn; the last row's rewards are cut short."""
    rng, rows = random.Random(seed), []
    for number, problem in enumerate(world.draw_problems(count, rng, "held_out")):
        right = number % 5
        texts = [world.clean(problem)] * right + [world.propagated(problem, rng) for _ in range(4 - right)]
        rows.append({"prompt": problem.prompt, "responses": texts, "rewards": [1.0] * right + [0.0] * (4 - right)})
    rows[-1]["rewards"] = rows[-1]["rewards"][:3]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return rows


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pool of 13 problems and 6 trusted ones."""
    folder = tmp_path_factory.mktemp("rollouts")
    write_rollouts(folder / "pool.jsonl", 13, seed=0)
    write_rollouts(folder / "trusted.jsonl", 6, seed=1)
    return folder


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """`main` is for a process of its own: it sets how warnings are shown."""
    import logging
    import warnings

    shown, level = warnings.showwarning, logging.getLogger("hf_curate").level
    yield
    warnings.showwarning = shown
    logging.getLogger("hf_curate").setLevel(level)


def test_score_says_how_many_rows_and_what_comes_next(scored: subprocess.CompletedProcess[str], place: Path) -> None:
    assert scored.returncode == 0, scored.stderr
    assert scored.stdout.splitlines()[0] == f"38 of 40 rows scored -> {place / 'run'}"
    assert scored.stdout.splitlines()[1].startswith("next: hf-curate select ")
    assert "hf-curate: warning: GRACE's authors score with a model that was warmed up" in scored.stderr
    assert "2 of 40 rows have no score:\n  1 x empty trace" in scored.stderr
    assert "\n  1 x no answer: " in scored.stderr
    record = (place / "run" / "run.json").read_text("utf-8")
    assert "MARKER" not in record
    assert json.loads(record)["source"] == "local file traces.jsonl"


def test_strict_is_exit_code_1_with_the_summary_after_everything_is_kept(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    options = [*POLICY[:2], "--out", str(tmp_path / "run"), "--shard-rows", "16"]
    for _ in ("scored", "there already"):
        assert cli.main(["score", str(place / "traces.jsonl"), "--scorer", "longest", *options, "--strict"]) == 1
        assert capsys.readouterr().out.splitlines()[0] == f"38 of 40 rows scored -> {tmp_path / 'run'}"
        assert "2 of 40 rows have no score:" in caplog.text
        caplog.clear()
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["shard_rows"] == 16
    assert len(list((tmp_path / "run" / "parts").glob("*.parquet"))) == 3
    assert cli.main(["score", str(place / "traces.jsonl"), "--scorer", "longest", *options]) == 0
    none = ["--scorer", "random", "--shard-rows", "0", "--out", str(tmp_path / "none")]
    assert cli.main(["score", str(place / "traces.jsonl"), *none]) == 2
    assert "--shard-rows 0 must be a whole number from 1 on" in capsys.readouterr().err


def test_strict_is_exit_code_0_where_every_row_has_a_score(
    rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = rollouts / "pool.jsonl"
    main_says(capsys, "score", pool, "--scorer", "accuracy-greedy", "--strict", "--out", tmp_path / "run")


def test_select_writes_a_config_that_loads(
    scored: subprocess.CompletedProcess[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = place / "curated-by-cli"
    code = cli.main(["select", str(place / "run"), "--budget", "20%", "--out", str(out), "--config", "grace-20pct"])
    assert code == 0
    assert capsys.readouterr().out.splitlines()[0] == (f"Selection(8 of 40 rows by GRACE, budget 20%) -> {out}")
    assert len(load_dataset(str(out), "grace-20pct", split="train")) == 8  # type: ignore[arg-type]
    again = load_curated(out, "grace-20pct")
    assert again.problems == []
    assert again.manifest["source"]["id"] == "local file traces.jsonl"
    assert again.manifest["rows"]["failed"] == {"empty trace": 1, "no answer": 1}
    assert "MARKER" not in json.dumps(again.manifest) + (out / "README.md").read_text("utf-8")
    assert cli.main(["inspect", str(out)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].startswith("grace-20pct: 8 of 40 rows (20.0 %) of local file traces.jsonl")
    assert shown[1:3] == ["data and manifest agree", "rows: 40 in, 38 scored, 8 kept"]
    assert shown[-1] == f"the whole manifest: hf-curate inspect {out} --config grace-20pct --json"
    assert cli.main(["inspect", str(out), "--config", "grace-20pct", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == again.manifest


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        (["--budget", "5"], 5),
        (["--budget", "5 rows", "--strategy", "random", "--seed", "3"], 5),
        (["--budget", "10%", "--strategy", "stratified", "--group", "damage"], 4),
        (["--strategy", "threshold", "--min-score", "-9"], 38),
        (["--budget", "3", "--split", "dev", "--source", "org/name@v1:main/train"], 3),
    ],
)
def test_every_way_to_select_has_its_options(
    scored: subprocess.CompletedProcess[str],
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    rows: int,
) -> None:
    command = ["select", str(place / "run"), "--out", str(tmp_path), "--config", "c", *options]
    assert "in place of" not in main_says(capsys, *command)[0]
    assert len(load_curated(tmp_path, "c")) == rows
    assert main_says(capsys, *command)[0].endswith(f" -> {tmp_path}, in place of the config that was there")


def test_inspect_shows_a_source_and_a_run(
    scored: subprocess.CompletedProcess[str], place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["inspect", str(place / "traces.jsonl"), "--rows", "4"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("local file traces.jsonl: 40 rows")
    assert "row 3: cannot be scored (empty trace" in text
    assert cli.main(["inspect", str(place / "run")]) == 0
    assert "38 scored" in capsys.readouterr().out


# -- rows with rollouts -----------------------------------------------------------------------------------------------


POLICY = ["--model", str(hf_curate.demo.MODEL), "--dtype", "float32"]


def main_says(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[str]:
    """The lines that a command prints; it must succeed."""
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out.splitlines()


def test_gradalign_from_scores_to_a_saved_config(
    rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, trusted, out = rollouts / "pool.jsonl", rollouts / "trusted.jsonl", tmp_path / "run"
    options = ["--scorer", "gradalign", "--validation", trusted, *POLICY]
    said = main_says(capsys, "score", pool, *options, "--out", out)
    assert said[0] == f"12 of 13 rows scored -> {out}"
    assert said[1] == "5 rows without signal (score 0)"  # rows 0, 4, 5, 9 and 10
    assert said[2] == f"next: hf-curate select {out} --budget 20% --out curated --config gradalign-run-20pct"
    scores = load_dataset("parquet", data_files=str(out / "scored.parquet"), split="train")["gradalign_score"]
    assert [k for k, value in enumerate(scores) if value == 0.0] == [0, 4, 5, 9, 10]
    validation = load_dataset("json", data_files=str(trusted), split="train")
    wanted = GradAlignScorer(hf_curate.demo.MODEL, validation=validation, dtype="float32")
    rows = load_dataset("json", data_files=str(pool), split="train").map(wanted, batched=True)
    assert rows["gradalign_score"] == scores

    shown = "\n".join(main_says(capsys, "inspect", out))
    assert shown.startswith("GradAlign with arithmetic-0.8m, 13 rows of local file pool.jsonl\n")
    assert "direction: validation gradient of 6 problems, 3 with signal" in shown
    direction = json.loads((out / "run.json").read_text("utf-8"))["scorer"]["direction"]
    assert direction["source"] == "local file trusted.jsonl"
    assert "gradalign_score: 12 scored" in shown
    assert "without signal (score 0): 5" in shown
    assert "not scored: 1 x rewards and responses differ" in shown

    curated = tmp_path / "curated"
    said = main_says(capsys, "select", out, "--budget", "20%", "--out", curated, "--config", "gradalign-20pct")
    assert said[0] == f"Selection(3 of 13 rows by GradAlign, budget 20%) -> {curated}"
    assert load_curated(curated, "gradalign-20pct").problems == []
    assert "data and manifest agree" in main_says(capsys, "inspect", curated)


@pytest.mark.parametrize(
    ("scorer", "more"),
    [
        ("learnalign", ["--parameters", "mlp.down_proj"]),
        ("learnalign", ["--projection-dim", "64", "--seed", "3", "--parameters", "mlp.down_proj"]),
        ("align", ["--parameters", "mlp.down_proj"]),
    ],
    ids=["exact", "projected", "align"],
)
def test_a_pool_is_fitted_on_itself_and_its_direction_can_be_kept(
    rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scorer: str, more: list[str]
) -> None:
    options = ["score", rollouts / "pool.jsonl", "--scorer", scorer, *POLICY, *more]
    kept = tmp_path / "kept.safetensors"
    said = main_says(capsys, *options, "--out", tmp_path / "one", "--save-direction", kept)
    assert said[:2] == [f"12 of 13 rows scored -> {tmp_path / 'one'}", "5 rows without signal (score 0)"]
    assert said[2].endswith(f"--config {scorer}-one-20pct")
    main_says(capsys, *options, "--out", tmp_path / "two")
    main_says(capsys, *options, "--out", tmp_path / "three", "--direction", kept)
    columns = [
        load_dataset("parquet", data_files=str(tmp_path / name / "scored.parquet"), split="train")[f"{scorer}_score"]
        for name in ("one", "two", "three")
    ]
    assert columns[0] == columns[1] == columns[2]
    assert sum(value not in (None, 0.0) for value in columns[0]) == 7
    assert f"{scorer}_score: 12 scored" in "\n".join(main_says(capsys, "inspect", tmp_path / "one"))


def test_a_baseline_without_a_model_needs_none(
    rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, out = rollouts / "pool.jsonl", tmp_path / "run"
    said = main_says(capsys, "score", pool, "--scorer", "accuracy-greedy", "--correct-above", "0.9", "--out", out)
    assert said == [
        f"13 of 13 rows scored -> {out}",
        f"next: hf-curate select {out} --budget 20% --out curated --config accuracy-greedy-run-20pct",
    ]
    record = json.loads((out / "run.json").read_text("utf-8"))["scorer"]
    assert record["identity"] == AccuracyGreedyScorer(correct_above=0.9).identity
    shown = main_says(capsys, "inspect", out)
    assert shown[0] == "Accuracy greedy, 13 rows of local file pool.jsonl"
    assert shown[1] == f"no model; identity {record['identity'][:12]}"
    said = main_says(capsys, "select", out, "--budget", "3", "--out", tmp_path / "c", "--config", "greedy")
    assert load_curated(tmp_path / "c", "greedy").dataset["source_row"] == [2, 7, 12]  # 2 of 4, 2 of 4, 2 of 3


@pytest.mark.parametrize(
    ("scorer", "more"),
    [
        ("pass-rate-band", ["--low", "0.3", "--high", "0.7"]),
        ("random", ["--seed", "5"]),
        ("longest", POLICY[:2]),
        ("most-steps", [*POLICY[:2], "--split-steps", "lines"]),
        ("lowest-loss", POLICY),
        ("highest-loss", [*POLICY, "--batch-tokens", "64"]),
    ],
)
def test_every_baseline_can_be_scored_with_and_inspected(
    rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], scorer: str, more: list[str]
) -> None:
    out = tmp_path / "run"
    said = main_says(capsys, "score", rollouts / "pool.jsonl", "--scorer", scorer, *more, "--out", out)
    count = 13 if scorer in ("pass-rate-band", "random") else 12
    assert len(said) == 2
    assert said[0] == f"{count} of 13 rows scored -> {out}"
    assert said[1] == f"next: hf-curate select {out} --budget 20% --out curated --config {scorer}-run-20pct"
    assert f": {count} scored; 0%" in "\n".join(main_says(capsys, "inspect", out))


def test_inspect_shows_rollouts_and_whether_they_have_a_signal(
    rollouts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "\n".join(main_says(capsys, "inspect", rollouts / "pool.jsonl", "--rows", "2"))
    assert "columns: prompt=prompt, responses=responses, rewards=rewards (by prompt)" in said
    assert "row 0: 4 responses, no signal: all rewards are equal" in said
    assert "row 1: 4 responses, signal\n" in said
    assert "  rewards     1, 0, 0, 0\n" in said
    assert "of the first 13 rows 12 can be read; row 12: cannot be scored (rewards and responses differ" in said
    assert "\n7 of them have a signal: rewards that differ\n\nnext: hf-curate score " in said
    assert said.endswith(" --scorer gradalign --validation TRUSTED --model MODEL --out runs/gradalign")
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(rollouts / "pool.jsonl"), "--alpha", "1"])


def test_rows_without_signal_are_counted_by_what_a_zero_means(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rollouts(tmp_path / "pool.jsonl", 5, seed=0)[1:4]  # 1, 2 and 3 of 4 right
    pool, options = tmp_path / "pool.jsonl", ["--scorer", "learnalign", "--parameters", "mlp.down_proj", *POLICY]

    def said(number: int, rewards: list[float]) -> list[str]:
        given = [*rows, {**rows[0], "rewards": rewards}]
        pool.write_text("".join(json.dumps(row) + "\n" for row in given), "utf-8")
        return main_says(capsys, "score", pool, *options, "--out", tmp_path / str(number))

    assert said(1, [1.0, 1.0, 1.0, 1.0 + 1e-9])[1] == "1 row without signal (score 0)"
    assert said(2, [0.6, 0.7, 0.8, 0.9])[1].startswith("next: ")  # V = 0, and yet a signal
    assert "without signal" not in "\n".join(main_says(capsys, "inspect", tmp_path / "2"))
    assert "without signal (score 0): 1" in main_says(capsys, "inspect", tmp_path / "1")


def test_a_validation_set_that_is_the_pool_is_warned_of_and_a_part_of_it_is_not(
    rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool, part = rollouts / "pool.jsonl", tmp_path / "part.jsonl"
    part.write_text("".join(pool.read_text("utf-8").splitlines(keepends=True)[:6]), "utf-8")
    options = ["--scorer", "gradalign", "--parameters", "mlp.down_proj", *POLICY]
    for number, (validation, warned) in enumerate([(pool, 1), (part, 0)]):
        out = str(tmp_path / str(number))
        code = cli.main(["score", str(pool), *options, "--validation", str(validation), "--out", out])
        assert code == 0
        assert capsys.readouterr().err.count("holds the same rows as the pool (local file pool.jsonl)") == warned


def test_a_folder_in_use_is_told_before_the_fit(
    rollouts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GradAlignScorer, "fit", lambda *_, **__: pytest.fail("it was fitted"))
    (tmp_path / "notes.txt").write_text("mine")
    pool, trusted = str(rollouts / "pool.jsonl"), str(rollouts / "trusted.jsonl")
    arguments = ["score", pool, "--scorer", "gradalign", "--validation", trusted, *POLICY, "--out", str(tmp_path)]
    assert cli.main(arguments) == 2
    assert "holds other files and no run.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "--validation: no rows in '{trusted}'"),
        ('{"prompt": "a", "responses": ["b"]}', "of the validation set: no rewards found in the columns"),
        (
            '{"prompt": "a", "responses": ["b"], "rewards": []}',
            "of the validation set: none of the 1 rows to fit on can be read:",
        ),
        (
            '{"prompt": "1+1?", "responses": ["2"], "rewards": [1.0]}',
            "of the validation set: the validation gradient has no signal",
        ),
        (None, "--validation: there is no file '{trusted}'"),
    ],
)
def test_what_is_wrong_with_the_validation_set_is_said_of_it(
    rollouts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, words: str
) -> None:
    trusted = tmp_path / "trusted.jsonl"
    if content is not None:
        trusted.write_text(content, "utf-8")
    options = ["--scorer", "gradalign", *POLICY, "--validation", str(trusted), "--out", str(tmp_path / "run")]
    assert cli.main(["score", str(rollouts / "pool.jsonl"), *options]) == 2
    assert words.replace("{trusted}", str(trusted)) in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


CHAT = [{"role": "user", "content": "1+1?"}]
ROLLED = {"responses": ["2", "3"], "rewards": [1.0, 0.0]}


@pytest.mark.parametrize(
    ("row", "more", "refused"),
    [
        ({"prompt": "1+1?", **ROLLED}, [], True),
        ({"prompt": "1+1?", **ROLLED}, ["--model", "m", "--alpha", "0.5"], True),
        ({"messages": CHAT, **ROLLED}, [], True),
        ({"prompt": "1+1?", "out": ["2"], "r": [1.0]}, ["--responses", "out", "--rewards", "r"], True),
        ({"messages": [*CHAT, {"role": "assistant", "content": "1+1=2\n#2"}], **ROLLED}, [], False),
        ({"prompt": "1+1?", "completion": "1+1=2\n#2", **ROLLED}, [], False),
        ({"prompt": "1+1?", "completion": "1+1=2\n#2"}, [], False),
    ],
)
def test_rollouts_without_a_scorer_are_told_which_scorers_there_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: dict[str, Any], more: list[str], refused: bool
) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    assert cli.main(["score", str(tmp_path / "rows.jsonl"), *more, "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert ("the rows of local file rows.jsonl hold rollouts and no trace" in error) == refused
    assert ("--scorer gradalign (with --validation SOURCE) or --scorer learnalign" in error) == refused
    assert refused or "--scorer grace reads rows with a model" in error


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gradalgin", "there is no scorer 'gradalgin': did you mean gradalign?"),
        ("Accuracy_Greedy", "did you mean accuracy-greedy?"),
        ("xyz", "choose from grace, learnalign, "),
    ],
)
def test_an_unknown_scorer_is_told_the_nearest(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["score", "x.jsonl", "--model", "m", "--out", "o", "--scorer", name])
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_every_option_reaches_a_scorer_that_takes_it() -> None:
    for kind in KINDS.values():
        scorer = getattr(import_module(f"hf_curate.scorers.{kind.module}"), kind.name)
        takes = set(inspect.signature(scorer.__init__).parameters)
        assert set(kind.options) - {"save_direction"} <= takes
        assert set(kind.fixed) <= takes
        left = takes - set(kind.options) - set(kind.fixed) - {"self", "model_kwargs", "rollouts"}
        assert not left, f"{kind.name}: no option for {left}"
    known = {action.dest: action.default for action in commands()["score"]._actions}
    assert set(OPTIONS) == set(known) - {
        "help",
        "source",
        "out",
        "overwrite",
        "shard_rows",
        "workers",
        "threads",
        "ray_address",
        "engine",
        "dry_run",
        "streaming",
        "strict",
        "scorer",
    }
    assert all(known[option] is None for option in OPTIONS)


GRAD = ["score", "POOL", "--scorer", "gradalign", *POLICY, "--out", "x"]
LEARN = ["score", "POOL", "--scorer", "learnalign", *POLICY, "--out", "x"]
GRACE = ["score", "POOL", "--scorer", "grace", "--out", "x"]
GREEDY = ["score", "POOL", "--scorer", "accuracy-greedy", "--out", "x"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            [*GRAD, "--validation", "POOL", "--alpha", "0.5"],
            "--scorer is gradalign. --alpha belongs to grace: drop it, or choose --scorer grace.",
        ),
        (
            [*GREEDY, "--statistic", "t", "--low", "0.1"],
            "drop it, or choose --scorer gradalign. --low belongs to pass-rate-band: drop it, or choose",
        ),
        ([*GREEDY, "--model", "m"], "--model belongs to grace, learnalign, gradalign, align, longest, most-steps, "),
        ([*GREEDY, "--keep-gram"], "--keep-gram belongs to grace"),
        ([*GRACE, "--model", "m", "--rewards", "r"], "--scorer is grace. --rewards belongs to"),
        ([*GRACE, "--model", "m", "--seed", "0"], "--seed belongs to learnalign, random: drop"),
        (["score", "POOL", "--scorer", "longest", *POLICY, "--out", "x"], "--dtype belongs to grace, learnalign,"),
        (GRACE, "--scorer grace reads rows with a model: --model org/name"),
        (["score", "POOL", "--scorer", "longest", "--out", "x"], "--scorer longest reads rows with a model"),
        (GRAD, "--scorer gradalign needs --validation SOURCE or --direction FILE, and neither was given"),
        ([*GRAD, "--validation", "POOL", "--direction", "f"], "and both were given"),
        ([*GRAD, "--validation", "no.jsonl"], "there is no file 'no.jsonl'"),
        ([*GRAD, "--direction", "f", "--save-direction", "g"], "nothing for --save-direction"),
        ([*GRAD, "--direction", "no.safetensors"], "no.safetensors"),
        ([*GRAD, "--validation", "POOL", "--statistic", "z"], "--statistic z is not one of"),
        ([*LEARN, "--seed", "1"], "--seed is that of the projection: give --projection-dim with it"),
        ([*LEARN, "--projection-dim", "0"], "--projection-dim 0"),
        ([*GREEDY, "--rewards", "reward"], "Did you mean --rewards rewards?"),
        (["score", "POOL", "--scorer", "random", "--seed", "-1", "--out", "x"], "--seed -1"),
        (
            ["inspect", "POOL", "--rewards", "rewards", "--completion", "responses"],
            "would be rollouts and --completion",
        ),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_an_option_of_another_scorer_or_one_that_lacks_is_an_error(
    rollouts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    pool = str(rollouts / "pool.jsonl")
    assert cli.main([pool if argument == "POOL" else argument for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert words in next(line for line in err.splitlines() if line.startswith("hf-curate: error: "))
    assert out == ""
    assert list(tmp_path.iterdir()) == []


# -- errors and help --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["score", "no.jsonl", "--model", "MODEL", "--out", "x"], "there is no file 'no.jsonl'"),
        (["score", "TRACES", "--model", "no-such-folder/", "--out", "x"], "neither a folder that exists nor a Hub id"),
        (["score", "TRACES", "--model", "MODEL", "--out", "x", "--alpha", "7"], "--alpha 7.0"),
        (
            ["score", "TRACES", "--model", "MODEL", "--out", "x", "--history", "window:0"],
            "history=('window', 0) must be",
        ),
        (["score", "TRACES", "--model", "MODEL", "--out", "x", "--history", "past"], "--history past"),
        (["score", "TRACES", "--model", "MODEL", "--out", "x", "--prompt", "promt"], "Did you mean --prompt prompt?"),
        (["score", "TRACES", "--model", "MODEL", "--out", "TRACES"], "is a file, and --out takes a folder"),
        (
            ["score", "TRACES", "--model", "MODEL", "--out", "RUN", "--alpha", "0.5"],
            "give another folder, or --overwrite.",
        ),
        (["select", "PLACE", "--budget", "5", "--out", "x", "--config", "c"], "not a run folder"),
        (["select", "RUN", "--budget", "0%", "--out", "x", "--config", "c"], "out of range"),
        (["select", "RUN", "--out", "x", "--config", "c"], "needs a budget"),
        (["select", "RUN", "--budget", "5", "--out", "x", "--config", "a/b"], "config name 'a/b' cannot be used"),
        (["select", "RUN", "--budget", "5", "--out", "x", "--config", "c", "--split", "a-b"], "split name 'a-b'"),
        (["select", "RUN", "--budget", "5", "--out", "x", "--config", "c", "--seed", "-1"], "--seed -1"),
        (["select", "RUN", "--budget", "5", "--out", "x", "--config", "c", "--strategy", "best"], "--strategy best"),
        (["select", "RUN", "--budget", "5", "--out", "TRACES", "--config", "c"], "cannot be written"),
        (["inspect", "PLACE"], "neither a run nor a curated config"),
        (["inspect", "PLACE", "--config", "c"], "there is no curated config 'c'"),
        (["inspect", "TRACES", "--json"], "traces.jsonl' is no folder with one"),
        (["inspect", "RUN", "--json"], "--json shows the manifest of a saved config, and '"),
        (["inspect", "no such thing"], "cannot be read"),
        (["inspect", "org/no-such-set"], "cannot be loaded"),
        (["demo", "--out", "PLACE"], "not the folder of an earlier demo"),
        (["demo", "--out", "TRACES"], "not the folder of an earlier demo"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_an_error_is_one_message_on_stderr_and_exit_code_2(
    scored: subprocess.CompletedProcess[str],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    known = {"MODEL": hf_curate.demo.MODEL, "TRACES": place / "traces.jsonl", "RUN": place / "run", "PLACE": place}
    before = sorted(place.rglob("*"))
    assert cli.main([str(known.get(argument, argument)) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    line = next(line for line in err.splitlines() if line.startswith("hf-curate: error: "))
    assert words in line
    assert "Traceback" not in err
    assert out == ""
    assert list(tmp_path.iterdir()) == []
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["push"],
        ["score"],
        ["select", "x"],
        ["score", "x", "--model", "m", "--out", "o", "--history", "window:x"],
        ["score", "x", "--model", "m", "--out", "o", "--alpha", "x"],
        ["score", "x", "--model", "m", "--out", "o", "--scorer", "gradalgin"],
    ],
)
def test_wrong_usage_is_argparse_s_exit_2_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("usage: hf-curate")


def commands() -> dict[str, argparse.ArgumentParser]:
    """The parser of each command."""
    choices = cli._parser()._actions[-1].choices
    assert choices is not None
    return dict(choices)  # type: ignore[call-overload]


def help_text() -> str:
    """The help of every command at 100 columns, without what differs between versions of Python."""
    texts = []
    for command in COMMANDS:
        done = run(*command.split(), "--help", env={**os.environ, "COLUMNS": "100", "NO_COLOR": "1"})
        assert done.returncode == 0
        assert done.stderr == ""
        texts.append(f"$ hf-curate {command} --help\n".replace("  ", " ") + done.stdout)
    return re.sub(r"-(\w) ([A-Z]+), --", r"-\1, --", "\n".join(texts))


def test_the_help_is_the_pinned_one() -> None:
    text = help_text()
    if os.environ.get("HF_CURATE_UPDATE_GOLDENS"):
        GOLDEN.write_text(text, "utf-8")
    assert text == GOLDEN.read_text("utf-8")


def test_every_option_of_the_command_line_is_explained() -> None:
    assert {name for name in COMMANDS if name} == set(commands())
    for name, command in commands().items():
        assert all(action.help for action in command._actions), name


@pytest.mark.parametrize(
    ("typed", "near"),
    [
        (
            ["select", "runs/x", "--out", "c", "--config", "a", "--budgt", "5%", "--sedd=1"],
            "; did you mean --budget, --seed?",
        ),
        (["demo", "-x"], ""),
    ],
)
def test_an_option_that_is_none_is_told_the_nearest(
    typed: list[str], near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(typed)
    assert ended.value.code == 2
    *usage, told = capsys.readouterr().err.splitlines()
    assert usage[0].startswith(f"usage: hf-curate {typed[0]} ")
    wrong = typed[-1:] if typed[0] == "demo" else typed[-3:]
    assert told == f"hf-curate {typed[0]}: error: unrecognized arguments: {' '.join(wrong)}{near}"


def test_help_is_quick_and_loads_no_torch() -> None:
    start = time.perf_counter()
    code = "import sys; from hf_curate import cli\ntry: cli.main(['score', '--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    assert time.perf_counter() - start < 2


def test_the_version_is_that_of_the_package() -> None:
    assert run("--version").stdout.strip() == f"hf_curate {hf_curate.__version__}"


@pytest.mark.parametrize("rows", ["1", "40"])
def test_a_reader_that_leaves_ends_it_quietly(place: Path, rows: str) -> None:
    command = [sys.executable, "-m", "hf_curate.cli", "inspect", str(place / "traces.jsonl"), "--rows", rows]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
        code = process.wait(60)
    assert code == 141
    assert "BrokenPipe" not in errors
    assert "Traceback" not in errors


def test_ctrl_c_is_exit_code_130_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_curate.inspect.inspect_source", interrupted)
    assert cli.main(["inspect", "x.jsonl"]) == 130
    assert capsys.readouterr().err == "hf-curate: interrupted\n"


STOPPED = """
import os, signal
from hf_curate import GraceScorer, cli

def stopped(self, rows, rank=None):
    os.kill(os.getpid(), signal.SIGINT)
    return score_rows(self, rows, rank)

score_rows, GraceScorer.score_rows = GraceScorer.score_rows, stopped
raise SystemExit(cli.main(ARGUMENTS))
"""


def test_ctrl_c_while_scoring_leaves_a_folder_that_can_be_scored_into_again(place: Path, tmp_path: Path) -> None:
    arguments = [
        "score",
        str(place / "traces.jsonl"),
        "--model",
        str(hf_curate.demo.MODEL),
        "--out",
        str(tmp_path / "run"),
    ]
    code = STOPPED.replace("ARGUMENTS", repr(arguments))
    done = warm.run([sys.executable, "-c", code], timeout=120)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
    assert "interrupted: what is finished is kept, and the same command goes on from there" in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()
    assert cli.main(arguments) == 0
    assert (tmp_path / "run" / "scored.parquet").exists()


def test_output_that_is_not_a_terminal_may_be_any_stream(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    assert cli.main(["inspect", str(place / "traces.jsonl"), "--rows", "0"]) == 0
    assert "40 rows" in stream.getvalue()
