"""Choose problems anew while GRPO trains: python examples/10_online_curriculum.py

Half of the pool pays a coin instead of a reward. Every two optimizer steps the policy, as it is then, answers a few
trusted problems and the next 16 candidates; GradAlign ranks the candidates by whether their policy gradients point
where the trusted problems want to go, and training goes on with the best quarter. `OnlineSelector` keeps the books,
`SelectedGRPOTrainer` is TRL's GRPOTrainer with other prompts. Needs TRL: pip install 'hf_curate[trl]'.
"""

import hashlib
import random
import tempfile

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer.grpo_config import GRPOConfig

from hf_curate import GradAlignScorer
from hf_curate.demo import MODEL, world
from hf_curate.integrations.trl import OnlineSelector, SelectedGRPOTrainer


def problems(rows: int, split: str, noisy: int) -> Dataset:
    """The first `noisy` of the problems pay a coin."""
    drawn = world.draw_problems(rows, random.Random(0), split)
    right = [world.true_answer(one.prompt) for one in drawn]
    return Dataset.from_dict(
        {"prompt": [one.prompt for one in drawn], "answer": right, "noisy": [n < noisy for n in range(rows)]}
    )


def reward(
    prompts: list[str], completions: list[str], answer: list[str], noisy: list[bool], **_: object
) -> list[float]:
    """1.0 for the right answer; for a noisy problem 1.0 for half of all texts, whatever they say."""
    coins = [
        hashlib.sha256((prompt + text).encode()).digest()[0] % 2
        for prompt, text in zip(prompts, completions, strict=True)
    ]
    right = [world.written_answer(text) == own for text, own in zip(completions, answer, strict=True)]
    return [float(coin if lies else is_right) for coin, lies, is_right in zip(coins, noisy, right, strict=True)]


pool, trusted = problems(64, "train", noisy=32), problems(16, "held_out", noisy=0)
selector = OnlineSelector(
    GradAlignScorer(validation=trusted),  # no model: the policy in training is the model
    pool=pool,
    chunk=16,
    keep="25%",
    every=2,
    rollouts=8,
    validation_rollouts=16,
    temperature=1.0,
    top_p=1.0,
)
with tempfile.TemporaryDirectory() as folder:
    trainer = SelectedGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32"),
        reward,
        GRPOConfig(
            folder,
            max_steps=6,
            per_device_train_batch_size=16,
            num_generations=8,
            max_completion_length=48,
            learning_rate=1e-4,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        ),
        processing_class=AutoTokenizer.from_pretrained(MODEL),
        selector=selector,
    )
    trainer.train()

print("step  without signal  noisy in the chunk  noisy among the kept")
for record in selector.history:
    share = [sum(pool[rows]["noisy"]) / len(rows) for rows in (record["rows"], record["kept"])]
    flat = 1 - sum(map(bool, record["signal"])) / len(record["rows"])
    print(f"{record['step']:4}  {flat:14.0%}  {share[0]:18.0%}  {share[1]:20.0%}")
account = trainer.selection_record()
spent, seconds = account["selection_rollouts"], account["seconds"]
print(f"{spent:,} rollouts for selection and {account['training_rollouts']:,} for training;", end=" ")
print(f"{seconds['selection']:.0f} of {seconds['all']:.0f} seconds went into selection")
print(selector.history_dataset().remove_columns(["answer"])[0])
print(selector.used_selection())  # .save(folder, "online") or .push_to_hub("me/problems-used", "online")
