"""Verifiers as TRL's reward functions, and TRL's reward functions as verifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from datasets import Dataset
from problems import problems, rolled, roller

from hf_curate import verifier
from hf_curate.errors import RowError
from hf_curate.rollouts.verify import RIGHT, UNPARSED, WRONG, Verdict

trl = pytest.importorskip("trl")
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


GOLD: dict[str, Any] = {"letter": "e", "pick": "B", "numbers": [2, 3], "target": 6, "answer": "4"}
"""Columns that the four verifiers read."""
EVERY: dict[str, tuple[dict[str, Any], list[str]]] = {
    "exact": ({"gold": "answer"}, ["#### 4", "#### 5", "four"]),
    "math": ({"gold": "answer", "workers": 1}, [r"\\boxed{\\frac{8}{2}}", r"\\boxed{5}", "no answer"]),
    "choice": ({"gold": "pick"}, ["Answer: B", "Answer: C", "both"]),
    "countdown": ({}, ["<answer>2*3</answer>", "<answer>2+3</answer>", "six"]),
}
"""Name -> options, and completions that are right, wrong and not to be parsed."""


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_every_verifier_is_a_reward_function_for_plain_and_for_chat_prompts(name: str, chat: bool) -> None:
    options, texts = EVERY[name]
    contract = verifier(name, **options)
    rewards = contract(
        prompts=[QUESTION if chat else "What is 2 + 2?"] * 3,
        completions=[[{"role": "assistant", "content": text}] if chat else text for text in texts],
        completion_ids=[[1, 2]] * 3,
        trainer_state=object(),
        log_extra=print,
        log_metric=print,
        **{column: [value] * 3 for column, value in GOLD.items()},
    )
    assert rewards == [1.0, 0.0, 0.0]
    row = {"prompt": QUESTION if chat else "What is 2 + 2?", **GOLD}
    assert outcomes(contract, texts, row) == [RIGHT, WRONG, UNPARSED]


@pytest.mark.parametrize("chat", [False, True])
def test_two_steps_of_grpo_with_every_verifier_as_it_is(tmp_path: Path, chat: bool) -> None:
    tokenizer = tiny.byte_level(pad_token="</s>", chat_template=tiny.CHAT)
    prompts = [[{"role": "user", "content": f"{n} + 2?"}] if chat else f"{n} + 2?" for n in range(4)]
    exact = verifier("exact", gold="letter", pattern="(e)")  # a random model writes it in some of its completions
    verifiers = [exact, *(verifier(name, **EVERY[name][0]) for name in ("math", "choice", "countdown"))]
    written: list[list[str]] = []

    def watches(completions: list[Any], **columns: Any) -> list[float]:
        written.append([completion[0]["content"] if chat else completion for completion in completions])
        return [0.0] * len(completions)

    settings = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=24,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        seed=0,
    )
    trainer = trl.GRPOTrainer(
        model=tiny.tiny(vocabulary=len(tokenizer)),
        reward_funcs=[*verifiers, watches],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts, **{name: [value] * 4 for name, value in GOLD.items()}}),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/exact/mean" in entry]
    expected = [[float("e" in text) for text in texts] for texts in written]
    assert [len(rewards) for rewards in expected] == [4, 4]
    assert {reward for rewards in expected for reward in rewards} == {0.0, 1.0}
    assert [entry["rewards/exact/mean"] for entry in logged] == pytest.approx([sum(r) / 4 for r in expected])
    for contract in verifiers:
        judged = [contract.verify(texts, [GOLD] * 4) for texts in written]
        means = [sum(one.reward for one in found if isinstance(one, Verdict)) / 4 for found in judged]
        assert [entry[f"rewards/{contract.name}/mean"] for entry in logged] == pytest.approx(means)


def outcomes(function: Any, completions: list[str], row: dict[str, Any], **options: Any) -> list[str]:
    results = verifier(function, **options).verify(completions, [row] * len(completions))
    return [result.outcome if isinstance(result, Verdict) else str(result) for result in results]


def test_trls_accuracy_reward_is_a_verifier() -> None:
    from trl.rewards import accuracy_reward

    row = {"prompt": QUESTION, "solution": "$4$"}
    assert outcomes(accuracy_reward, [r"\boxed{4}", r"\boxed{5}", "four"], row) == [RIGHT, WRONG, WRONG]
    assert outcomes(accuracy_reward, [r"\boxed{4}"], row | {"solution": "four"}) == [UNPARSED]
    plain = {"prompt": "What is 2 + 2?", "solution": "$4$"}
    assert outcomes(accuracy_reward, [r"\boxed{4}"], plain, chat=True) == [RIGHT]
    [failed] = outcomes(accuracy_reward, [r"\boxed{4}"], plain)  # it reads messages, and plain rows have none
    assert failed.startswith("verifier failed: TypeError")


def test_trls_format_reward_is_a_verifier_and_its_record_names_the_version_of_trl() -> None:
    from trl.rewards import think_format_reward

    completions = ["<think>\nx\n</think>\n4", "4"]
    assert outcomes(think_format_reward, completions, {"prompt": QUESTION}) == [RIGHT, WRONG]
    record = verifier(think_format_reward).record()
    assert record["name"] == "think_format_reward"
    assert record["packages"] == {"trl": trl.__version__}


def test_a_reward_of_lengths_reads_the_token_ids() -> None:
    from trl.rewards import get_cosine_scaled_reward

    rows = [{"prompt": QUESTION, "solution": "$4$"}] * 2
    contract = verifier(get_cosine_scaled_reward(max_len=100))
    right, wrong = contract.verify([r"\boxed{4}", r"\boxed{5}"], rows, [[1] * 50, [1] * 50])
    assert isinstance(right, Verdict)
    assert isinstance(wrong, Verdict)
    assert [right.reward, wrong.reward] == pytest.approx([0.75, -0.75])
    [unknown] = contract.verify([r"\boxed{4}"], rows[:1])
    assert isinstance(unknown, RowError)
    assert str(unknown).startswith("verifier failed: TypeError")
    assert contract.name == "cosine_scaled_reward"
    assert contract.identity != verifier(get_cosine_scaled_reward(max_len=50)).identity


@pytest.mark.parametrize("chat", [False, True])
def test_trls_other_rewards_are_verifiers_for_plain_and_for_chat_prompts(chat: bool) -> None:
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment, reasoning_accuracy_reward

    row = {"prompt": QUESTION if chat else "What is 2 + 2?", "solution": "$4$"}
    texts = [r"<think>\boxed{5}</think> \boxed{4}", r"<think>\boxed{4}</think> \boxed{5}"]
    assert outcomes(reasoning_accuracy_reward, texts, row, chat=True) == [RIGHT, WRONG]
    short = verifier(get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20))
    found = short.verify(["a", "b", "c"], [row] * 3, [[1] * 80, [1] * 90, [1] * 101])
    assert [one.reward for one in found if isinstance(one, Verdict)] == [0.0, -0.5, -1.0]
    assert short.identity != verifier(get_soft_overlong_punishment(50, 10)).identity
    repeats = verifier(get_repetition_penalty_reward(ngram_size=2), chat=True)
    found = repeats.verify(["a b c d", "a a a a"], [row] * 2, [[1, 2, 3, 4], [1, 1, 1, 1]])
    plain, penalised = [one.reward for one in found if isinstance(one, Verdict)]
    assert penalised < plain == 0.0


def test_a_reward_of_trls_goes_through_rollouts_and_reads_the_sampled_ids() -> None:
    from trl.rewards import get_soft_overlong_punishment

    data = problems(3)
    found = rolled(data, roller(get_soft_overlong_punishment(max_completion_len=30, soft_punish_cache=10)))
    for row in found:
        lengths = [len(ids) for ids in row["response_ids"]]
        assert row["rewards"] == pytest.approx([min(0.0, max(-1.0, (20 - n) / 10)) for n in lengths])
        assert row["rollouts_error"] == ""
    assert len({reward for row in found for reward in row["rewards"]}) > 1
