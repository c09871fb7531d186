"""The examples run (two of them in a process of their own, as printed), and their sampler draws from the model's own
distribution."""

from __future__ import annotations

import importlib.util
import random
import runpy
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import warm
from datasets import Dataset

from hf_curate.demo import MODEL, world
from hf_curate.demo.evaluate import greedy_rollouts
from hf_curate.demo.tokenizer import EOS_ID
from hf_curate.scorers.gradalign import STATISTICS, GradAlignScorer

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9]*.py"))


OWN_PROCESS = ("01_score_select_save_load", "06_score_rollouts")
HERE = [path for path in EXAMPLES if path.stem not in OWN_PROCESS]


SMALLER = {
    "04_noisy_rewards": {
        "candidates: int = 24": "candidates: int = 12",
        "(16,)": "(8,)",
        "validation: int = 8": "validation: int = 4",
        "validation_rollouts: int = 16": "validation_rollouts: int = 8",
    },
    "05_reliability": {
        "candidates: int = 16": "candidates: int = 8",
        "= (8, 16)": "= (4, 8)",
        "validation: int = 8": "validation: int = 4",
        "validation_rollouts: int = 16": "validation_rollouts: int = 8",
    },
    "08_which_problems": {"else Design()": "else Design(40, 6, 8, 8)"},
    "09_train_on_the_selected": {
        "else Design()": "else Design(20, 4, 4, 4, 8)",
        "Training(2, 4, 4)": "Training(2, 2, 4)",
    },
    "10_online_curriculum": {
        "chunk=32": "chunk=16",
        "validation_rollouts=16": "rollouts=8, validation_rollouts=4",
        "max_steps=12": "max_steps=8",
        "train_batch_size=32": "train_batch_size=16",
    },
    "11_online_scenarios": {
        "validation_rollouts: int = 8": "validation_rollouts: int = 4",
        "evaluation: int = 12": "evaluation: int = 4",
        "steps: int = 2": "steps: int = 1",
    },
}
"""What is written in an example -> what the test writes there: its sizes, since all of it runs either way."""


@pytest.mark.parametrize("path", HERE, ids=lambda path: path.stem)
def test_the_example_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = path.read_text("utf-8")
    for sizes, smaller in SMALLER.get(path.stem, {}).items():
        assert text.count(sizes) == 1, sizes
        text = text.replace(sizes, smaller)
    script = tmp_path / path.name
    script.write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    run_here(script, monkeypatch)
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("name", OWN_PROCESS)
def test_the_example_runs_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    """One that stands alone, and one that reads what lies beside it."""
    done = warm.run([sys.executable, str(FOLDER / f"{name}.py")], cwd=tmp_path, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def run_here(path: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """As `python path arguments` does, but for the libraries that are loaded already."""
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.syspath_prepend(FOLDER)
    runpy.run_path(str(path), run_name="__main__")


def test_the_tables_of_online_selection_are_those_of_the_recorded_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (FOLDER.parent / "docs" / "online.md").read_text("utf-8")
    many = ["--many", "--setting", "noisy", "--setting", "unbalanced"]
    rows = 0
    for more in ([], many, ["--setting", "unbalanced", "--end", "_many_quarter"]):
        recorded = ["--again", str(FOLDER.parent / "benchmarks" / "results"), *more]
        run_here(FOLDER / "11_online_scenarios.py", monkeypatch, *recorded)
        told = capsys.readouterr().out
        lines = [line.rstrip() for line in told.splitlines() if line and not line.startswith("{")]
        assert [line for line in lines if f"    {line}\n" not in page] == []
        rows += len(lines)
    assert rows == 3 * 10 + 2 * 4 + 4


def test_every_example_says_how_to_run_it() -> None:
    assert len(EXAMPLES) >= 3
    for path in EXAMPLES:
        assert f"python examples/{path.name}" in path.read_text("utf-8")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sampling() -> ModuleType:
    return load("sampling")


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [problem.prompt for problem in world.draw_problems(6, random.Random(3), "held_out")]


def test_every_sampled_token_is_the_one_that_its_random_number_means(sampling: ModuleType, prompts: list[str]) -> None:
    """Without a cache, one response at a time: the token at which the distribution function passes the draw."""
    model, tokenizer = sampling.load_demo_model()
    n, seed, temperature = 5, 4, 1.5
    found = sampling.sample(model, tokenizer, prompts, n, temperature=temperature, seed=seed, max_new_tokens=40)
    for index, prompt in enumerate(prompts):
        draws = np.random.default_rng([seed, index]).random((n, 40))
        start = tokenizer(prompt)["input_ids"]
        for response, uniform in zip(found[index], draws, strict=True):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([start + response])).logits[0, len(start) - 1 : -1]
            upto = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1).numpy()
            for token, row, draw in zip(response, upto, uniform, strict=False):
                low = row[token - 1] if token else 0.0
                assert low - 1e-4 <= draw <= row[token] + 1e-4
            assert tokenizer.eos_token_id not in response[:-1]
            assert response[-1] == tokenizer.eos_token_id or len(response) == 40


