"""What we rely on in TRL's GRPO trainer. A failure here names the assumption that a new version broke."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
import rollouts
import torch
from datasets import Dataset

from hf_curate.demo import world

trl = pytest.importorskip("trl")
from trl.chat_template_utils import parse_response  # noqa: E402


class Watched(trl.GRPOTrainer):
    """Writes down when TRL calls what we override, and with what."""

    def __init__(self, *args: Any, **others: Any) -> None:
        self.calls: list[tuple[str, int, Any]] = []
        super().__init__(*args, **others)

    def get_train_dataloader(self) -> Any:
        self.calls.append(("loader", self.state.global_step, None))
        return super().get_train_dataloader()

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        name = "generate" if self.model.training else "evaluate"
        self.calls.append((name, self.state.global_step, [dict(row) for row in inputs]))
        if self.model.training:
            self._metrics["train"]["ours"].append(float(self._step))
        return super()._generate_and_score_completions(inputs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.calls.append(("save", self.state.global_step, self._step))
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        assert (folder / "trainer_state.json").is_file()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        self.calls.append(("load", self.state.global_step, checkpoint))
        super()._load_optimizer_and_scheduler(checkpoint)

    def named(self, name: str) -> list[tuple[int, Any]]:
        return [(step, what) for own, step, what in self.calls if own == name]


def problems(rows: int = 8) -> Dataset:
    import random

    drawn = world.draw_problems(rows, random.Random(0), "traces")
    return Dataset.from_list([{"prompt": one.prompt, "extra": number} for number, one in enumerate(drawn)])


def watched(folder: Path, **others: Any) -> Watched:
    given = {
        "output_dir": str(folder),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_completion_length": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    evaluated = {"eval_dataset": problems(2)} if "eval_strategy" in others else {}
    return Watched(
        rollouts.policy(),
        lambda completions, **_: [float(len(text) % 2) for text in completions],
        args=trl.GRPOConfig(**(given | others)),
        train_dataset=problems(),
        processing_class=rollouts.tokenizer(),
        **evaluated,
    )


def test_the_hooks_take_what_we_pass_on() -> None:
    for name, parameters in {
        "_generate_and_score_completions": ["self", "inputs"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
        "_tokenize_prompts": ["self", "prompts"],
        "log": ["self", "logs", "start_time"],
        "train": ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    }.items():
        assert list(inspect.signature(getattr(trl.GRPOTrainer, name)).parameters) == parameters, name
    assert list(inspect.signature(parse_response).parameters)[:3] == ["tokenizer", "ids", "prefix"]


@pytest.mark.parametrize(
    ("accumulation", "per_generation", "iterations", "steps"),
    [(1, 1, 1, [0, 1, 2, 3]), (2, 2, 2, [0, 2]), (1, 2, 1, [0, 2]), (2, 1, 1, [0, 0, 1, 1, 2, 2, 3, 3])],
)
def test_a_batch_is_generated_every_so_many_forwards(
    tmp_path: Path, accumulation: int, per_generation: int, iterations: int, steps: list[int]
) -> None:
    trainer = watched(
        tmp_path,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=per_generation,
        num_iterations=iterations,
    )
    trainer.train()
    generated = trainer.named("generate")
    assert [step for step, _ in generated] == steps
    assert len(trainer.named("loader")) == 1, "it is not asked again: another dataset would go unseen"
    for _, rows in generated:
        assert len(rows) == 4 * per_generation
        assert [row["extra"] for row in rows[::2]] == [row["extra"] for row in rows[1::2]], "a group stands together"
        assert set(rows[0]) == {"prompt", "extra"}, "rows come as they are in the dataset"
        assert isinstance(rows[0]["prompt"], str)


@pytest.mark.parametrize("bf16", [True, False])
def test_training_and_its_sampling_are_under_the_accelerators_autocast(tmp_path: Path, bf16: bool) -> None:
    trainer = watched(tmp_path, max_steps=1, bf16=bf16)
    seen: dict[bool, set[torch.dtype]] = {False: set(), True: set()}
    for module in trainer.model.model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, given, out: seen[torch.is_grad_enabled()].add(out.dtype))
    trainer.train()
    with trainer.accelerator.autocast():
        assert torch.is_autocast_enabled("cpu") == bf16
        expected = torch.get_autocast_dtype("cpu") if bf16 else torch.float32
    assert seen == {False: {expected}, True: {expected}}
    assert expected == (torch.bfloat16 if bf16 else torch.float32)
    assert trl.GRPOConfig("out", use_cpu=True).bf16, "it is the default"


def test_answers_that_are_put_in_the_place_of_generated_ones_are_trained_on(tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []
    judged: list[list[int]] = []

    class Other(Watched):
        def _generate_single_turn(self, prompt_ids: Any, *others: Any, **named: Any) -> Any:
            made, logprobs = super()._generate_single_turn(prompt_ids, *others, **named)
            asked.append((prompt_ids, others, named, made, logprobs))
            return [[5, 6, 7]] * len(prompt_ids), None

        def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
            judged.extend(ids)
            return super()._calculate_rewards(inputs, prompts, completions, ids)

    trainer = watched(tmp_path, max_steps=1)
    trainer.__class__ = Other
    trainer.train()
    [(prompts, others, named, made, logprobs)] = asked
    assert all(isinstance(token, int) for ids in (*prompts, *made) for token in ids)
    assert (len(prompts), len(made), logprobs) == (4, 4, None)
    assert others[1:] == ({}, 2)
    assert named == {}
    assert judged == [[5, 6, 7]] * 4


def test_other_rows_are_generated_from_and_judged_when_the_hook_is_given_them(tmp_path: Path) -> None:
    judged: list[int] = []

    class Other(Watched):
        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            return super()._generate_and_score_completions(
                [{**row, "prompt": "1+1?\n", "extra": 99} for row in inputs]
            )

    trainer = watched(tmp_path, max_steps=1)
    trainer.__class__ = Other
    trainer.reward_funcs = [lambda completions, extra, **_: judged.extend(extra) or [0.0] * len(completions)]
    trainer.train()
    assert judged == [99] * 4


def test_evaluation_goes_through_the_same_hook_in_eval_mode(tmp_path: Path) -> None:
    trainer = watched(tmp_path, max_steps=2, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=4)
    trainer.train()
    assert [step for step, _ in trainer.named("generate")] == [0, 1]
    assert [step for step, _ in trainer.named("evaluate")] == [1, 2]


def test_what_is_put_among_the_metrics_is_logged_as_a_mean(tmp_path: Path) -> None:
    trainer = watched(tmp_path, logging_steps=2)
    trainer.train()
    assert [entry["ours"] for entry in trainer.state.log_history if "ours" in entry] == [0.5, 2.5]


def test_checkpoints_are_saved_after_a_step_and_loaded_before_the_first(tmp_path: Path) -> None:
    trainer = watched(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    assert trainer.named("save") == [(2, 2), (4, 4)], "forwards are counted in _step, and the step's are done"
    assert trainer.named("load") in ([], [(0, None)])
    again = watched(tmp_path)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    names = [name for name, _, _ in again.calls]
    assert names.index("load") < names.index("generate")
    assert again.named("load")[0][1] == str(tmp_path / "checkpoint-2")
    assert [step for step, _ in again.named("generate")] == [2, 3]
    assert [rows for _, rows in again.named("generate")] == [rows for _, rows in trainer.named("generate")][2:]


def test_a_dataset_smaller_than_a_generation_batch_ends_training_at_once(tmp_path: Path) -> None:
    trainer = watched(tmp_path, per_device_train_batch_size=18)
    assert trainer.args.generation_batch_size == 18
    trainer.train()
    assert (trainer.state.global_step, trainer.named("generate")) == (0, [])


def test_the_trainer_holds_what_selection_asks_it_for(tmp_path: Path) -> None:
    trainer = watched(tmp_path)
    assert trainer.reward_func_names == ["<lambda>"]
    assert len(trainer.reward_funcs) == 1
    assert trainer.reward_weights.tolist() == [1.0]
    assert (trainer.num_generations, trainer.num_iterations, trainer.max_completion_length) == (2, 1, 4)
    assert trainer.args.steps_per_generation == 1
    assert not trainer.tools
    assert trainer.environment_factories is None
    assert trainer.rollout_func is None
    assert not trainer._is_vlm
    assert trainer._tokenizer is trainer.processing_class
    assert trainer._step == 0
    ids = trainer._tokenize_prompts(["1+1?\n"])[0][0]
    assert list(ids) == rollouts.tokenizer()("1+1?\n")["input_ids"]
    assert not math.isnan(next(trainer.model.parameters()).sum().item())
    assert isinstance(trainer.model, torch.nn.Module)


def test_the_asynchronous_trainer_has_the_name_by_which_it_is_refused() -> None:
    from importlib.util import find_spec

    place = find_spec("trl.experimental.async_grpo")
    assert place is not None
    assert place.submodule_search_locations is not None
    source = Path(place.submodule_search_locations[0]) / "async_grpo_trainer.py"
    assert "class AsyncGRPOTrainer(" in source.read_text("utf-8")
