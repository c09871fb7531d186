"""`hf-curate rollouts`, and what follows it: score, select and push keep the account of who judged the rollouts."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
from datasets import Dataset, load_dataset
from openai_loopback import OpenAILoopback
from problems import answers, problem_rows
from realdata import gsm8k_rows, needs_gsm8k
from tiny import byte_level, saved, tiny
from transformers import AutoTokenizer

from hf_curate import (
    GradAlignScorer,
    LearnAlignScorer,
    Rollouts,
    ServerGenerator,
    cli,
    load_curated,
    score,
    select,
    verifier,
)
from hf_curate.demo import MODEL
from hf_curate.rollouts import command
from hf_curate.runs.local import load_run

sys.path.append(str(Path(__file__).parents[1] / "hub"))  # pytest does so only where that folder is collected
from loopback import LoopbackHub

PATTERN = r"(?m)^#(\d+)$"
POLICY = ["--model", str(MODEL), "--dtype", "float32"]
EXACT = ["--verifier", "exact", "--verifier-option", f"pattern={PATTERN}"]
SAMPLED = ["--n", "4", "--max-new-tokens", "40"]
SCORED = [*POLICY, "--parameters", "mlp.down_proj"]


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`main` is for a process of its own: it sets how warnings are shown."""
    import logging
    import warnings

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    shown, level = warnings.showwarning, logging.getLogger("hf_curate").level
    yield
    warnings.showwarning = shown
    logging.getLogger("hf_curate").setLevel(level)


def says(capsys: pytest.CaptureFixture[str], *arguments: Any) -> list[str]:
    """The lines that a command prints; it must succeed."""
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out.splitlines()


