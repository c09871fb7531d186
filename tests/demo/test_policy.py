"""The shipped policy: what is in its folder, and how often it solves the problems of each family and level."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_curate import Rollouts
from hf_curate.demo import POLICY, recipes, tasks, train, world
from hf_curate.demo.evaluate import pass_rates
from hf_curate.demo.tokenizer import EOS_ID, PAD_ID, SPECIALS, UNK_ID
from hf_curate.errors import ScoreError

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
}
KINDS = [(family, level) for family, levels in tasks.LEVELS.items() for level in levels]
RECORD: dict[str, Any] = json.loads((POLICY / "training.json").read_text("utf-8"))
FRESH = 100


def fresh(rows: int, seed: int, split: str = "held_out") -> list[tasks.Row]:
    return [row for f, level in KINDS for row in tasks.problems(f, rows, level=level, seed=seed, split=split)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(POLICY)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(POLICY, dtype=torch.float32)


def test_folder_holds_under_a_megabyte_of_float16_weights(model: PreTrainedModel) -> None:
    assert {path.name for path in POLICY.iterdir()} == FILES
    assert sum(path.stat().st_size for path in POLICY.iterdir()) < 1_000_000
    assert model.config.model_type == "qwen3"
    assert f"tasks-{model.num_parameters() / 1e6:.1f}m" == POLICY.name
    assert AutoModelForCausalLM.from_pretrained(POLICY, dtype="auto").dtype == torch.float16


def test_the_recipe_builds_what_is_shipped(tokenizer: PreTrainedTokenizerBase) -> None:
    built = train.build_model(tokenizer, recipes.TASKS).config.to_dict()
    shipped = AutoConfig.from_pretrained(POLICY).to_dict()
    by_saving = {"dtype", "architectures", "_name_or_path"}
    assert {name for name in built | shipped if built.get(name) != shipped.get(name)} <= by_saving


def test_special_tokens_agree(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == SPECIALS
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (PAD_ID, EOS_ID, UNK_ID)
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id, config.bos_token_id) == (EOS_ID, PAD_ID, None)
    assert len(tokenizer) == model.config.vocab_size == len(SPECIALS) + len(tasks.CHARACTERS)
    assert tokenizer.chat_template is None
    assert tokenizer.model_max_length == model.config.max_position_embeddings


def test_the_tokenizer_and_the_context_take_every_problem(tokenizer: PreTrainedTokenizerBase) -> None:
    for row in fresh(100, seed=4, split="pool"):
        text = row["prompt"] + tasks.clean(row)
        ids = tokenizer(text)["input_ids"]
        assert UNK_ID not in ids
        assert tokenizer.decode(ids) == text
        assert len(tokenizer(row["prompt"])["input_ids"]) + tasks.LONGEST <= tokenizer.model_max_length


def test_training_record_matches_the_code() -> None:
    assert RECORD["data"] == recipes.TASKS.data()
    assert RECORD["settings"] == asdict(recipes.TASKS.settings)
    assert RECORD["checks"][-1]["step"] == RECORD["steps"] <= RECORD["settings"]["max_steps"]
    assert RECORD["versions"].keys() == {"python", "torch", "transformers"}


def test_some_levels_are_mastered_and_some_of_each_family_are_not() -> None:
    assert recipes.TASKS.complaint(RECORD) == ""
    rates = {
        family: [RECORD["pass_rate"][family][str(level)] for level in levels]
        for family, levels in tasks.LEVELS.items()
    }
    for own in rates.values():
        assert own == sorted(own, reverse=True)
        assert 0.05 < own[-1] < recipes.MASTERED
    assert sum(rate >= recipes.MASTERED for own in rates.values() for rate in own) >= 3


@pytest.mark.parametrize("name", ["pass_rate", "greedy_accuracy"])
def test_recorded_rates_hold_on_a_fresh_sample(name: str) -> None:
    recorded = RECORD[name]
    found = pass_rates(POLICY, fresh(FRESH, seed=2026), temperature=recorded["temperature"], seed=2026)
    for family, levels in found.items():
        for level, rate in levels.items():
            before = recorded[family][level]
            share = (before * recorded["rows_a_level"] + 1) / (recorded["rows_a_level"] + 2)  # never 0 or 1
            error = (share * (1 - share) * (1 / recorded["rows_a_level"] + 1 / FRESH)) ** 0.5
            assert abs(rate - before) <= 3 * error, (family, level, rate, before)


def test_sampled_answers_vary_and_learnable_levels_give_a_signal() -> None:
    rates = RECORD["pass_rate"]
    rows = [row for row in fresh(24, seed=6, split="pool") if 0.2 <= rates[row["family"]][str(row["level"])] <= 0.6]
    assert len({row["family"] for row in rows}) > 1
    rollouts = Rollouts(POLICY, tasks.solved, 8, max_new_tokens=tasks.LONGEST, dtype="float32")
    made = [one for one in rollouts.score_rows(rows) if isinstance(one, dict)]
    assert len(made) == len(rows)
    assert all(not one["rollouts_error"] for one in made)
    assert sum(len(set(one["responses"])) for one in made) / len(made) > 2
    assert sum(0 < one["success_rate"] < 1 for one in made) > len(made) / 2
    assert sum(one["rollouts_truncated"] for one in made) < 0.05 * 8 * len(made)


def test_rates_of_a_live_model_are_those_of_its_folder(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    rows = fresh(4, seed=8)
    assert pass_rates(model, rows, 2, tokenizer=tokenizer, seed=1) == pass_rates(POLICY, rows, 2, seed=1)


def test_a_problem_that_cannot_be_judged_is_an_error(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    [row] = tasks.problems("countdown", 1, seed=0, split="pool")
    with pytest.raises(ScoreError, match="has no rewards"):
        pass_rates(model, [row | {"family": "riddle"}], tokenizer=tokenizer)


def test_an_untrained_policy_is_saved_and_refused(tmp_path: Path) -> None:
    small = {"max_steps": 2, "batch_rows": 4, "check_every": 1, "check_rows": 2, "measure_rows": 2}
    with pytest.raises(SystemExit, match=r"no level has a pass rate of 0.9: \{'chain': \["):
        train.run(tmp_path, recipes.TASKS, replace(recipes.TASKS.settings, **small))
    assert {path.name for path in tmp_path.iterdir()} == FILES
    record = json.loads((tmp_path / "training.json").read_text())
    assert [check["step"] for check in record["checks"]] == [1, 2]
    assert record["pass_rate"].keys() == RECORD["pass_rate"].keys()


def test_training_reads_its_own_split_in_the_shares_of_the_mixture() -> None:
    examples = recipes.TASKS.examples(random.Random(3))
    drawn = [prompt for prompt, _ in (next(examples) for _ in range(400))]
    assert all(world.split_of(prompt, tasks.SPLITS) == "train" for prompt in drawn)
    for family, mark in {"chain": "?", "countdown": ":", "sort": "<"}.items():
        share = sum(mark in prompt for prompt in drawn) / 400
        assert share == pytest.approx(sum(recipes.MIXTURE[family]), abs=0.075)  # 3 standard errors of a half
    assert sum(sum(weights) for weights in recipes.MIXTURE.values()) == pytest.approx(1.0)
