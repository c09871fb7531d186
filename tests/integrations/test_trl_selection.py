"""GRPO with TRL on chosen problems: nothing but the prompts changes, and these are the scorer's."""

from __future__ import annotations

import copy
import json
import logging
import os
import random
import socket
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import online
import pytest
import rollouts
import tiny
import torch
import warm
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOTrainer

from hf_curate import (
    AccuracyGreedyScorer,
    AlignScorer,
    GradAlignScorer,
    LearnAlignScorer,
    PassRateBandScorer,
    RandomScorer,
    Rollouts,
)
from hf_curate.curriculum.journal import read_journal
from hf_curate.errors import CurateError, DirectionError, ScoreError
from hf_curate.integrations.in_place import VALIDATION
from hf_curate.integrations.trl import HISTORY_FILE, STATE_FILE, OnlineSelector, SelectedGRPOTrainer
from hf_curate.models import load_model
from hf_curate.rollouts.sample import end_tokens
from hf_curate.scorers.in_training import policy_record
from hf_curate.weights import ModelSource

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")
LORA: dict[str, Any] = {"r": 4, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(**LORA)


# -- nothing else changes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 1, "max_steps": 3},
        {"steps_per_generation": 2, "num_iterations": 2, "max_steps": 6},
        {"peft_config": lora, "gradient_checkpointing": True, "beta": 0.1},
        {"gradient_checkpointing": False, "bf16": True},
    ],
    ids=["plain", "accumulation", "generations used again", "LoRA", "autocast"],
)
def test_a_selector_that_keeps_everything_changes_no_loss(tmp_path: Path, settings: dict[str, Any]) -> None:
    given = {name: value() if callable(value) else value for name, value in settings.items()}
    adapter = {"peft_config": given.pop("peft_config")} if "peft_config" in given else {}
    plain = GRPOTrainer(
        online.policy(),
        online.reward,
        online.settings(tmp_path / "plain", **given),
        online.problems(20),
        processing_class=rollouts.tokenizer(),
        **adapter,
    )
    plain.train()
    watching = online.selector(keep="100%")
    selected = online.trained(tmp_path / "watched", watching, **given, **adapter)
    assert online.losses(selected) == online.losses(plain)
    assert all(norm > 0 for _, norm, _ in online.losses(plain)[:2])
    assert len(watching.history) >= 2
    assert any(score for score in watching.history[1]["scores"])
    theirs = dict(plain.model.named_parameters())
    for name, parameter in selected.model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def remembered(trainer: Any) -> dict[str, Any]:
    """All of a trainer's state that selection could disturb."""
    model = trainer.model
    return {
        "modes": [module.training for module in model.modules()],
        "flags": [parameter.requires_grad for parameter in model.parameters()],
        "weights": [parameter.detach().clone() for parameter in model.parameters()],
        "versions": [parameter._version for parameter in model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "buffers": [buffer.clone() for buffer in model.buffers()],
        "forwards": [module.__dict__.get("forward") for module in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "reducers": [len(p._post_accumulate_grad_hooks or ()) for p in model.parameters()],
        "config": model.config.to_dict(),
        "generation": model.generation_config.to_dict(),
        "optimizer": copy.deepcopy(trainer.optimizer.state_dict()),
        "torch": torch.random.get_rng_state(),
        "numpy": np.random.get_state()[1],  # type: ignore[index]
        "python": random.getstate(),
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return bool((left == right).all())
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def noisy(completions: list[str], digit: list[str], **_: Any) -> list[float]:
    """A reward that draws from every stream there is."""
    random.random(), np.random.rand(), torch.rand(1)
    return online.reward(completions, digit)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
def test_a_round_leaves_everything_as_it_was(tmp_path: Path, adapter: bool) -> None:
    compared: list[str] = []

    class Compares(SelectedGRPOTrainer):
        def _chosen(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
            if self.selector.due(self.state.global_step):
                before = remembered(self)
                assert self.state.global_step == 0 or any(g is not None for g in before["gradients"])
                record = self._in_place.round(self.state.global_step)
                after = remembered(self)
                compared.extend(name for name in before if not same(before[name], after[name]))
                compared.append(f"round {record['round']}")
            return super()._chosen(inputs)

    given = {"peft_config": lora()} if adapter else {}
    one = Compares(
        online.policy(),
        noisy,
        online.settings(tmp_path, max_steps=3, gradient_accumulation_steps=2, steps_per_generation=1),
        processing_class=rollouts.tokenizer(),
        selector=online.selector(every=1),
        **given,
    )

    class Keeps(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            one.model.zero_grad = lambda *_: None  # gradients that a round must not touch

    one.add_callback(Keeps())
    one.train()
    assert compared == ["round 0", "round 1", "round 2"]


@pytest.mark.parametrize("bf16", [True, False])
def test_selection_computes_in_the_types_of_training(tmp_path: Path, bf16: bool) -> None:
    chosen = online.selector()
    one = online.trainer(tmp_path, chosen, max_steps=1, bf16=bf16)
    seen: dict[str, set[torch.dtype]] = {"selection": set(), "training": set()}
    where, select = ["training"], one._in_place.round

    def selecting(step: int) -> Any:
        where[0] = "selection"
        record = select(step)
        where[0] = "training"
        return record

    one._in_place.round = selecting
    for module in one.model.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, given, out: seen[where[0]].add(out.dtype))
    one.train()
    expected = torch.bfloat16 if bf16 else torch.float32
    assert seen == {"selection": {expected}, "training": {expected}}
    assert {parameter.dtype for parameter in one.model.parameters()} == {torch.float32}
    assert chosen.history[0]["autocast"] == ("bfloat16" if bf16 else None)
    assert sum(map(bool, chosen.history[0]["scores"])) >= 3


# -- the prompts are those chosen -------------------------------------------------------------------------------------


def test_training_sees_the_kept_problems_each_with_its_group(tmp_path: Path) -> None:
    trained: list[list[tuple[str, str]]] = []

    class Sees(SelectedGRPOTrainer):
        def _calculate_rewards(self, inputs: Any, *others: Any) -> Any:
            trained.append([(row["prompt"], row["digit"]) for row in inputs])
            return super()._calculate_rewards(inputs, *others)

    pool = online.problems(20)
    chosen = online.selector(pool, keep=3)
    one = Sees(
        online.policy(),
        online.reward,
        online.settings(tmp_path),
        processing_class=rollouts.tokenizer(),
        selector=chosen,
    )
    one.train()
    expected = [[(pool[row]["prompt"], pool[row]["digit"]) for row in rows] for rows in online.prompts(chosen)]
    assert [rows[::4] for rows in trained] == expected
    assert all(rows[n] == rows[n // 4 * 4] for rows in trained for n in range(8))
    kept = [record["kept"] for record in chosen.history]
    assert [batch["round"] for batch in chosen.used] == [0, 0, 1, 1]
    assert all(set(batch["rows"]) <= set(kept[batch["round"]]) for batch in chosen.used)
    logged = [entry for entry in one.state.log_history if "selection/seconds" in entry]
    assert [entry["step"] for entry in logged] == [1, 3]
    assert logged[0]["selection/rollouts"] == 6 * 4 + 3 * 4
    assert logged[1]["selection/overlap"] == len(set(kept[0]) & set(kept[1])) / 3
    best = [score for score in chosen.history[1]["scores"] if score is not None]
    assert logged[1]["selection/score_max"] == max(best)
    assert 0 < logged[1]["selection/share_of_time"] < 1
    account = one.selection_record()
    assert (account["selection_rollouts"], account["training_rollouts"]) == (72, 32)
    assert account["verifier"]["options"] == {"functions": ["reward"], "weights": [1.0]}
    assert account["seconds"]["selection"] < account["seconds"]["all"]
    assert json.loads(json.dumps(account)) == account
    assert chosen.history_dataset()["prompt"][:] == [prompt for rows in expected for prompt, _ in rows]


def test_a_model_by_its_folder_with_the_pool_as_its_dataset_trains(tmp_path: Path) -> None:
    pool = online.problems(20)
    one = SelectedGRPOTrainer(
        str(rollouts.saved_policy(tmp_path / "policy")),
        reward_funcs=online.reward,
        args=online.settings(tmp_path / "run", max_steps=1),
        train_dataset=Dataset.from_list(pool.to_list()),
        selector=online.selector(pool),
    )
    one.train()
    assert any(one.selector.history[0]["scores"])
    assert one.selector.used[0]["step"] == 0


STATISTICS = ["cosine", "dot", "t", "corr"]


@pytest.mark.parametrize("statistic", STATISTICS)
def test_the_scores_are_those_of_the_same_scorer_on_the_same_rollouts(tmp_path: Path, statistic: str) -> None:
    """The oracle: the policy as files, its rollouts as a dataset, and the scorer outside of any training."""
    pool, trusted = online.problems(8), online.problems(3, seed=1)
    chosen = online.selector(
        pool, GradAlignScorer(validation=trusted, statistic=statistic), temperature=1.0, top_p=1.0
    )
    rows, seeds = chosen.next_chunk(), [chosen.seed_of_round(), chosen.seed_of_round(VALIDATION)]
    folder = rollouts.saved_policy(tmp_path / "policy")
    online.trained(tmp_path / "run", chosen, max_steps=1)
    answered, judged = (
        data.map(Rollouts(folder, online.reward, 4, seed=seed, max_new_tokens=8, prompt="prompt"), batched=True)
        for data, seed in zip([pool.select(rows), trusted], seeds, strict=True)
    )
    scorer = GradAlignScorer(folder, validation=judged, statistic=statistic, response_ids="response_ids")
    expected = answered.map(scorer, batched=True)
    assert chosen.history[0]["scores"] == pytest.approx(expected["gradalign_score"][:], rel=1e-4, abs=1e-6)
    assert sum(map(bool, expected["gradalign_score"][:])) >= 3
    assert chosen.history[0]["direction"]["norm"] == pytest.approx(scorer.direction_record()["norm"], rel=1e-5)
    order = sorted(range(6), key=lambda place: -expected["gradalign_score"][place])
    assert chosen.selection == [rows[place] for place in order[:2]]


@pytest.mark.parametrize(
    "scorer",
    [
        LearnAlignScorer(),
        AlignScorer(parameters="linear"),
        AccuracyGreedyScorer(),
        PassRateBandScorer(),
        RandomScorer(),
    ],
    ids=lambda scorer: scorer.name,
)
def test_any_scorer_drives_it(tmp_path: Path, scorer: Any) -> None:
    chosen = online.selector(scorer=scorer)
    one = online.trained(tmp_path, chosen, max_steps=3, num_generations=8)
    first, second = chosen.history
    assert [record["step"] for record in chosen.history] == [0, 2]
    known = [score for score in first["scores"] if score is not None]
    assert len(known) == 6
    assert len(set(known)) > 1
    score = dict(zip(first["rows"], first["scores"], strict=True))
    assert min(score[row] for row in first["kept"]) >= max(score[r] for r in first["rows"] if r not in first["kept"])
    assert not first["chance"]
    spent = 0 if isinstance(scorer, RandomScorer) else 24
    assert (first["rollouts"], second["rollouts"]) == (spent, spent)
    assert all(np.isfinite(loss) for loss, _, _ in online.losses(one))


def test_chance_is_another_in_each_round(tmp_path: Path) -> None:
    chosen = online.selector(online.problems(6), RandomScorer(), every=1)
    online.trained(tmp_path, chosen, max_steps=3)
    scores = [dict(zip(one["rows"], one["scores"], strict=True)) for one in chosen.history]
    assert scores[0] != scores[1] != scores[2]


def test_an_adapter_is_scored_over_what_it_trains(tmp_path: Path) -> None:
    chosen = online.selector(scorer=GradAlignScorer(validation=online.problems(3, seed=1), parameters="all"))
    one = online.trained(tmp_path, chosen, max_steps=3, peft_config=lora())
    trained = [p for p in one.model.parameters() if p.requires_grad]
    told = chosen.history[1]["direction"]["parameters"]
    assert told == {"set": "all", "tensors": len(trained), "values": sum(p.numel() for p in trained)}
    assert told["tensors"] == 8
    assert any(chosen.history[1]["scores"])


def test_a_round_knows_which_weights_it_was_made_with(tmp_path: Path) -> None:
    chosen = online.selector()
    one = online.trainer(tmp_path, chosen)
    before = policy_record(one._in_place.policy)["digest"]
    one.train()
    policies = [record["policy"] for record in chosen.history]
    assert policies[0] == before == chosen.history[0]["direction"]["model"]["digest"]
    assert policies[1] not in (before, policy_record(one._in_place.policy)["digest"])
    assert len({record["direction"]["key"] for record in chosen.history}) == 2


def test_a_direction_in_memory_is_refused_when_the_weights_have_moved() -> None:
    model = online.policy()
    rows = rollouts.solved(3)
    live = load_model(ModelSource.of(model), rollouts.tokenizer())
    scorer = GradAlignScorer(validation=online.problems(2)).bound_to(live)
    groups: list[Any] = [scorer.reader.read(row) for row in rows]
    scorer.fit_groups(groups, {"of": "three problems"})
    assert scorer.fitted is not None
    assert scorer.fitted.path is None
    assert scorer.score_groups(groups)[0]["gradalign_score"] > 0  # type: ignore[index]
    assert scorer.record()["direction"]["of"] == "three problems"
    with torch.no_grad():
        next(model.parameters()).add_(0.01)
    with pytest.raises(DirectionError, match="kept in memory for the weights of its fit"):
        scorer.score_groups(groups)


def test_prompts_are_those_of_training_also_by_a_template_with_options(tmp_path: Path) -> None:
    template = "{% for m in messages %}<|user|>{{ m['content'] }}{{ mood }}{% endfor %}<|assistant|>"
    tokenizer = tiny.byte_level(pad_token="</s>", chat_template=template)
    chats = [[{"role": "user", "content": f"{n} + 2?"}] for n in range(6)]
    pool = Dataset.from_dict({"prompt": chats, "letter": ["e"] * 6})
    asked: list[tuple[Any, Any]] = []

    def reward(prompts: list[Any], completions: list[Any], letter: list[str], **_: Any) -> list[float]:
        asked.append((prompts[0], completions[0]))
        texts = [completion[0]["content"] for completion in completions]
        return [float(own in text) for text, own in zip(texts, letter, strict=True)]

    chosen = OnlineSelector(GradAlignScorer(validation=pool), pool, chunk=6, keep=2, rollouts=8, temperature=1.0)
    one = SelectedGRPOTrainer(
        tiny.tiny(vocabulary=len(tokenizer)),
        reward,
        online.settings(tmp_path, max_steps=1, max_completion_length=24, chat_template_kwargs={"mood": "!"}),
        processing_class=tokenizer,
        selector=chosen,
    )
    one.train()
    assert one._in_place.ids_of(chats[1]) == tokenizer("<|user|>1 + 2?!<|assistant|>")["input_ids"]
    assert [(prompt[0]["role"], answer[0]["role"]) for prompt, answer in asked] == [("user", "assistant")] * len(asked)
    assert len(asked) == 6 + 6 + 1
    assert any(chosen.history[0]["signal"])


@pytest.mark.parametrize("parsed", [False, True], ids=["plain", "a tokenizer that parses"])
def test_a_reward_sees_answers_of_selection_as_those_of_training(tmp_path: Path, parsed: bool) -> None:
    template = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}<|assistant|>"
    tokenizer = tiny.byte_level(pad_token="</s>", chat_template=template)
    if parsed:
        tokenizer.response_template = {
            "defaults": {"role": "assistant"},
            "start_anchor": "<|assistant|>",
            "fields": {
                "reasoning_content": {"open_pattern": "^", "close_pattern": "e", "content": "text"},
                "content": {"close_pattern": "$", "content": "text"},
            },
        }
    seen: dict[bool, list[tuple[list[int], Any]]] = {False: [], True: []}

    def reward(prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any) -> list[float]:
        training = len(prompts) == 16
        seen[training] += [(ids, answer) for ids, [answer] in zip(completion_ids, completions, strict=True)]
        return [float("t" in answer["content"]) for [answer] in completions]

    pool = Dataset.from_dict({"prompt": [[{"role": "user", "content": f"{n} + 2?"}] for n in range(4)]})
    given: dict[str, Any] = {"chunk": 4, "keep": 2, "rollouts": 8, "temperature": 1.0, "top_p": 1.0}
    SelectedGRPOTrainer(
        tiny.tiny(vocabulary=len(tokenizer)),
        reward,
        online.settings(tmp_path, max_steps=1, per_device_train_batch_size=16, num_generations=8),
        processing_class=tokenizer,
        selector=OnlineSelector(AccuracyGreedyScorer(), pool, reuse_rollouts=True, **given),
    ).train()
    ours = {tuple(ids): answer for ids, answer in seen[False]}
    assert len(seen[False]) == 32
    assert [answer for _, answer in seen[True]] == [ours[tuple(ids)] for ids, _ in seen[True]]
    assert any("reasoning_content" in answer for _, answer in seen[True]) == parsed


# -- responses used again ---------------------------------------------------------------------------------------------

SAME: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "reuse_rollouts": True}


@pytest.mark.parametrize(("keep", "reused"), [(3, 2), (1, 1)], ids=["a whole batch", "a problem twice in a batch"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_first_groups_of_a_round_are_those_it_drew(tmp_path: Path, keep: int, reused: int) -> None:
    answers: list[list[list[int]]] = []
    drawn: list[dict[int, list[list[int]]]] = []

    class Sees(SelectedGRPOTrainer):
        def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
            answers.append(ids)
            return super()._calculate_rewards(inputs, prompts, completions, ids)

    chosen = online.selector(rollouts=5, keep=keep, **SAME)
    one = Sees(
        online.policy(),
        online.reward,
        online.settings(tmp_path),
        processing_class=rollouts.tokenizer(),
        selector=chosen,
    )
    select = one._in_place.round

    def selecting(step: int) -> Any:
        record = select(step)
        drawn.append(dict(one._in_place.drawn))
        return record

    one._in_place.round = selecting
    assert set(one.eos_token_ids) == end_tokens(one._in_place.policy), "responses end where those of training do"
    one.train()
    assert [batch["reused"] for batch in chosen.used] == [reused, 0, reused, 0]
    for number, (batch, ids) in enumerate(zip(chosen.used, answers, strict=True)):
        ours = drawn[batch["round"]]
        assert set(ours) == set(chosen.history[batch["round"]]["kept"])
        groups = [ids[:4], ids[4:]]
        same = [group == ours[row][:4] for row, group in zip(batch["rows"], groups, strict=True)]
        assert sum(same) == (reused if number % 2 == 0 else 0)
    assert one.selection_record()["training_rollouts"] == 4 * (8 - 2 * reused)
    assert all(np.isfinite(loss) for loss, _, _ in online.losses(one))


@pytest.mark.parametrize(
    ("selection", "training", "says"),
    [
        ({"temperature": 0.7}, {}, r"temperature=0.7 and training with 1.0"),
        ({"top_p": 0.95}, {}, r"top_p=0.95 and training with 1.0"),
        ({"max_new_tokens": 6}, {}, r"max_new_tokens=6 and training with 8"),
        ({}, {"top_k": 5}, r"top_k=0 and training with 5"),
        ({}, {"repetition_penalty": 1.1}, r"repetition_penalty=1.0 and training with 1.1"),
        ({"rollouts": 3}, {}, r"rollouts=3 and a group of training has num_generations=4"),
    ],
)
def test_responses_of_another_distribution_are_not_used_again(
    tmp_path: Path, selection: dict[str, Any], training: dict[str, Any], says: str
) -> None:
    with pytest.raises(CurateError, match=says):
        online.trainer(tmp_path, online.selector(**(SAME | selection)), **training)


# -- rollouts that need not be drawn ----------------------------------------------------------------------------------


def test_problems_that_are_decided_by_half_of_their_rollouts_get_no_more(tmp_path: Path) -> None:
    def selector(**others: Any) -> OnlineSelector:
        scorer = GradAlignScorer(validation=online.problems(3, seed=1), statistic="t")
        return online.selector(online.problems(16), scorer, chunk=16, keep=4, **others)

    early, half = selector(rollouts=16, stop_early=0.6), selector(rollouts=8)
    one = online.trained(tmp_path / "early", early, max_steps=1, save_strategy="steps", save_steps=1)
    kept = (tmp_path / "early" / "checkpoint-1" / HISTORY_FILE).read_text("utf-8")
    assert read_journal(kept) == (early.history, early.used)
    online.trained(tmp_path / "half", half, max_steps=1)
    record, first = early.history[0], half.history[0]
    stopped = record["stopped"]
    assert 2 <= sum(stopped) <= 14
    assert record["saved"] == 8 * sum(stopped)
    assert record["rollouts"] == 16 * 16 + 3 * 4 - record["saved"]
    for place, done in enumerate(stopped):
        whole, part = record["scores"][place], first["scores"][place]
        assert whole == pytest.approx(part * 2**0.5, rel=1e-5) if done else whole != part * 2**0.5 or part == 0
        assert not (done and part == 0), "no signal in the first half decides nothing"
    [logged] = [entry for entry in one.state.log_history if "selection/saved" in entry]
    assert logged["selection/saved"] == record["saved"]


def test_a_problem_whose_other_half_fails_has_no_score_and_its_reason(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def once(prompts: list[str], completions: list[str], digit: list[str], **_: Any) -> list[float | None]:
        asked[prompts[0]] += 1
        if asked[prompts[0]] > 1 and int(digit[0]) % 2:
            return [None] * len(completions)
        return list(online.reward(completions, digit))

    scorer = GradAlignScorer(validation=online.problems(3, seed=1), statistic="t")
    chosen = online.selector(online.problems(8), scorer, chunk=8, rollouts=16, stop_early=0.99)
    trainer = online.trainer(tmp_path, chosen, rewards=once)
    record = trainer._in_place.round(0)
    odd = [int(chosen.pool[row]["digit"]) % 2 == 1 for row in record["rows"]]
    failed = [lost and not done for lost, done in zip(odd, record["stopped"], strict=True)]
    assert 2 <= sum(failed) <= 6
    assert [score is None for score in record["scores"]] == [signal is None for signal in record["signal"]] == failed
    assert record["failed"] == {"no reward": sum(failed)}


def test_what_a_round_learns_of_the_memory_stays_and_is_in_its_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_curate.memory.GROWS_AFTER", 1000)  # nothing is tried again within these rounds
    chosen = online.selector()
    trainer = online.trainer(tmp_path, chosen)
    asked: list[float] = []

    def fail(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        taken = (
            1 if kwargs["use_cache"] else 1.5
        )  # a forward whose activations are kept takes more than one that samples
        asked.append(taken * kwargs["input_ids"].numel())
        if asked[-1] > 60:
            raise RuntimeError("CUDA out of memory. Tried to allocate")

    before = trainer._in_place.round(0)
    handle = trainer._in_place.policy.decoder.register_forward_pre_hook(fail, with_kwargs=True)
    with caplog.at_level(logging.INFO, "hf_curate"):
        first = trainer._in_place.round(2)
        sizes, asked[:] = list(asked), []
        second = trainer._in_place.round(4)
    handle.remove()
    assert "notes" not in before
    assert any(note.startswith("out of memory at ") for note in first["notes"])
    assert not any(note.startswith("out of memory at ") for note in second.get("notes", ()))
    assert max(asked) < max(sizes)
    assert sum(size > 60 for size in asked) < sum(size > 60 for size in sizes)
    warned = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert sorted(text.partition(":")[0] for text in warned) == ["GradAlign", "Rollouts"]
    assert read_journal(chosen.journal())[0] == [before, first, second] == chosen.history


# -- checkpoints ------------------------------------------------------------------------------------------------------


class KilledError(Exception):
    pass


class Kills(TrainerCallback):
    """Ends training at a step, after its checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            raise KilledError


def without_seconds(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in record.items() if name != "seconds"} for record in history]


@pytest.mark.parametrize(
    "settings",
    [{"save_steps": 1}, {"save_steps": 2, "steps_per_generation": 2, "gradient_accumulation_steps": 1}],
    ids=["a batch a step", "a batch in two steps"],
)
def test_a_killed_and_resumed_training_goes_on_with_the_same_prompts(tmp_path: Path, settings: dict[str, Any]) -> None:
    given = {"max_steps": 6, "save_strategy": "steps", **settings}
    whole = online.trained(tmp_path / "whole", online.selector(), **given)
    with pytest.raises(KilledError):
        online.trained(tmp_path / "killed", online.selector(), callbacks=[Kills(4)], **given)
    chosen = online.selector()
    again = online.trainer(tmp_path / "killed", chosen, **given)
    again.train(resume_from_checkpoint=True)
    assert chosen.used == whole.selector.used
    assert without_seconds(chosen.history) == without_seconds(whole.selector.history)
    assert online.losses(again) == online.losses(whole)
    assert chosen.elapsed > sum(record["seconds"] for record in chosen.history)


def test_a_checkpoint_within_a_generation_batch_is_warned_of_with_what_avoids_it(tmp_path: Path) -> None:
    given = {"max_steps": 4, "save_strategy": "steps", "num_iterations": 2}
    with pytest.warns(UserWarning, match=r"checkpoint-1 lies within.*Save at multiples of 2 steps \(save_steps=2\)"):
        online.trained(tmp_path / "one", online.selector(), save_steps=1, **given)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lies within")
        online.trained(tmp_path / "two", online.selector(), save_steps=2, **given)
    resumed = online.trainer(tmp_path / "one", online.selector(), **given)
    with pytest.warns(UserWarning, match=r"checkpoint-2 lies within.*2 steps apart, counted from step 1, where this"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "one" / "checkpoint-1"))
    assert [batch["step"] for batch in resumed.selector.used] == [0, 1, 3]


def test_a_checkpoint_without_a_selector_and_one_of_another_are_told(tmp_path: Path) -> None:
    online.trained(tmp_path, online.selector(), max_steps=1, save_strategy="steps", save_steps=1)
    other = online.trainer(tmp_path, online.selector(every=3), max_steps=2)
    with pytest.raises(CurateError, match="saved with every=2, and this selector has every=3"):
        other.train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-1" / HISTORY_FILE).unlink()
    with pytest.raises(CurateError, match=r"checkpoint-1 holds selector.json and no selector_history.jsonl"):
        online.trainer(tmp_path, online.selector(), max_steps=2).train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-1" / STATE_FILE).unlink()
    with pytest.warns(UserWarning, match=r"checkpoint-1 holds no selector.json"):
        online.trainer(tmp_path, online.selector(), max_steps=2).train(resume_from_checkpoint=True)


def test_a_selector_of_another_training_is_refused_before_it_trains(tmp_path: Path) -> None:
    chosen = online.selector()
    one = online.trained(tmp_path, chosen, max_steps=3, save_strategy="steps", save_steps=3)
    weights = [parameter.clone() for parameter in one.model.parameters()]
    says = (
        r"has had 2 rounds in another training, the last at step 2.*OnlineSelector\(\.\.\.\).*resume_from_checkpoint"
    )
    with pytest.raises(CurateError, match=says):
        one.train()
    with pytest.raises(CurateError, match=says):
        online.trained(tmp_path / "other", chosen)
    assert all(map(torch.equal, weights, one.model.parameters()))
    (tmp_path / "checkpoint-3" / STATE_FILE).rename(tmp_path / STATE_FILE)
    with pytest.raises(CurateError, match=says):
        one.train(resume_from_checkpoint=True)
    (tmp_path / STATE_FILE).rename(tmp_path / "checkpoint-3" / STATE_FILE)
    one.args.max_steps = 4
    one.train(resume_from_checkpoint=True)
    assert [batch["step"] for batch in chosen.used] == [0, 1, 2, 3]


def test_time_between_trainings_is_not_of_training(tmp_path: Path) -> None:
    one = online.trained(tmp_path, online.selector(), max_steps=1)
    spent = one.selection_record()["seconds"]["all"]
    time.sleep(0.05)
    assert one.selection_record()["seconds"]["all"] == spent


# -- two processes ----------------------------------------------------------------------------------------------------


def as_torchrun_does(rank: int, of: int, port: int) -> dict[str, str]:
    """The variables by which the processes of a training on one machine know of each other."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": of, "LOCAL_WORLD_SIZE": of, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What two processes under gloo say, each, and one process that does the same."""
    folder = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(Path(__file__).parent / "two_processes.py"), str(folder)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = []
    try:
        for rank in range(2):
            with (folder / f"errors-{rank}").open("w") as errors:
                variables = {**os.environ, **as_torchrun_does(rank, 2, port)}
                both.append(warm.Popen(command, env=variables, stderr=errors))
        codes = [one.wait(300) for one in both]
    finally:
        for one in both:
            one.kill()
    assert codes == [0, 0], [path.read_text()[-3000:] for path in sorted(folder.glob("errors-*"))]
    alone = online.trained(folder / "alone", online.selector())
    told = {"used": alone.selector.used, "history": alone.selector.history, "losses": online.losses(alone)}
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(2)], told


def test_two_processes_hold_the_same_selection(two_processes: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    (first, second), _ = two_processes
    assert first["used"] == second["used"]
    assert first["history"] == second["history"]
    assert len(first["history"]) == 2


def test_two_processes_select_as_one_does(two_processes: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    (first, second), alone = two_processes
    ours, theirs = first["history"][0], alone["history"][0]
    assert ours["rows"] == theirs["rows"]
    assert ours["scores"] == pytest.approx(theirs["scores"], rel=1e-3, abs=1e-5)
    assert ours["signal"] == theirs["signal"]
    assert ours["kept"] == theirs["kept"]
    assert ours["rollouts"] == theirs["rollouts"]
    assert ours["direction"]["rows"] == theirs["direction"]["rows"]
    assert ours["direction"]["norm"] == pytest.approx(theirs["direction"]["norm"], rel=1e-4)
    pool = online.problems(20)
    for step, batch in enumerate(first["used"]):  # each process has its half of a batch
        whole = [pool[row]["prompt"] for row in batch["rows"] for _ in range(4)]
        assert first["trained"][step] + second["trained"][step] == whole


# -- bad input and faults ---------------------------------------------------------------------------------------------


def test_evaluation_keeps_its_own_problems(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    class Sees(SelectedGRPOTrainer):
        def _calculate_rewards(self, inputs: Any, *others: Any) -> Any:
            if not self.model.training:
                seen.append([row["prompt"] for row in inputs[::4]])
            return super()._calculate_rewards(inputs, *others)

    held_out = online.problems(2, seed=5)
    chosen = online.selector()
    one = Sees(
        online.policy(),
        online.reward,
        online.settings(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1),
        eval_dataset=held_out,
        processing_class=rollouts.tokenizer(),
        selector=chosen,
    )
    one.train()
    assert [sorted(prompts) for prompts in seen] == [sorted(held_out["prompt"][:])] * 2
    assert [batch["step"] for batch in chosen.used] == [0, 1]
    assert len(chosen.history) == 1


@pytest.mark.parametrize(
    ("scorer", "given", "said"),
    [
        (None, {"rollouts": 1}, "rollouts=1: the rewards of one response do not differ"),
        (None, {"validation_rollouts": 1}, "validation_rollouts=1: "),
        (AccuracyGreedyScorer(), {"rollouts": 1}, "signal for AccuracyGreedyScorer"),
    ],
)
def test_one_response_to_a_problem_says_nothing_and_is_refused(
    scorer: Any, given: dict[str, int], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CurateError, match=said):
        online.trainer(tmp_path, online.selector(scorer=scorer, **given))
    online.trainer(tmp_path, online.selector(scorer=RandomScorer(), rollouts=1))  # chance needs none


def test_a_reward_that_raises_in_selection_says_that_it_was_there(tmp_path: Path) -> None:
    def broken(completions: list[str], **_: Any) -> list[float]:
        raise RuntimeError("the judge is out")

    with pytest.raises(CurateError, match="'broken' raised RuntimeError in selection, not in training, at step 0"):
        online.trained(tmp_path, online.selector(), rewards=broken)

    def short(completions: list[str], **_: Any) -> list[float]:
        return [1.0]

    with pytest.raises(CurateError, match="'short' returned 1 rewards in selection for 4 responses"):
        online.trained(tmp_path, online.selector(), rewards=short)


def test_a_verifier_of_the_selector_judges_instead(tmp_path: Path) -> None:
    def judge(completions: list[str], **_: Any) -> list[float]:
        return [float("7" in text) for text in completions]

    def failing(completions: list[str], **_: Any) -> list[float]:
        raise RuntimeError("never")

    chosen = online.selector(verifier=judge)
    one = online.trained(tmp_path, chosen, max_steps=1)
    assert one.selection_record()["verifier"]["name"] == "judge"
    with pytest.raises(ScoreError, match=r"none of the 6 problems.* in selection, at step 0:\n  6 x verifier failed"):
        online.trained(tmp_path, online.selector(scorer=AccuracyGreedyScorer(), verifier=failing), max_steps=1)


def test_rewards_are_the_weighted_sum_of_what_applies_and_async_ones_are_awaited(tmp_path: Path) -> None:
    async def slow(completions: list[str], digit: list[str], **_: Any) -> list[float]:
        return online.reward(completions, digit)

    def sometimes(completions: list[str], **_: Any) -> list[float | None]:
        return [None if "1" in text else 1.0 for text in completions]

    one = online.trainer(tmp_path, online.selector(), rewards=[slow, sometimes], reward_weights=[0.5, 2.0])
    contract = one._in_place.verifier
    row = {"prompt": "1+1?\n", "digit": "1"}
    found = contract.verify(["=1", "=2"], [row, row], [[3], [4]])
    assert [verdict.reward for verdict in found] == [0.5, 2.0]
    never = online.trainer(tmp_path, online.selector(), rewards=lambda completions, **_: [None] * len(completions))
    [refused] = never._in_place.verifier.verify(["=1"], [row])
    assert str(refused) == "no reward: no reward function applies to a response"


def test_no_signal_anywhere_is_a_round_by_chance(tmp_path: Path) -> None:
    def flat(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    for scorer in (None, LearnAlignScorer(), AccuracyGreedyScorer()):
        chosen = online.selector(scorer=scorer)
        with pytest.warns(UserWarning, match="drawn by chance") as warned:
            online.trained(tmp_path, chosen, rewards=flat)
        assert sum("drawn by chance" in str(one.message) for one in warned) == 1
        assert [record["chance"] for record in chosen.history] == [True, True]
        assert len(chosen.used) == 4


def test_rounds_that_cannot_be_on_time_are_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"every=3 is no multiple of the 2 optimizer steps.*multiple of 2"):
        one = online.trained(tmp_path, online.selector(every=3), num_iterations=2, max_steps=8)
    assert [record["step"] for record in one.selector.history] == [0, 4, 6]


def image_reward(completions: list[str], **_: Any) -> list[float]:
    return [0.0] * len(completions)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no steps": ({"max_steps": -1}, r"max_steps=-1: selection has no epochs"),
    "fewer rows": ({"train_dataset": online.problems(3)}, "train_dataset has 3 rows, the selector's pool has 20"),
    "other rows": (
        {"train_dataset": online.problems(20, seed=1)},
        r"holds other rows \(sha256 [0-9a-f]{12}\), the selector's pool holds [0-9a-f]{12}: .* the same dataset",
    ),
    "no map-style dataset": (
        {"train_dataset": online.problems(20).to_iterable_dataset()},
        "train_dataset is a IterableDataset, the selector's pool is a Dataset",
    ),
    "tools": ({"rollout_func": lambda *_: {}}, "rollout_func: selection samples one answer"),
    "own model": (
        {"selector": online.selector(scorer=AlignScorer(online.policy(), tokenizer=rollouts.tokenizer()))},
        "has a model of its own",
    ),
    "projection": ({"selector": online.selector(scorer=LearnAlignScorer(projection_dim=4))}, "projection_dim=4 keeps"),
    "no prompts": (
        {"selector": online.selector(online.problems(20).rename_column("prompt", "question"))},
        r"the pool has no column 'prompt', and its columns are question, digit: .*rename_column",
    ),
    "no prompts in the validation set": (
        {
            "selector": online.selector(
                scorer=GradAlignScorer(validation=online.problems(2).rename_column("prompt", "question"))
            )
        },
        r"the validation set has no column 'prompt'",
    ),
    "small pool": (
        {"selector": online.selector(online.problems(1), chunk=1, keep="50%")},
        r"takes 2 prompts and the pool has 1: TRL would end at step 0",
    ),
    "other types": (
        {"cast_lm_head_to_fp32": True, "model": online.policy().to(torch.bfloat16)},
        "cast_lm_head_to_fp32=True gives the LM head another type",
    ),
    "frozen set": (
        {"selector": online.selector(scorer=AlignScorer(parameters="norm")), "peft_config": lora()},
        "trains none of the parameters of the set 'norm'",
    ),
    "no selector": ({"selector": AlignScorer()}, "selector= is a AlignScorer"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_selected_for_is_refused_before_training(tmp_path: Path, case: str) -> None:
    given, says = copy.copy(REFUSED[case][0]), REFUSED[case][1]
    asked = {name: given.pop(name) for name in ("max_steps", "cast_lm_head_to_fp32") if name in given}
    args = online.settings(tmp_path, **({"max_steps": 2} | asked))
    with pytest.raises(CurateError, match=says):
        SelectedGRPOTrainer(
            given.pop("model", None) or online.policy(),
            online.reward,
            args,
            processing_class=rollouts.tokenizer(),
            **({"selector": online.selector()} | given),
        )


def test_a_reward_model_is_refused_with_what_to_give_instead(tmp_path: Path) -> None:
    class Judge(torch.nn.Module):
        config = online.policy().config

        def forward(self, **_: Any) -> None: ...

    with pytest.raises(CurateError, match=r"is a model, and selection calls functions.*verifier="):
        online.trainer(tmp_path, online.selector(), rewards=Judge())


def test_the_asynchronous_trainer_is_refused_by_name() -> None:
    class AsyncGRPOTrainer:
        pass

    with pytest.raises(CurateError, match="AsyncGRPOTrainer draws prompts ahead of the policy"):
        type("Mine", (SelectedGRPOTrainer, AsyncGRPOTrainer), {})


def test_a_scorer_without_a_model_says_so_where_it_is_asked() -> None:
    for scorer in (GradAlignScorer(validation=online.problems(2)), LearnAlignScorer(), AlignScorer()):
        assert repr(scorer).startswith(f"<{type(scorer).__name__}(model=None")
        for ask in (
            lambda one: one.identity,
            lambda one: one.record(),
            lambda one: one.load(),
            lambda one: one(rollouts.solved(1)[0]),
            lambda one: one.fit(Dataset.from_list(rollouts.solved(2))),
        ):
            with pytest.raises(
                CurateError, match=r"made without a model: give it one.*or hand it to an\s*OnlineSelector"
            ):
                ask(scorer)
