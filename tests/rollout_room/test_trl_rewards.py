"""Verifiers as TRL's reward functions, and TRL's reward functions as verifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from datasets import Dataset

from hf_curate import verifier
from hf_curate.errors import RowError
from hf_curate.rollouts.verify import RIGHT, UNPARSED, WRONG, Verdict

trl = pytest.importorskip("trl")
QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]


@pytest.mark.parametrize("chat", [False, True])
def test_two_steps_of_grpo_with_a_verifier_as_it_is(tmp_path: Path, chat: bool) -> None:
    tokenizer = tiny.byte_level(pad_token="</s>", chat_template=tiny.CHAT)
    prompts = [[{"role": "user", "content": f"{n} + 2?"}] if chat else f"{n} + 2?" for n in range(4)]
    reward = verifier("exact", gold="letter", pattern="(e)")  # a random model writes it in some of its completions
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
        reward_funcs=[reward, watches],
        args=settings,
        train_dataset=Dataset.from_dict({"prompt": prompts, "letter": ["e"] * 4}),
        processing_class=tokenizer,
    )
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "rewards/exact/mean" in entry]
    expected = [[float("e" in text) for text in texts] for texts in written]
    assert [len(rewards) for rewards in expected] == [4, 4]
    assert {reward for rewards in expected for reward in rewards} == {0.0, 1.0}
    assert [entry["rewards/exact/mean"] for entry in logged] == pytest.approx([sum(r) / 4 for r in expected])
    assert [entry["reward"] for entry in logged] == pytest.approx([sum(r) / 4 for r in expected])


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