def test_rollouts_do_not_depend_on_their_company(
    sampling: ModuleType, prompts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = sampling.load_demo_model()
    together = sampling.sample(model, tokenizer, prompts, 6)
    assert [group[:2] for group in together[:3]] == sampling.sample(model, tokenizer, prompts[:3], 2)
    monkeypatch.setattr(sampling, "BATCH_ROWS", 1)
    assert sampling.sample(model, tokenizer, prompts, 6) == together


def test_a_cold_sampler_is_greedy_and_its_answers_are_checked(sampling: ModuleType, prompts: list[str]) -> None:
    model, tokenizer = sampling.load_demo_model()
    cold = sampling.sample(model, tokenizer, prompts, 1, temperature=1e-4)
    greedy = greedy_rollouts(model, tokenizer, prompts)
    assert [tokenizer.decode(group[0], skip_special_tokens=True) for group in cold] == greedy
    right = [
        [float(world.written_answer(text) == world.true_answer(p))] for text, p in zip(greedy, prompts, strict=True)
    ]
    assert sampling.rewards_of(tokenizer, prompts, cold) == right
    assert {0.0, 1.0} == {reward for rewards in right for reward in rewards}


def test_the_statistics_of_one_pass_are_those_of_the_scorers(
    sampling: ModuleType, prompts: list[str], tmp_path: Path
) -> None:
    model, tokenizer = sampling.load_demo_model()
    rows = sampling.sampled_rows(model, tokenizer, prompts, 8, seed=0)
    rows[0]["rewards"] = [1.0] * 8  # no signal
    rows[1]["response_ids"][1:] = rows[1]["response_ids"][:1] * 7  # cancels
    rows[1]["rewards"] = [0.0, 1.0] * 4
    rows[2]["response_ids"] = [rows[2]["response_ids"][0], [EOS_ID]] * 4  # no spread
    rows[2]["rewards"] = [1.0, 0.0] * 4
    dataset = Dataset.from_list(rows)
    out = tmp_path / "direction.safetensors"
    fitted = GradAlignScorer(MODEL, validation=dataset, dtype="float32").fit(dataset, out=out)
    at_once = load("one_pass").score_at_once(fitted, rows)
    assert set(at_once) == set(STATISTICS)
    for name, found in at_once.items():
        scorer = GradAlignScorer(MODEL, direction=out, statistic=name, dtype="float32")
        scored = dataset.map(scorer, batched=True, features=scorer.features(dataset))["gradalign_score"]
        np.testing.assert_allclose(found, np.array(scored, dtype=np.float64), rtol=1e-5)
    assert at_once["cosine"][0] == at_once["cosine"][1] == 0.0
    assert np.isnan(at_once["t"][2])
    assert at_once["cosine"][2] != 0.0
