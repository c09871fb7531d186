"""The shipped demo model: what is in its folder, how it reads text and how well it reasons."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from hf_curate.demo import MODEL, load_traces, make_data, recipes, train, world
from hf_curate.demo.evaluate import MAX_NEW_TOKENS, greedy_accuracy, greedy_rollouts
from hf_curate.demo.tokenizer import CHARACTERS, EOS_ID, PAD_ID, SPECIALS, UNK_ID

FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "training.json",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A model this small gains nothing from threads, and on busy cores their waiting costs tenfold."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def test_folder_holds_safetensors_under_3_megabytes() -> None:
    assert {path.name for path in MODEL.iterdir()} == FILES
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 3_000_000


def test_model_is_a_small_qwen3_saved_in_float16(model: PreTrainedModel) -> None:
    assert model.config.model_type == "qwen3"
    assert 500_000 < model.num_parameters() < 1_500_000
    assert AutoModelForCausalLM.from_pretrained(MODEL, dtype="auto").dtype == torch.float16


def test_special_tokens_agree(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.unk_token) == SPECIALS
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (PAD_ID, EOS_ID, UNK_ID)
    for config in (model.config, model.generation_config):
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id
        assert config.bos_token_id is None
    assert len(tokenizer) == model.config.vocab_size == len(SPECIALS) + len(CHARACTERS)
    assert tokenizer.chat_template is None
    assert tokenizer.model_max_length == model.config.max_position_embeddings


def test_one_token_a_character_and_exact_decoding(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.is_fast
    for row in load_traces():
        text = row["prompt"] + row["completion"]
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert encoded["offset_mapping"] == [(index, index + 1) for index in range(len(text))]
        assert tokenizer.unk_token_id not in encoded["input_ids"]
        assert tokenizer.decode(encoded["input_ids"]) == text


def test_a_character_outside_the_world_is_unknown(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("5 é+1<eos>")["input_ids"]
    assert [ids[1], ids[2]] == [tokenizer.unk_token_id] * 2
    assert ids[-1] == tokenizer.eos_token_id


def test_greedy_accuracy_leaves_something_to_learn(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    problems = world.draw_problems(200, random.Random(5), "held_out")
    accuracy = greedy_accuracy(model, tokenizer, problems)
    recorded = json.loads((MODEL / "training.json").read_text())["greedy_accuracy"]
    assert 0.55 <= accuracy["all"] <= 0.97
    assert accuracy["all"] == pytest.approx(recorded["all"], abs=0.12)


def test_rollouts_do_not_depend_on_their_batch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = [problem.prompt for problem in world.draw_problems(12, random.Random(8), "held_out")]
    assert greedy_rollouts(model, tokenizer, prompts) == greedy_rollouts(model, tokenizer, prompts, batch_rows=1)


def test_rollouts_have_room_for_every_clean_trace(tokenizer: PreTrainedTokenizerBase) -> None:
    longest = world.Problem(99, (("+", 99), ("-", 99), ("+", 99), ("-", 88)))
    assert len(tokenizer(world.clean(longest))["input_ids"]) + 1 <= MAX_NEW_TOKENS


def test_training_record_matches_the_code() -> None:
    record = json.loads((MODEL / "training.json").read_text())
    assert record["data"] == recipes.ARITHMETIC.data()
    assert record["settings"] == asdict(recipes.ARITHMETIC.settings)
    assert record["data"]["traces"] == {"rows": 800, "damaged_share": 0.4, "seed": make_data.SEED}
    assert recipes.ACCEPTED[0] <= record["greedy_accuracy"]["all"] <= recipes.ACCEPTED[1]
    assert recipes.ARITHMETIC.complaint(record) == ""
    assert record["checks"][-1]["step"] == record["steps"]


def test_labels_cover_the_completion_and_its_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    problems = world.draw_problems(5, random.Random(1), "train")
    batch = train.collate([(problem.prompt, world.clean(problem)) for problem in problems], tokenizer)
    for row, problem in enumerate(problems):
        learnt = batch["labels"][row][batch["labels"][row] != -100]
        assert tokenizer.decode(learnt) == world.clean(problem) + "<eos>"
        assert batch["attention_mask"][row].sum() == len(problem.prompt) + len(learnt)


def test_learning_rate_rises_then_falls_to_zero() -> None:
    settings = recipes.Settings(warmup_steps=4, max_steps=20)
    factors = [train.learning_rate_factor(step, settings) for step in range(21)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert factors[20] == pytest.approx(0.0)


def test_importing_the_demo_does_not_import_torch() -> None:
    code = "import sys, hf_curate.demo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_recipe_builds_what_is_shipped(tokenizer: PreTrainedTokenizerBase) -> None:
    built = train.build_model(tokenizer, recipes.ARITHMETIC).config.to_dict()
    shipped = AutoConfig.from_pretrained(MODEL).to_dict()
    by_saving = {"dtype", "architectures", "_name_or_path"}
    assert {name for name in built | shipped if built.get(name) != shipped.get(name)} <= by_saving


def test_an_untrained_model_is_saved_and_refused(tmp_path: Path) -> None:
    settings = recipes.Settings(max_steps=2, batch_rows=4, check_every=1, check_rows=4, measure_rows=8, threads=1)
    with pytest.raises(SystemExit, match="outside"):
        train.run(tmp_path, recipes.ARITHMETIC, settings)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    record = json.loads((tmp_path / "training.json").read_text())
    assert [check["step"] for check in record["checks"]] == [1, 2]