def refuses(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The error of a command, which prints nothing else."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    [line] = [line for line in err.splitlines() if line.startswith("hf-curate: error: ")]
    return line


LOADED = """
import json
from hf_curate import load_curated
again = load_curated("alice/rl", "rl")
print(json.dumps([again.indices.tolist(), again.problems, again.manifest["verification"]["verifier"]]))
"""


def pushes(curated: Path, home: Path) -> list[str]:
    """What is printed where the folder is pushed to a Hub: by the plan, by the push, by `LOADED` after it."""
    push, said = ["-m", "hf_curate.cli", "push", str(curated), "alice/rl"], []
    with LoopbackHub() as hub:
        for arguments in ([*push, "--dry-run"], push, ["-c", LOADED]):
            done = warm.run([sys.executable, *arguments], env=os.environ | hub.env("hf_alice", home))
            assert done.returncode == 0, done.stderr
            said.append(done.stdout)
    return said


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve problems of which one has no gold answer, five trusted ones, and the rollouts of both."""
    folder = tmp_path_factory.mktemp("command")
    rows = problem_rows(12)
    rows[4]["answer"] = None
    for name, part in (("problems", rows), ("trusted", problem_rows(5, seed=3))):
        path = write(folder / f"{name}.jsonl", part)
        sampled = ["rollouts", str(path), *POLICY, *EXACT, *SAMPLED, "--out", str(folder / f"{name}-rolled")]
        assert cli.main(sampled) == 0
    return folder


@pytest.fixture(scope="module")
def pool(place: Path) -> Dataset:
    return load_dataset("json", data_files=str(place / "problems.jsonl"), split="train")  # type: ignore[return-value]


def by_hand(**options: Any) -> Rollouts:
    return Rollouts(MODEL, answers(), 4, **{"max_new_tokens": 40, "dtype": "float32", **options})


# -- rollouts ---------------------------------------------------------------------------------------------------------


def test_it_makes_the_run_that_score_makes_in_python(
    place: Path, pool: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, rolled = load_run(place / "problems-rolled"), score(pool, by_hand(), out=tmp_path / "python")
    assert run.dataset.to_list() == rolled.to_list()
    assert run.identity == by_hand().identity == load_run(tmp_path / "python").identity
    assert run.source == "local file problems.jsonl"
    assert run.record()["verifier"] == answers().record()
    assert set(run.columns) == set(by_hand().columns)
    out = tmp_path / "again"
    said = says(capsys, "rollouts", place / "problems.jsonl", *POLICY, *EXACT, *SAMPLED, "--out", out)
    outcomes = [one for row in rolled["rollouts_outcomes"] for one in row or []]
    signals = sum(len(set(row or [])) > 1 for row in rolled["rewards"])
    assert 0 < signals < 11
    assert said[0] == f"11 of 12 rows have rollouts -> {out}"
    assert f"{outcomes.count('right'):,} right" in said[1]
    assert f"{outcomes.count('wrong'):,} wrong" in said[1]
    assert said[1].endswith(f"; {signals} rows with a signal: rewards that differ")
    assert said[2] == f"next: hf-curate score {out} --scorer learnalign --model {MODEL} --out runs/learnalign"
    shown = "\n".join(says(capsys, "inspect", out))
    assert "Rollouts with arithmetic-0.8m, 12 rows of local file problems.jsonl" in shown
    assert "not scored: 1 x gold missing" in shown
    counts = ", ".join(f"{outcomes.count(kind):,} {kind}" for kind in ("right", "wrong", "could not parse"))
    assert f"\nrollouts: {counts}\n" in shown


@pytest.mark.parametrize(("strategy", "ranked"), [("top", True), ("threshold", True), ("random", False)])
def test_a_selection_from_bare_rollouts_says_what_it_is_ranked_by(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], strategy: str, ranked: bool
) -> None:
    how = {"threshold": ["--min-score", "0.1"]}.get(strategy, ["--budget", "3 rows"])
    options = ["--out", tmp_path / "curated", "--config", "c", "--strategy", strategy, *how]
    said = says(capsys, "select", place / "problems-rolled", *options)
    assert ("ranked by learnability: p (1 - p)" in said[0]) == ranked
    assert said[int(ranked)].startswith("Selection(")


def test_every_setting_has_an_option_that_reaches_it() -> None:
    def takes(kind: Any) -> set[str]:
        return set(inspect.signature(kind.__init__).parameters) - {"self"}

    own = {*command.SAMPLING, *command.COLUMNS, *command.MODEL}
    assert takes(Rollouts) - own == {"model", "verifier", "server", "model_kwargs"}
    assert takes(ServerGenerator) - set(command.SERVER) == {"base_url", "model", "extra"}
    parser = cli._parser()
    text = (
        "rollouts x --out o --model org/name --verifier exact --n 3 --temperature 0.5 --top-p 0.9 --max-new-tokens 7"
    )
    text += " --seed 5 --prompt q --revision r --tokenizer t --dtype float16 --device cpu --batch-tokens 99"
    text += " --verifier-option gold=g --verifier-option numbers=false --verifier-option ignore_case=True"
    text += " --server http://localhost:1/v1 --completions text --token-ids --concurrency 2 --timeout 3 --retries 0"
    text += ' --api-key-env NO_SUCH_KEY --server-extra {"top_k":0}'
    made = command.rollouts_of(parser.parse_args(text.split()))
    given = {name: made._arguments[name] for name in own - {"messages"}}
    assert given == {
        **{"n": 3, "temperature": 0.5, "top_p": 0.9, "max_new_tokens": 7, "seed": 5, "prompt": "q", "revision": "r"},
        **{"tokenizer": "t", "dtype": "float16", "device": "cpu", "batch_tokens": 99},
    }
    assert made.verifier.identity == verifier("exact", gold="g", numbers=False, ignore_case=True).identity
    wanted = ServerGenerator(
        "http://localhost:1/v1",
        "org/name",
        completions="text",
        token_ids=True,
        concurrency=2,
        timeout=3.0,
        retries=0,
        api_key_env="NO_SUCH_KEY",
        extra={"top_k": 0},
    )
    assert made.server is not None
    assert made.server.__getstate__() == wanted.__getstate__()
    named = command.rollouts_of(parser.parse_args(["rollouts", "x", "--out", "o", *POLICY, *EXACT, "--messages", "c"]))
    assert named._arguments["messages"] == "c"
    assert (named.n, named.temperature, named.seed, named.server) == (16, 1.0, 0, None)


def test_an_option_of_a_verifier_is_read_by_its_type() -> None:
    def made(name: str, *options: str) -> Any:
        return command._verifier(name, options)

    assert made("choice", "choices=1234", "gold=1").options == {"choices": "1234", "gold": "1"}
    assert made("countdown", "use_all=false", "numbers=nums").options["use_all"] is False
    assert made("math", "timeout=2.5", "workers=1").options["timeout"] == 2.5
    assert made("exact", "pattern=a=(b)").options["pattern"] == "a=(b)"


def test_the_model_at_the_server_is_called_as_the_model_without_its_revision() -> None:
    assert [command._served(name) for name in ("org/name@v1", "org/name", str(MODEL))] == [
        "org/name",
        "org/name",
        str(MODEL),
    ]


@pytest.mark.parametrize("ids", [False, True])
def test_a_server_samples_and_its_run_is_scored(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], ids: bool
) -> None:
    pytest.importorskip("httpx2")
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    with OpenAILoopback() as server:

        def choice(plain: dict[str, Any]) -> dict[str, Any]:
            text = f"1+1=2\n#{plain['index']}"
            return {**plain, "text": text, "token_ids": [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]}

        server.choice = choice
        rows = [{**row, "answer": "2"} for row in problem_rows(3)]
        source = write(tmp_path / "problems.jsonl", rows)
        asked = ["--server", server.url, "--completions", "text", *(["--token-ids"] if ids else [])]
        said = says(capsys, "rollouts", source, *POLICY, *EXACT, *SAMPLED, *asked, "--out", tmp_path / "rolled")
        assert said[:2] == [
            f"3 of 3 rows have rollouts -> {tmp_path / 'rolled'}",
            "rollouts: 9 wrong, 3 right; 3 rows with a signal: rewards that differ",
        ]
    run = load_run(tmp_path / "rolled")
    assert ("response_ids" in run.dataset.column_names) == ids
    assert run.record()["settings"]["server"]["token_ids"] == ids
    out = tmp_path / "scored"
    said = says(capsys, "score", tmp_path / "rolled", "--scorer", "learnalign", *SCORED, "--out", out)
    assert said[0] == f"3 of 3 rows scored -> {out}"


# -- score, select, push ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["learnalign", "gradalign"])
def test_from_rollouts_to_a_push_by_the_command_line(
    place: Path, pool: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    rolled, out, curated = place / "problems-rolled", tmp_path / "run", tmp_path / "curated"
    more = ["--validation", place / "trusted-rolled"] if method == "gradalign" else []
    said = says(capsys, "score", rolled, "--scorer", method, *SCORED, *more, "--out", out)
    assert said[0] == f"11 of 12 rows scored -> {out}"
    says(capsys, "select", out, "--budget", "4", "--out", curated, "--config", "rl")
    manifest = load_curated(curated, "rl").manifest

    options: dict[str, Any] = {"dtype": "float32", "parameters": "mlp.down_proj", "rollouts": by_hand()}
    trusted = load_dataset("json", data_files=str(place / "trusted.jsonl"), split="train")
    wants: Any = LearnAlignScorer if method == "learnalign" else GradAlignScorer
    scorer = wants(MODEL, **options, **({"validation": trusted} if method == "gradalign" else {}))
    scored = score(pool, scorer)
    wanted = select(scored, scorer, 4, source=str(place / "problems.jsonl")).manifest
    for part in ("verification", "rollouts", "scores", "digests"):
        assert manifest[part] == wanted[part], part
    assert manifest["rows"].pop("failed") == {"reward missing": 1}
    assert wanted["rows"].pop("failed") == {"gold missing": 1}
    assert manifest["rows"] == wanted["rows"]
    assert manifest["verification"]["verifier"] == answers().record()
    assert manifest["verification"]["sampling"] == {
        **{"n": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40, "seed": 0}
    }
    assert manifest["source"]["id"] == "local file problems.jsonl"
    assert manifest["source"]["columns"] == ["prompt", "answer"]
    assert set(manifest["columns"]["scores"]) == set(wanted["columns"]["scores"])
    assert manifest["command"].startswith(f"rollouts = {by_hand().call()}\ndataset = score(dataset, rollouts)\nscorer")
    assert wanted["command"].startswith(f"rollouts = {by_hand().call()}\nscorer = ")
    if method == "gradalign":
        assert manifest["selector"]["direction"]["source"] == "local file trusted.jsonl"
        assert manifest["selector"]["direction"]["verifier"] == answers().record()

    planned, pushed, loaded = pushes(curated, tmp_path / "home")
    assert (
        "Whether a rollout is right is a matter of the contract `exact`, version `1` (deterministic checker)."
        in planned
    )
    assert "| sampling `n` | `4` |" in planned
    assert "#### Verification contract" in planned
    assert 'next: load_dataset("alice/rl", "rl", split="train")' in pushed
    assert json.loads(loaded) == [load_curated(curated, "rl").indices.tolist(), [], answers().record()]


def test_a_baseline_and_a_parquet_file_of_a_run_keep_the_contract_too(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once, twice, thrice = tmp_path / "greedy", tmp_path / "random", tmp_path / "thrice"
    scores = place / "problems-rolled" / "scored.parquet"
    says(capsys, "score", scores, "--scorer", "accuracy-greedy", "--out", once)
    says(capsys, "score", once, "--scorer", "random", "--out", twice)
    says(capsys, "score", twice, "--scorer", "pass-rate-band", "--out", thrice)
    runs = {once: "accuracy_greedy_score", twice: "random_score", thrice: "pass_rate_band_score"}
    for run, ours in runs.items():
        says(capsys, "select", run, "--budget", "3", "--out", tmp_path / "curated", "--config", run.name)
        manifest = load_curated(tmp_path / "curated", run.name).manifest
        assert manifest["verification"]["verifier"] == answers().record()
        assert manifest["source"]["id"] == "local file problems.jsonl"
        assert "rewards" in manifest["columns"]["scores"]
        assert ours in manifest["columns"]["scores"]
        assert manifest["source"]["columns"] == ["prompt", "answer"], "what earlier runs added is not the source's"
    copied = tmp_path / "copy.parquet"
    copied.write_bytes(scores.read_bytes())
    says(capsys, "score", copied, "--scorer", "accuracy-greedy", "--out", tmp_path / "copied")
    assert "rollouts" not in load_run(tmp_path / "copied").record(), "a file alone says nothing of its origin"


def test_rewards_of_another_column_are_not_called_the_verifier_s(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load_run(place / "problems-rolled")
    other = [None if row is None else [1.0 - reward for reward in row] for row in run.dataset["rewards"]]
    score(run.dataset.add_column("mine", other), by_hand(), out=tmp_path / "both")  # type: ignore[call-arg]
    for named, known in (("mine", False), ("rewards", True)):
        out = tmp_path / named
        says(capsys, "score", tmp_path / "both", "--scorer", "accuracy-greedy", "--rewards", named, "--out", out)
        assert ("rollouts" in load_run(out).record()) == known
        says(capsys, "select", out, "--budget", "3", "--out", tmp_path / "curated", "--config", named)
        manifest = load_curated(tmp_path / "curated", named).manifest
        assert (manifest["verification"] is not None) == known, "outcomes are those of the verifier's own rewards"
        assert manifest["source"]["columns"] == ["prompt", "answer", "mine"]


def test_rollouts_that_are_made_again_are_not_the_source_s_columns_either(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    once, again = tmp_path / "greedy", tmp_path / "again"
    says(capsys, "score", place / "trusted-rolled", "--scorer", "accuracy-greedy", "--out", once)
    says(capsys, "rollouts", once, *POLICY, *EXACT, *SAMPLED, "--seed", "1", "--out", again)
    says(capsys, "select", again, "--budget", "3", "--out", tmp_path / "curated", "--config", "again")
    manifest = load_curated(tmp_path / "curated", "again").manifest
    assert manifest["source"]["columns"] == ["prompt", "answer"]
    assert manifest["verification"]["sampling"]["seed"] == 1


def changed(folder: Path, file: str, **settings: Any) -> Path:
    """A copy of the policy with other settings in one of its files."""
    shutil.copytree(MODEL, folder)
    said = json.loads((folder / file).read_text("utf-8"))
    (folder / file).write_text(json.dumps(said | settings), "utf-8")
    return folder


@pytest.mark.parametrize("which", ["pool", "validation"])
def test_token_ids_of_another_tokenizer_are_refused_and_their_texts_are_not(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], which: str
) -> None:
    other = changed(tmp_path / "other", "tokenizer_config.json", eos_token="0")
    rolled, trusted = place / "problems-rolled", place / "trusted-rolled"
    if which == "validation":  # the pool's rollouts are the other policy's own
        options = ["--model", other, "--dtype", "float32", *EXACT, *SAMPLED, "--out", tmp_path / "rolled"]
        says(capsys, "rollouts", place / "problems.jsonl", *options)
        rolled = tmp_path / "rolled"
    options = ["--scorer", "gradalign", "--validation", trusted, "--model", other, "--dtype", "float32"]
    options += ["--parameters", "mlp.down_proj", "--out", tmp_path / "run"]
    name = "problems" if which == "pool" else "trusted"
    said = f"the token ids of local file {name}.jsonl were sampled with another tokenizer (sha256 "
    assert said in refuses(capsys, "score", rolled, *options)
    assert not (tmp_path / "run").exists()
    says(capsys, "score", rolled, *options, "--responses", "responses")


def test_gradients_of_another_model_than_the_one_that_sampled_are_warned_of(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = changed(tmp_path / "other", "config.json", rms_norm_eps=1e-5)
    rolled, options = place / "problems-rolled", ["--model", other, "--dtype", "float32"]
    options += ["--scorer", "learnalign", "--parameters", "mlp.down_proj"]
    assert cli.main([str(one) for one in ("score", rolled, *options, "--out", tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "the rollouts of local file problems.jsonl were sampled by arithmetic-0.8m (" in said
    assert "and gradients are taken of other (" in said
    assert cli.main([str(one) for one in ("score", rolled, "--scorer", "random", "--out", tmp_path / "random")]) == 0
    assert "were sampled by" not in capsys.readouterr().err


def test_a_direction_from_the_cache_is_of_the_source_and_the_verifier_of_its_rows_as_they_are_now(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trusted = place / "trusted-rolled"
    unknown, found = write(tmp_path / "unknown.jsonl", load_run(trusted).dataset.to_list()), {}
    for name, validation in (("unknown", unknown), ("known", trusted)):
        options = ["--scorer", "gradalign", "--validation", validation, *SCORED, "--out", tmp_path / name]
        says(capsys, "score", place / "problems-rolled", *options)
        found[name] = load_run(tmp_path / name).record()["direction"]
    assert found["unknown"]["key"] == found["known"]["key"], "the second is taken from the cache"
    assert (found["unknown"]["source"], found["unknown"]["verifier"]) == ("local file unknown.jsonl", None)
    assert (found["known"]["source"], found["known"]["verifier"]) == ("local file trusted.jsonl", answers().record())


def test_the_direction_names_the_verifier_of_the_rows_that_it_was_fitted_on(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rolled, trusted = place / "problems-rolled", place / "trusted-rolled"
    unknown = write(tmp_path / "unknown.jsonl", load_run(trusted).dataset.to_list())
    strict = [*POLICY, "--verifier", "exact", *SAMPLED, "--out", tmp_path / "strict"]  # finds no answer without marks
    says(capsys, "rollouts", place / "trusted.jsonl", *strict)
    found = {}
    for name, validation in (("known", trusted), ("unknown", unknown)):
        options = ["--scorer", "gradalign", "--validation", validation, *SCORED, "--out", tmp_path / name]
        says(capsys, "score", rolled, *options, "--save-direction", tmp_path / f"{name}.safetensors")
        found[name] = load_run(tmp_path / name).record()
    assert {name: record["direction"]["verifier"] for name, record in found.items()} == {
        "known": answers().record(),
        "unknown": None,
    }
    assert [record["rollouts"]["verifier"] for record in found.values()] == [answers().record()] * 2
    options = ["--scorer", "learnalign", *SCORED, "--out", tmp_path / "l", "--save-direction", tmp_path / "l.st"]
    says(capsys, "score", rolled, *options)
    assert load_run(tmp_path / "l").record()["direction"]["verifier"] == answers().record()
    says(capsys, "score", rolled, "--scorer", "learnalign", *POLICY, "--parameters", "o_proj", "--out", tmp_path / "i")
    assert load_run(tmp_path / "i").record()["direction"]["verifier"] == answers().record()


def test_a_run_that_was_scored_in_python_without_a_source_is_called_by_its_folder(
    pool: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score(pool, by_hand(), out=tmp_path / "rolled")
    says(capsys, "score", tmp_path / "rolled", "--scorer", "random", "--out", tmp_path / "run")
    assert load_run(tmp_path / "run").source == "local folder rolled"


@pytest.mark.realdata
@needs_gsm8k
@pytest.mark.parametrize("method", [LearnAlignScorer, GradAlignScorer])
def test_from_rollouts_to_a_saved_config_in_python_on_gsm8k(tmp_path: Path, method: Any) -> None:
    def length_is_odd(completions: list[str], **_: Any) -> list[float]:
        return [float(len(text) % 2) for text in completions]

    tokenizer = byte_level()
    policy = saved(tmp_path / "policy", tiny(vocabulary=len(tokenizer)), tokenizer)
    rows = gsm8k_rows()[:12]
    data, trusted = Dataset.from_list(rows[:8]), Dataset.from_list(rows[8:])
    rollouts = Rollouts(policy, length_is_odd, 4, max_new_tokens=8)
    more = {"validation": score(trusted, rollouts)} if method is GradAlignScorer else {}
    rolled = score(data, rollouts)
    scorer = method(policy, rollouts=rollouts, parameters="linear", **more)
    scored = score(rolled, scorer)
    assert scored["response_ids"][:] == rolled["response_ids"][:], "nothing is sampled again"
    picked = select(scored, scorer, "50%", source="openai/gsm8k@main:main/train")
    picked.save(tmp_path / "curated", "rl")
    again = load_curated(tmp_path / "curated", "rl")
    assert again.problems == []
    assert len(again) == 4
    assert again.manifest["verification"]["verifier"]["name"] == "length_is_odd"
    assert sum(again.manifest["verification"]["outcomes"]["all"].values()) == 32
    assert again.manifest["rollouts"]["rows"] == {"scored": 8, "kept": 4}
    assert again.manifest["source"]["columns"] == ["question", "answer"]
    loaded = json.loads(pushes(tmp_path / "curated", tmp_path / "home")[-1])
    assert loaded == [again.indices.tolist(), [], rollouts.verifier.record()]


@pytest.mark.realdata
@needs_gsm8k
def test_rollouts_of_gsm8k_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_level()
    policy = saved(tmp_path / "policy", tiny(vocabulary=len(tokenizer)), tokenizer)
    rows = [{**row, "answer": row["answer"].rpartition("#### ")[2]} for row in gsm8k_rows()[:6]]
    (tmp_path / "gsm8k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sampled = ["--model", policy, *EXACT[:2], "--n", "3", "--max-new-tokens", "8"]
    said = says(capsys, "rollouts", tmp_path / "gsm8k.jsonl", *sampled, "--out", tmp_path / "rolled")
    assert any("6 of 6 rows" in line for line in said), said
    rolled = load_run(tmp_path / "rolled").dataset
    assert rolled["question"][:] == [row["question"] for row in rows]
    assert [len(own) for own in rolled["responses"]] == [3] * 6
    assert {outcome for own in rolled["rollouts_outcomes"] for outcome in own} <= {"right", "wrong", "could not parse"}
    greedy = ["--scorer", "accuracy-greedy", "--out", tmp_path / "greedy"]
    assert any("6 of 6 rows scored" in line for line in says(capsys, "score", tmp_path / "rolled", *greedy))


# -- what cannot be done ----------------------------------------------------------------------------------------------

ROLL = ["rollouts", "PROBLEMS", *POLICY, "--out", "x"]
SERVER = ["--server", "http://127.0.0.1:9/v1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([*ROLL, "--verifier", "exat"], "--verifier: no verifier is called 'exat'. Did you mean 'exact'? A reward"),
        ([*ROLL, "--verifier", "my.reward"], "of your own is given in Python, where it is an object: score(dataset,"),
        (
            [*ROLL, "--verifier", "exact", "--verifier-option", "gold"],
            "is not NAME=VALUE, such as --verifier-option gold=",
        ),
        ([*ROLL, *EXACT, "--verifier-option", "pattern=(b)"], "--verifier-option pattern is given twice"),
        ([*ROLL, *EXACT, "--verifier-option", "gould=b"], "has no option 'gould'. Did you mean 'gold'?"),
        (
            [*ROLL, *EXACT, "--verifier-option", "numbers=maybe"],
            "--verifier-option numbers=maybe is neither True nor False",
        ),
        ([*ROLL, *EXACT, "--verifier-option", "gold=answr"], "Did you mean --verifier-option gold=answer?"),
        ([*ROLL, *EXACT, "--n", "0"], "--n 0 must be a whole number from 1 on"),
        ([*ROLL, *EXACT, "--top-p", "2"], "--top-p 2.0 must be above 0"),
        ([*ROLL, *EXACT, "--prompt", "promt"], "Did you mean --prompt prompt?"),
        ([*ROLL, *EXACT, "--timeout", "3"], "--timeout is for a server that samples, and there is none: --server URL"),
        ([*ROLL, *EXACT, "--token-ids"], "--token-ids is for a server that samples"),
        ([*ROLL, *EXACT, "--server-model", "m"], "--server-model is for a server that samples"),
        ([*ROLL, *EXACT, *SERVER, "--server-extra", "top_k"], "--server-extra 'top_k' is no JSON"),
        ([*ROLL, *EXACT, *SERVER, "--server-extra", "[1]"], "--server-extra '[1]' is a list, expected an object"),
        ([*ROLL, *EXACT, "--server", "localhost:8000"], "base_url='localhost:8000' is no address"),
        ([*ROLL, *EXACT, *SERVER, "--retries", "0"], "succeeded: "),
        (["rollouts", "PROBLEMS", *EXACT, "--out", "x"], "rollouts are sampled from a model: --model org/name"),
        (["rollouts", "no.jsonl", *POLICY, *EXACT, "--out", "x"], "there is no file 'no.jsonl'"),
        (["rollouts", "PLACE", *POLICY, *EXACT, "--out", "x"], "holds no finished run (no run.json): give 'org/name'"),
        (["score", "PLACE", *POLICY, "--out", "x"], "or the folder of a run that hf-curate rollouts or hf-curate"),
        (["score", "ROLLED", "--scorer", "random", "--out", "ROLLED"], "problems-rolled' would be read and"),
        (
            ["score", "PROBLEMS", "--scorer", "gradalign", "--validation", "ROLLED", *POLICY, "--out", "ROLLED"],
            "problems-rolled' would be read and written",
        ),
        (["score", "ROLLED", *POLICY, "--out", "x"], "hold rollouts and no trace"),
        (
            ["score", "ROLLED", "--scorer", "gradalign", "--validation", "PLACE", *POLICY, "--out", "x"],
            "--validation: the folder",
        ),
    ],
    ids=lambda value: " ".join(value)[-50:] if isinstance(value, list) else "",
)
def test_what_cannot_be_done_is_said_before_anything_is_sampled_or_written(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Rollouts, "score_rows", lambda *_, **__: pytest.fail("it was sampled"))
    known = {"PROBLEMS": place / "problems.jsonl", "PLACE": place, "ROLLED": place / "problems-rolled"}
    before = sorted(place.rglob("*"))
    assert words in refuses(capsys, *[known.get(argument, argument) for argument in arguments])
    assert list(tmp_path.iterdir()) == []
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("lacking", ["--verifier", "--out"])
def test_what_must_be_given_is_argparse_s_to_say(lacking: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = {"--verifier": "exact", "--out": "o"}
    del given[lacking]
    with pytest.raises(SystemExit) as caught:
        cli.main(["rollouts", "x", *(part for pair in given.items() for part in pair)])
    assert caught.value.code == 2
    assert f"required: {lacking}" in capsys.readouterr().err
