"""Choose problems anew while GRPO trains: python examples/10_online_curriculum.py

A quarter of the pool are problems of the kind that the trusted problems are of (countdown), the others are of two
other kinds. Every four optimizer steps the policy, as it is then, answers the trusted problems and the next 32
candidates; GradAlign ranks the candidates by whether their policy gradients point where the trusted problems want to
go, and training goes on with the best quarter. A selection that is right is all countdown, one by chance a quarter.
The settings are the defaults (cosine, 16 rollouts, 25 %) but for sizes, and for problems that the policy solves
sometimes: nothing else has a gradient. What the training gains shows over more steps than these, see 11.

`OnlineSelector` keeps the books, `SelectedGRPOTrainer` is TRL's GRPOTrainer with other prompts. Needs TRL: pip install
'hf_curate[trl]'.
"""

import json
import tempfile
from statistics import mean

from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback
from trl.trainer.grpo_config import GRPOConfig

from hf_curate import GradAlignScorer
from hf_curate.demo import POLICY, tasks
from hf_curate.integrations.trl import OnlineSelector, SelectedGRPOTrainer

WANTED = "countdown"
ROWS = {WANTED: 32, "chain": 48, "sort": 48}


def level(family: str) -> int:
    """The one whose recorded pass rate is nearest to a half."""
    rates = json.loads((POLICY / "training.json").read_text("utf-8"))["pass_rate"][family]
    return int(min(rates, key=lambda one: abs(rates[one] - 0.5)))


def problems(family: str, rows: int, split: str) -> list[dict[str, object]]:
    return tasks.problems(family, rows, level=level(family), seed=0, split=split)


disable_progress_bars()
pool = Dataset.from_list([row for family, rows in ROWS.items() for row in problems(family, rows, "pool")])
trusted = Dataset.from_list(problems(WANTED, 16, "validation"))
selector = OnlineSelector(
    GradAlignScorer(validation=trusted),  # no model: the policy in training is the model
    pool=pool,
    chunk=32,
    every=4,
    validation_rollouts=16,
    temperature=1.0,
    top_p=1.0,
)
with tempfile.TemporaryDirectory() as folder:
    trainer = SelectedGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(POLICY, dtype="float32"),
        tasks.solved,
        GRPOConfig(
            folder,
            max_steps=12,
            per_device_train_batch_size=32,
            num_generations=8,
            max_completion_length=tasks.LONGEST,
            learning_rate=1e-4,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
        ),
        processing_class=AutoTokenizer.from_pretrained(POLICY),
        selector=selector,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()

print(f"\nstep  no signal  {WANTED} among 32 candidates  among the 8 kept   score of the kept, of all")
for record in selector.history:
    score = {row: own for row, own in zip(record["rows"], record["scores"], strict=True) if own is not None}
    means = [mean(own for row, own in score.items() if row in rows) for rows in (record["kept"], record["rows"])]
    counts = [sum(family == WANTED for family in pool[rows]["family"]) for rows in (record["rows"], record["kept"])]
    silent = 1 - sum(map(bool, record["signal"])) / len(record["rows"])
    print(f"{record['step']:4}  {silent:9.0%}  {counts[0]:29}  {counts[1]:16}  {means[0]:19.2f}, {means[1]:.2f}")
used = selector.history_dataset()
share = sum(family == WANTED for family in used["family"]) / len(used)
print(f"trained on: {share:.0%} {WANTED}; by chance it would be {ROWS[WANTED] / len(pool):.0%}")
account = trainer.selection_record()
spent, seconds = account["selection_rollouts"], account["seconds"]
print(f"cost: {spent:,} rollouts for selection beside {account['training_rollouts']:,} for training;", end=" ")
print(f"{seconds['selection']:.0f} of {seconds['all']:.0f} seconds")
kept = selector.used_selection()  # .save(folder, "online") or .push_to_hub("me/problems-used", "online")
print(f"kept for a card: {len(kept)} of {len(pool)} problems, each with how often and after which steps it was used")
