"""Recipes: strict keys, stages that are skipped when their output is there, and the recipe that a run leaves."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
import yaml
from datasets import Dataset, load_dataset

from hf_curate import (
    GraceScorer,
    LossScorer,
    RandomScorer,
    Rollouts,
    Selection,
    ServerGenerator,
    cli,
    load_curated,
    score,
    verifier,
)
from hf_curate.demo import MODEL, world
from hf_curate.recipe import read_recipe
from hf_curate.runs.replay import of_command
from hf_curate.scorers.gradalign import GradAlignScorer
from hf_curate.scorers.learnalign import LearnAlignScorer
from hf_curate.scoring import KINDS, scorer_of

sys.path.append(str(Path(__file__).parent / "hub"))  # pytest does so only where that folder is collected
from loopback import LoopbackHub

ROOT = Path(__file__).parents[1]
ROWS = 40
RECIPE = """
score:
  source: pool.jsonl
  scorer: random
  seed: 3
  out: runs/random
select:
  out: curated
  budgets:
    small: 10%
    large: 50%
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """`main` is for a process of its own: it sets how warnings are shown."""
    import logging
    import warnings

    shown, level = warnings.showwarning, logging.getLogger("hf_curate").level
    yield
    warnings.showwarning = shown
    logging.getLogger("hf_curate").setLevel(level)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that commands run in, with a pool of problems."""
    monkeypatch.chdir(tmp_path)
    write_pool(tmp_path)
    return tmp_path


def write_pool(folder: Path, last: str = "1+1?") -> None:
    rows = [{"prompt": f"{i}+{i}?", "responses": ["1", "2"], "rewards": [1.0, 0.0]} for i in range(ROWS - 1)]
    rows.append({"prompt": last, "responses": ["1", "2"], "rewards": [0.0, 0.0]})
    (folder / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def write(text: str) -> str:
    Path("recipe.yaml").write_text(text, "utf-8")
    return "recipe.yaml"


def says(capsys: pytest.CaptureFixture[str], text: str, *options: str, code: int = 0) -> list[str]:
    """The lines that `hf-curate run` prints."""
    found = cli.main(["run", write(text), *options])
    out, err = capsys.readouterr()
    assert found == code, err
    return out.splitlines()


def refuses(capsys: pytest.CaptureFixture[str], text: str) -> str:
    """The error of a recipe, which does nothing."""
    before = sorted(Path().rglob("*"))
    assert cli.main(["run", write(text)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = [line for line in err.splitlines() if line.startswith("hf-curate: error: ")]
    assert sorted(Path().rglob("*")) == sorted({*before, Path("recipe.yaml")})
    return line


def files(*folders: str) -> dict[str, tuple[bytes, int]]:
    """Every file below the folders, with the time of its last change."""
    paths = [path for folder in folders for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def titles(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("[")]


# -- what runs and what is skipped ------------------------------------------------------------------------------------


def test_a_recipe_scores_and_selects_and_the_second_time_everything_is_skipped(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = says(capsys, RECIPE)
    assert titles(said) == [
        "[1/3] score -> runs/random",
        "[2/3] select small -> curated",
        "[3/3] select large -> curated",
    ]
    assert said[1] == "40 of 40 rows scored -> runs/random"
    assert not [line for line in said if line.startswith("next:")]
    small, large = load_curated("curated", "small"), load_curated("curated", "large")
    assert (len(small), len(large)) == (4, 20)
    assert set(small.indices) < set(large.indices)
    before = files("runs", "curated")
    said = says(capsys, RECIPE)
    assert [line.partition(" (")[0] for line in said] == [f"{title}: skipped, it is there" for title in titles_of(3)]
    assert said[1].endswith("(4 of 40 rows)")
    assert files("runs", "curated") == before


def titles_of(stages: int) -> list[str]:
    names = ["score -> runs/random", "select small -> curated", "select large -> curated"]
    return [f"[{number}/{stages}] {name}" for number, name in enumerate(names, 1)]


def test_a_folder_that_holds_something_else_is_refused_before_the_first_stage(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "runs" / "random").mkdir(parents=True)
    (place / "runs" / "random" / "notes.txt").write_text("mine")
    told = refuses(capsys, RECIPE)
    assert "the folder 'random' holds other files" in told
    assert cli.main(["run", "recipe.yaml", "--dry-run"]) == 2
    assert told in capsys.readouterr().err


def test_a_dry_run_refuses_what_the_run_would_refuse(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says(capsys, RECIPE)
    assert cli.main(["run", write(RECIPE.replace("seed: 3", "seed: 4")), "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert cli.main(["run", "recipe.yaml"]) == 2
    assert "seed" in told
    assert capsys.readouterr().err == told
    says(capsys, RECIPE.replace("seed: 3", "seed: 4").replace("runs/random", "runs/other"), "--dry-run")


def test_a_dry_run_says_what_there_is_to_do_and_does_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert says(capsys, RECIPE, "--dry-run") == [f"{title}: would run" for title in titles_of(3)]
    assert sorted(path.name for path in place.iterdir()) == ["pool.jsonl", "recipe.yaml"]
    says(capsys, RECIPE)
    before = files("runs", "curated")
    said = says(capsys, RECIPE.replace("50%", "60%"), "--dry-run")
    assert [line.partition(": ")[2].partition(",")[0] for line in said] == [
        *("would be skipped", "would be skipped", "would run")
    ]
    assert files("runs", "curated") == before


@pytest.mark.parametrize(
    ("old", "new", "done"),
    [
        ("large: 50%", "large: 20", ["large"]),
        ("large: 50%", "large: {budget: 50%, strategy: accuracy_greedy}", ["large"]),
        ("large: 50%", "large: {budget: 50%, min_score: 0.1}", ["large"]),
        ("large: 50%", "large: {budget: 50%, seed: 1}", ["large"]),
        ("large: 50%", "large: {strategy: threshold, min_score: 0.5}", ["large"]),
        ("large: 50%", "large: 50 %", ["large"]),
        ("out: curated", "out: curated\n  source: org/name@v1:main/train", ["small", "large"]),
        ("out: curated", "out: curated\n  split: test", ["small", "large"]),
        ("out: curated", "out: elsewhere", ["small", "large"]),
        ("seed: 3", "seed: 4\n  overwrite: true", ["score", "small", "large"]),
        ("seed: 3", "seed: 3\n  overwrite: true", []),
        ("seed: 3", "seed: 3\n  shard_rows: 5\n  overwrite: true", ["score", "small", "large"]),
    ],
)
def test_what_was_changed_in_a_recipe_is_done_again_and_nothing_else(
    place: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, done: list[str]
) -> None:
    says(capsys, RECIPE)
    said = titles(says(capsys, RECIPE.replace(old, new)))
    again = [line.split()[1 if "score" in line else 2] for line in said if "skipped" not in line]
    assert again == done
    assert all("skipped" in line for line in titles(says(capsys, RECIPE.replace(old, new))))


def test_a_selection_of_a_named_source_is_known_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    named = RECIPE.replace("out: curated", "out: curated\n  source: org/name@v1:main/train")
    says(capsys, named)
    assert all("skipped" in line for line in says(capsys, named))
    assert "skipped" not in says(capsys, named.replace("@v1", "@v2"))[1]


def test_a_recipe_of_other_settings_does_not_replace_a_run_by_itself(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says(capsys, RECIPE)
    before = files("runs", "curated")
    assert cli.main(["run", write(RECIPE.replace("seed: 3", "seed: 4"))]) == 2
    assert "settings.seed 3, now 4" in capsys.readouterr().err
    write_pool(place, last="2+2?")
    assert cli.main(["run", write(RECIPE)]) == 2
    assert "holds a run over other rows" in capsys.readouterr().err
    assert files("runs", "curated") == before


@pytest.mark.parametrize(
    ("path", "how", "done"),
    [
        ("runs/random/scored.parquet", "gone", [1, 2, 3]),
        ("runs/random/scored.parquet", "cut", [1, 2, 3]),
        ("runs/random/run.json", "gone", [1, 2, 3]),
        ("runs/random/parts/00000.parquet", "cut", []),
        ("curated/small/*.parquet", "gone", [2]),
        ("curated/small/*.parquet", "cut", [2]),
        ("curated/large/train.manifest.json", "gone", [3]),
        ("curated/large/train.manifest.json", "cut", [3]),
        ("curated/README.md", "gone", [2, 3]),
    ],
)
def test_output_that_is_gone_or_damaged_is_made_again(
    place: Path, capsys: pytest.CaptureFixture[str], path: str, how: str, done: list[int]
) -> None:
    says(capsys, RECIPE)
    before = {name: content for name, (content, _) in files("runs", "curated").items() if "log.txt" not in name}
    [file] = Path().glob(path)
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-20])
    said = titles(says(capsys, RECIPE))
    assert [number for number, line in enumerate(said, 1) if "skipped" not in line] == done
    after = {name: content for name, (content, _) in files("runs", "curated").items() if "log.txt" not in name}
    left = {path} if not done else set()  # a finished run does not need its parts
    assert {name: content for name, content in after.items() if name not in left} == {
        name: content for name, content in before.items() if name not in left
    }


def test_a_recipe_that_is_stopped_between_stages_goes_on_there(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = Selection.save

    def stopped(self: Selection, folder: Any, config_name: str, **options: Any) -> Any:
        if config_name == "large":
            raise KeyboardInterrupt
        return save(self, folder, config_name, **options)

    monkeypatch.setattr(Selection, "save", stopped)
    assert cli.main(["run", write(RECIPE)]) == 130
    monkeypatch.setattr(Selection, "save", save)
    capsys.readouterr()
    said = titles(says(capsys, RECIPE))
    assert ["skipped" in line for line in said] == [True, True, False]
    assert len(load_curated("curated", "large")) == 20


def test_a_run_that_is_stopped_goes_on_by_its_own_recipe(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = RandomScorer.score_rows
    calls: list[int] = []

    def stopped(self: RandomScorer, given: Any, rank: int | None = None) -> Any:
        calls.append(len(given))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return rows(self, given, rank)

    monkeypatch.setattr(RandomScorer, "score_rows", stopped)
    options = [
        "score",
        "pool.jsonl",
        "--scorer",
        "random",
        "--seed",
        "3",
        "--shard-rows",
        "10",
        "--out",
        "runs/random",
    ]
    assert cli.main(options) == 130
    assert yaml.safe_load(Path("runs/random/recipe.yaml").read_text("utf-8")) == {
        "score": {"source": "pool.jsonl", "out": "runs/random", "shard_rows": 10, "scorer": "random", "seed": 3}
    }
    assert cli.main(["select", "runs/random", "--budget", "5", "--out", "c", "--config", "c"]) == 2
    capsys.readouterr()
    assert cli.main(["run", "runs/random/recipe.yaml"]) == 0
    assert calls == [10, 10, 10, 10, 10]
    assert capsys.readouterr().out.splitlines() == [
        "[1/1] score -> runs/random",
        "40 of 40 rows scored -> runs/random",
    ]
    assert cli.main(["run", "runs/random/recipe.yaml"]) == 0
    assert "skipped, it is there (Random, 40 rows" in capsys.readouterr().out


def test_strict_ends_a_recipe_with_1_before_the_next_stage_whether_scored_or_there(
    place: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    row = {"prompt": "1+1?", "responses": ["1"], "rewards": [1.0]}
    rows = [row, {**row, "rewards": []}]
    Path("pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    greedy = RECIPE.replace("random\n  seed: 3", "accuracy-greedy\n  strict: true").replace("10%", "1")
    assert says(capsys, greedy, code=1) == ["[1/3] score -> runs/random", "1 of 2 rows scored -> runs/random"]
    caplog.clear()
    [said] = says(capsys, greedy, code=1)
    assert said.startswith("[1/3] score -> runs/random: skipped, it is there")
    assert "1 of 2 rows have no score:" in caplog.text
    assert not Path("curated").exists()
    assert len(says(capsys, greedy.replace("  strict: true\n", ""))) == 5


def test_without_a_folder_a_selection_goes_into_that_of_its_run(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says(capsys, RECIPE.replace("  out: curated\n", ""))
    assert len(load_curated("runs/random/curated", "small")) == 4
    says(capsys, "select: {run_folder: runs/random, budgets: {tiny: 1}}")
    assert len(load_curated("runs/random/curated", "tiny")) == 1


def test_options_of_select_are_for_all_configs_unless_one_has_its_own(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says(capsys, RECIPE.replace("out: curated", "out: curated\n  strategy: random\n  seed: 7").replace(
        "50%", "{budget: 50%, seed: 8}"
    ))  # fmt: skip
    budgets = [load_curated("curated", name).manifest["budget"]["seed"] for name in ("small", "large")]
    assert budgets == [7, 8]
    assert load_curated("curated", "large").manifest["selector"]["strategy"] == "random"


def test_a_push_is_one_commit_and_is_skipped_when_the_repo_holds_it(place: Path) -> None:
    write(RECIPE + "push:\n  repo_id: alice/recipe\n")
    with LoopbackHub() as hub:
        environment = os.environ | hub.env("hf_alice", place / "home")
        command = [sys.executable, "-m", "hf_curate.cli", "run", "recipe.yaml"]
        said = []
        for seed in ({}, {"PYTHONHASHSEED": "2"}):
            done = warm.run(command, env=environment | seed)
            assert done.returncode == 0, done.stderr
            said.append(done.stdout.splitlines())
        commits = [call for call in hub.log() if "/commit/" in call.path]
    assert titles(said[0])[3] == "[4/4] push -> alice/recipe"
    assert said[1][3] == "[4/4] push -> alice/recipe: skipped, it is there (2 configs)"
    assert len(commits) == 1


# -- recipes that are none --------------------------------------------------------------------------------------------

SCORE = "score: {source: pool.jsonl, scorer: random, out: runs/random}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "recipe.yaml holds nothing but comments: give it stages, rollouts, score, select, push."),
        ("# score:\n", "holds nothing but comments"),
        ("score: [", "recipe.yaml cannot be read as YAML with plain values: while parsing"),
        ("a: 1\n---\nb: 1\n", "expected a single document"),
        ("!!python/object/apply:os.system ['x']", "could not determine a constructor for the tag"),
        ("score: {source: 2020-13-45}", "cannot be read as YAML with plain values: month must be in 1..12"),
        ("- score\n", "recipe.yaml: the top is a list, expected a mapping of rollouts, score, select, push."),
        ("score\n", "the top is text ('score'), expected a mapping"),
        ("{}", "there is no stage: give it rollouts, score, select, push."),
        ("scor: {}\n", "recipe.yaml, line 1: scor: there is no such key: did you mean score?"),
        ("1: {}\n", "1: there is no such key: the keys are rollouts, score, select, push."),
        ("score: 5\n", "line 1: score: score is a whole number (5), expected a mapping"),
        ("score:\n  source: x\n  alhpa: 0.5\n", "line 3: score.alhpa: there is no such key: did you mean alpha?"),
        ("score:\n  batch-tokens: 5\n", "line 2: score.batch-tokens: there is no such key: did you mean batch_to"),
        ("score:\n  budget: 5\n", "score.budget: there is no such key: it belongs to select, in budgets."),
        ("score:\n  top_p: 0.5\n", "score.top_p: there is no such key: it belongs to rollouts."),
        ("push:\n  dry_run: true\n", "push.dry_run: there is no such key: the keys are folder, repo_id, config, "),
        ("score:\n  run: 5\n", "score.run: there is no such key"),
        ("score:\n  alpha: 1\n  alpha: 2\n", "line 3: score.alpha is there twice, first in line 2: drop or"),
        ("score: {}\nscore: {}\n", "line 2: score is there twice, first in line 1"),
        ("score: {source: pool.jsonl}\n", "line 1: score: out is missing (folder of the run)."),
        ("score: {out: x}\n", "line 1: score: source is missing (org/name@revision:config/split, a "),
        ("rollouts: {source: pool.jsonl, out: x}\n", "rollouts: verifier is missing (who says what is right"),
        ("rollouts: []\n", "rollouts: it is empty"),
        ("rollouts: {source: pool.jsonl, out: x, verifier: exact}", "rollouts are sampled from a model"),
        ("score:\n  source:\n  out: x\n", "line 2: score.source: it is empty: give a value, or drop the line."),
        ("score: {alpha: high}", "score.alpha: it is text ('high'), expected a number."),
        ("score: {seed: 1.5}", "score.seed: it is a number (1.5), expected a whole number."),
        ("score: {seed: true}", "score.seed: it is true or false (True), expected a whole number."),
        ("score: {strict: 'yes'}", "score.strict: it is text ('yes'), expected true or false."),
        ("score: {revision: 1.10}", "it is a number (1.1), expected text: put it in quotes, revision: '...'."),
        ("score: {revision: 2024-01-01}", "it is a date (2024-01-01), expected text: put it in quotes"),
        ("score: {prompt: no}", "it is true or false (False), expected text: put it in quotes, prompt: '...'."),
        ("score: {prompt: [a]}", "score.prompt: it is a list, expected text."),
        ("score: {scorer: gradalgin}", "score.scorer: there is no scorer 'gradalgin': did you mean gradalign?"),
        ("score: {history: 'window:x'}", "score.history: 'window:x' is not uniform, window:W or ema:BETA."),
        ("push: {config: a}", "push.config: it is text ('a'), expected a list of texts."),
        ("rollouts: {verifier_option: gold}", "it is text ('gold'), expected a mapping such as {gold: solution}."),
        ("rollouts: {server_extra: {a: 2024-01-01}}", "it holds what is no JSON (Object of type date is not JSON"),
        (SCORE + "select: {}\n", "line 2: select: budgets is missing: config name -> budget, such as {"),
        (SCORE + "select: {budgets: {}}\n", "budgets is missing"),
        (SCORE + "select: {budgets: [5%]}\n", "budgets is missing"),
        (SCORE + "select: {budget: 5%, budgets: {a: 5%}}", "select.budget: there is no such key: did you mean bud"),
        (SCORE + "select:\n  budgets:\n    a: 5%\n    a: 6%\n", "line 5: select.budgets.a is there twice, first in"),
        (SCORE + "select:\n  budgets:\n    a:\n", "line 4: select.budgets.a: it is empty: give a budget, such"),
        (SCORE + "select:\n  budgets: {a: many}\n", "line 3: select.budgets.a: budget 'many' cannot be read. Give"),
        (SCORE + "select:\n  budgets: {a: 0.2}\n", "it is a number (0.2), expected text"),
        (SCORE + "select:\n  budgets: {a: 120%}\n", "select.budgets.a: budget '120%' is out of range"),
        (SCORE + "select:\n  budgets: {a: {strategy: random}}\n", "select.budgets.a: budget None cannot be read"),
        (SCORE + "select:\n  budgets: {a: {budget: 5, strategy: rnadom}}\n", "did you mean 'random'?"),
        (SCORE + "select:\n  budgets: {a: {budget: 5, split: x}}\n", "budgets.a.split: there is no such key: it "),
        (SCORE + "select:\n  budgets: {1: 5%}\n", "the config name is a whole number (1), expected text"),
        (SCORE + "select:\n  budgets: {a/b: 5%}\n", "select.budgets.a/b: config name 'a/b' cannot be used"),
        (SCORE + "select:\n  budgets: {no: 5%}\n", "the config name is true or false (False), expected text"),
        ("select: {budgets: {a: 5%}}\n", "line 1: select: run_folder is missing (folder that `hf-curate"),
        (SCORE + "push: {repo_id: a/b}\n", "line 2: push: folder is missing (folder that `hf-curate select` wrote)."),
        (SCORE.replace("random, out", "gradalign, out"), "--scorer gradalign reads rows with a model"),
        (SCORE.replace("random, out", "random, alpha: 1, out"), "--scorer is random. --alpha belongs to grace: drop"),
        (SCORE.replace("pool.jsonl", "pol.jsonl"), "there is no file 'pol.jsonl': did you mean 'pool.jsonl'?"),
        (SCORE.replace("runs/random", "./a").replace("score", "rollouts"), "there is no such key"),
    ],
)  # fmt: skip
def test_a_recipe_that_is_none_is_told_why_and_where(
    place: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    assert words in refuses(capsys, text)


def test_two_runs_cannot_write_to_one_folder(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rolled = f"rollouts: {{source: pool.jsonl, out: runs/random, model: {MODEL}, verifier: exact}}\n"
    assert "rollouts and score both write to 'runs/random'" in refuses(capsys, rolled + SCORE)


def test_a_recipe_that_is_not_there_or_no_text_is_told_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "no.yaml"]) == 2
    assert "the recipe 'no.yaml' cannot be read (No such file or directory)" in capsys.readouterr().err
    assert cli.main(["run", str(place)]) == 2
    assert "(Is a directory)" in capsys.readouterr().err
    Path("bad.yaml").write_bytes(b"score: \xff\n")
    assert cli.main(["run", "bad.yaml"]) == 2
    assert "bad.yaml cannot be read as YAML with plain values: 'utf-8' codec" in capsys.readouterr().err
    Path("large.yaml").write_text("#" * (2**20 + 1))
    assert cli.main(["run", "large.yaml"]) == 2
    assert "1,048,577 bytes" in capsys.readouterr().err
    Path("deep.yaml").write_text("score: " + "[" * 2000)
    assert cli.main(["run", "deep.yaml"]) == 2


def test_anchors_may_be_used_and_do_not_blow_up(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merged = "select:\n  budgets:\n    a: &a {budget: 5, strategy: random}\n    b: {<<: *a, seed: 2}\n"
    says(capsys, SCORE + merged)
    assert [load_curated("runs/random/curated", name).manifest["budget"]["seed"] for name in "ab"] == [0, 2]
    levels = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30))]
    start = time.perf_counter()
    assert "a0: there is no such key" in refuses(capsys, "\n".join(levels))
    assert time.perf_counter() - start < 5
    assert "score: score is a list" in refuses(capsys, "score: &a [*a]")


def test_numbers_with_an_exponent_are_numbers_though_yaml_reads_text(place: Path) -> None:
    write("score: {source: pool.jsonl, model: m, alpha: 5e-1, out: x}")
    [stage] = read_recipe(Path("recipe.yaml"), parsers()).stages
    assert stage.arguments.alpha == 0.5


# -- the recipe of a run ----------------------------------------------------------------------------------------------


def parsers() -> dict[str, argparse.ArgumentParser]:
    choices = cli._parser()._actions[-1].choices
    assert choices is not None
    return dict(choices)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "typed",
    [
        "score pool.jsonl --model org/name@v1 --alpha 0 --history ema:0.5 --keep-gram --out runs/x --shard-rows 7",
        "score pool.jsonl --scorer learnalign --model m --projection-dim 8 --seed 0 --strict --out ~/x --revision 1.1",
        "score org/name@v1:main/train --scorer gradalign --validation ./trusted --model no --batch-tokens 9 --out 5",
        "score pool.jsonl --scorer pass-rate-band --low 0.25 --high 1e-7 --rewards 'a: b' --overwrite --out x",
        "rollouts pool.jsonl --model m --verifier exact --out r --temperature 0 --n 2 --top-p 0.5 --messages chat",
        "rollouts p.jsonl --model m --verifier exact --verifier-option gold=a=b --verifier-option pattern=1 --out 1",
        "rollouts p.jsonl --model m --verifier exact --verifier-option ignore_case=true --out r --server http://a:1 "
        "--server-model s --token-ids --api-key-env MY_KEY --timeout 5 --server-extra '{\"top_k\":0,\"stop\":[1]}'",
    ],
)  # fmt: skip
def test_what_was_typed_comes_back_from_the_recipe_and_no_secret_with_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    import shlex

    monkeypatch.setenv("MY_KEY", "sk-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    asked = cli._parser().parse_args(shlex.split(typed))
    text = of_command(typed.split()[0], asked)
    assert "sk-secret" not in text
    assert str(place) not in text
    [stage] = read_recipe(Path(write(text)), parsers()).stages
    before, after = dict(vars(asked)), dict(vars(stage.arguments))
    assert before.pop("alone") is True
    assert after.pop("alone") is False
    assert after.pop("overwrite") is False
    del before["overwrite"]
    if before.get("server_extra"):
        before["server_extra"], after["server_extra"] = map(
            json.loads, (before["server_extra"], after["server_extra"])
        )
    assert after == before


def recipe_of(scorer: Any, source: str | None = "pool.jsonl", **options: Any) -> str:
    """The recipe of a call of score() from Python that is stopped before its first row."""
    from hf_curate.runs.replay import of_call

    run = {"out": "runs/x", "shard_rows": None, "strict": False, "batch_rows": None}
    return of_call(scorer, {**run, "source": source, **options})


@pytest.mark.parametrize("name", [name for name in KINDS if name != "gradalign"])
def test_a_scorer_of_python_is_made_again_by_its_recipe(place: Path, name: str) -> None:
    given = {
        "grace": {"alpha": 0.5, "history": ("window", 3), "keep_gram": True, "dtype": "float32"},
        "learnalign": {"projection_dim": 8, "seed": 3},
        "align": {"parameters": "linear"},
        "pass-rate-band": {"low": 0.25},
        "random": {"seed": 5},
        "longest": {"max_length": 64},
        "highest-loss": {"dtype": "float32"},
    }.get(name, {})
    model = {"model": MODEL} if "model" in KINDS[name].options else {}
    scorer = KINDS[name].make({**model, **given})
    text = recipe_of(scorer, shard_rows=9, strict=True)
    assert text.startswith("# Does this run again")
    [stage] = read_recipe(Path(write(text)), parsers()).stages
    assert stage.arguments.shard_rows == 9
    assert stage.arguments.strict is True
    made, _ = scorer_of(stage.arguments)
    assert made._what(made.model_record()) == scorer._what(scorer.model_record())


def test_rollouts_of_python_are_made_again_by_their_recipe(place: Path) -> None:
    from hf_curate.rollouts.command import rollouts_of

    server = ServerGenerator("http://localhost:1/v1", "m", completions="text", extra={"top_k": 0}, api_key_env=None)
    exact = verifier("exact", gold="prompt", numbers=False, pattern="#(.)")
    text = recipe_of(Rollouts(MODEL, exact, 4, temperature=0.5, server=server, dtype="float32"))
    assert text.startswith("# Does this run again")
    [stage] = read_recipe(Path(write(text)), parsers()).stages
    made = rollouts_of(stage.arguments)
    assert (made.n, made.temperature, made.dtype) == (4, 0.5, "float32")
    assert made.verifier.identity == exact.identity
    assert repr(made.server) == repr(server)
    assert made.server is not None
    assert made.server.key() is None


def test_a_call_from_python_leaves_a_recipe_that_is_skipped_as_done(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = load_dataset("json", data_files="pool.jsonl", split="train")
    score(pool, RandomScorer(seed=3), out="runs/random", source="pool.jsonl")  # type: ignore[arg-type]
    assert cli.main(["run", "runs/random/recipe.yaml"]) == 0
    assert "skipped, it is there (Random, 40 rows" in capsys.readouterr().out


def by_first_sentence(text: str) -> list[str]:
    return text.split(". ")


@pytest.mark.parametrize("what", ["live", "function", "source", "words", "model_kwargs", "validation", "fit", "other"])
def test_what_no_recipe_can_hold_is_told_in_comments_and_never_half_replayed(
    place: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    from tiny import byte_level, tiny

    trusted = Dataset.from_list([{"prompt": "1+1?\n", "responses": ["1+1=2\n#2", "#3"], "rewards": [1.0, 0.0]}])

    class Other:
        pass

    text, words = {
        "live": lambda: (recipe_of(LossScorer(tiny(), tokenizer=byte_level())), "model: a "),
        "function": lambda: (recipe_of(GraceScorer(MODEL, split_steps=by_first_sentence)), "split_steps: a function"),
        "source": lambda: (recipe_of(RandomScorer(), None), "source: not given (score(source=))"),
        "words": lambda: (recipe_of(RandomScorer(), "my own rows"), "source: as given, it cannot be loaded"),
        "model_kwargs": lambda: (
            recipe_of(LossScorer(MODEL, model_kwargs={"token": "hf_secret"})),
            "model_kwargs: a dict",
        ),
        "validation": lambda: (recipe_of(GradAlignScorer(MODEL, validation=trusted)), "validation: a Dataset"),
        "fit": lambda: (
            recipe_of(LearnAlignScorer(MODEL, parameters="mlp.down_proj").fit(trusted, out="d.safetensors")),
            "fit: on rows that Python held",
        ),
        "other": lambda: (recipe_of(Other()), "the scorer: none of those of the command line"),
    }[what]()
    assert text.startswith("# This run was begun from Python")
    assert words in text
    assert "hf_secret" not in text
    assert all(line.startswith("#") for line in text.splitlines())
    assert "holds nothing but comments" in refuses(capsys, text)


def test_a_run_that_is_replaced_has_the_recipe_of_the_new_one_and_one_that_goes_on_that_of_the_first(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["score", "pool.jsonl", "--scorer", "random", "--out", "runs/random"]
    recipe = Path("runs/random/recipe.yaml")
    assert cli.main([*command, "--shard-rows", "10"]) == 0
    first = recipe.read_text("utf-8")
    assert cli.main(command) == 0
    assert recipe.read_text("utf-8") == first
    assert cli.main([*command, "--seed", "2", "--overwrite"]) == 0
    assert yaml.safe_load(recipe.read_text("utf-8"))["score"] == {
        **{"source": "pool.jsonl", "out": "runs/random", "scorer": "random", "seed": 2}
    }
    assert {path.name for path in Path("runs/random").iterdir()} == {
        *("log.txt", "parts", "plan.json", "recipe.yaml", "run.json", "scored.parquet")
    }


# -- the examples -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("grace", {"grace-5pct": 40, "grace-20pct": 160, "random-20pct": 160}),
        ("gradalign", {"gradalign-25pct": 8, "gradalign-50pct": 16}),
    ],
)
def test_the_example_runs_and_its_subsets_are_nested(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    kept: dict[str, int],
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("examples", "hf_curate"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    recipe = f"examples/recipes/{name}.yaml"
    assert cli.main(["run", recipe]) == 0
    picked = {config: load_curated("curated", config) for config in kept}
    assert {config: len(one) for config, one in picked.items()} == kept
    small, large = list(picked.values())[:2]
    assert set(small.indices) < set(large.indices)
    capsys.readouterr()
    assert cli.main(["run", recipe]) == 0
    assert all("skipped, it is there" in line for line in capsys.readouterr().out.splitlines())
    assert f"hf-curate run {recipe}" in (ROOT / recipe).read_text("utf-8")


def test_the_problems_of_the_examples_are_those_that_they_name() -> None:
    for name, count, seed in (("pool", 32, 0), ("trusted", 12, 1)):
        drawn = world.draw_problems(count, random.Random(seed), "held_out")
        lines = (ROOT / f"examples/recipes/{name}.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line) for line in lines] == [
            {"prompt": one.prompt, "answer": str(world.true_answer(one.prompt))} for one in drawn
        ]


def test_the_recipes_of_the_readme_and_of_the_help_can_be_read(place: Path) -> None:
    [shown] = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    for text in (shown, cli.RUN_MORE):
        stages = read_recipe(Path(write(text)), parsers()).stages
        assert [stage.command for stage in stages] == ["score", "select", "select", "select", "push"]
        assert stages[-1].arguments.config == ["grace-5pct", "grace-20pct", "random-20pct"]
