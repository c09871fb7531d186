"""LearnAlignScorer.warmed_up(): GRPO on a copy, by TRL; the original and the process stay as they were."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from datasets import Dataset
from rollouts import policy, saved_policy, tokenizer
from transformers import AutoModelForCausalLM
from transformers.utils import logging as verbosity

from hf_curate import LearnAlignScorer, Rollouts, score, select, verifier
from hf_curate.demo import MODEL, world
from hf_curate.errors import ColumnsError, CurateError, MissingPackageError, ScoreError
from hf_curate.scorers.grpo import Recipe
from hf_curate.scorers.policy_warm_up import Rewards, _order
from hf_curate.scorers.warm_up import WARM_UP_STREAM
from hf_curate.weights import folder_digest, weights_digest

trl = pytest.importorskip("trl")
RECORD = "hf_curate_warm_up.json"
QUICK: dict[str, Any] = {"problems": 4, "n": 4, "max_new_tokens": 8, "batch_problems": 2, "learning_rate": 1e-4}
RECIPE: dict[str, Any] = {"problems": 4, "seed": 0, "n": 4, "temperature": 1.0, "max_new_tokens": 8, "method": None}
RECIPE |= {"learning_rate": 1e-4, "beta": 0.04, "clip": 0.2, "updates": 1, "batch_problems": 8}


def even(completions: list[Any], **_: Any) -> list[float]:
    """A reward that a random model gets now and then: the share of even digits."""
    texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
    return [sum(letter in "02468" for letter in text) / max(len(text), 1) for text in texts]


def refused(completions: list[Any], **_: Any) -> list[float]:
    raise OSError("no such judge")


def pool(rows: int = 6) -> Dataset:
    drawn = world.draw_problems(rows, random.Random(0), "held_out")
    return Dataset.from_list([{"prompt": one.prompt, "answer": world.true_answer(one.prompt)} for one in drawn])


def answers() -> Any:
    return verifier("exact", pattern=r"(?m)^#(\d+)$")


def warm(model: Any, out: Path, judge: Any = even, dataset: Dataset | None = None, **options: Any) -> LearnAlignScorer:
    rows = pool() if dataset is None else dataset
    return LearnAlignScorer.warmed_up(model, rows, judge, out=out, **{**QUICK, **options})


def recorded(scorer: LearnAlignScorer) -> dict[str, Any]:
    return scorer.record()["model"]["warm_up"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_policy(tmp_path_factory.mktemp("policy"))


# -- the whole of it --------------------------------------------------------------------------------------------------


def test_a_warmed_up_scorer_samples_and_scores_with_a_trained_copy_and_says_so(tmp_path: Path) -> None:
    problems, before = pool(12), folder_digest(MODEL)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        made = warm(MODEL, tmp_path / "warm", answers(), problems, problems=5, seed=3, max_new_tokens=40)
        scored = score(problems, made)
    assert folder_digest(MODEL) == before
    record = recorded(made)
    assert record == json.loads((tmp_path / "warm" / RECORD).read_text())
    expected = {"kind": "GRPO", "method": "full", "rows": 5, "unreadable_rows": 0, "unverified_rows": 0, "seed": 3}
    expected |= {"pool_rows": 12, "pool_fingerprint": problems._fingerprint, "learning_rate": 1e-4, "beta": 0.04}
    expected |= {"clip": 0.2, "n": 4, "temperature": 1.0, "max_new_tokens": 40, "updates": 1, "batch_problems": 2}
    expected |= {"steps": 3, "groups": 6, "verifier": answers().record(), "packages": {"trl": trl.__version__}}
    assert {name: record[name] for name in expected} == expected
    assert record["base"] == {"id": MODEL.name, "sha": None, "digest": before}
    assert 0 < record["groups_with_signal"] <= 6
    assert 0 < record["reward_first"] < 1
    assert {path.name for path in (tmp_path / "warm").glob("*.safetensors")} == {"model.safetensors"}
    assert not list((tmp_path / "warm").glob("checkpoint*"))
    assert made.source.digest == made.rollouts.source.digest != before
    assert (made.rollouts.n, made.rollouts.temperature, made.rollouts.max_new_tokens) == (4, 1.0, 40)
    assert made.rollouts.verifier.identity == answers().identity
    alone = Rollouts(tmp_path / "warm", answers(), 4, max_new_tokens=40, seed=3)
    assert scored["response_ids"][:] == score(problems, alone)["response_ids"][:]
    assert set(scored["learnalign_error"][:]) == {""}
    picked = select(scored, made, budget="50%")
    assert picked.manifest["model"]["warm_up"] == record
    assert str(tmp_path) not in json.dumps(picked.manifest)
    card = picked.card.render()
    assert "warm-up: kind `GRPO`, method `full`" in card
    assert "verifier `exact` version `1`, packages" in card
    assert "No such warm-up is recorded here." not in card


def test_without_a_warm_up_the_card_says_none_and_one_warning_says_how(folder: Path) -> None:
    rolled = score(pool(12), Rollouts(folder, even, 4, max_new_tokens=8))
    scorer = LearnAlignScorer(folder, correct_above=0.3)
    with pytest.warns(
        UserWarning, match=r"no such warm-up of this one is recorded.*LearnAlignScorer.warmed_up"
    ) as seen:
        scored = score(rolled, scorer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        scorer(rolled[0])
    assert sum("warm-up" in str(one.message) for one in seen) == 1
    card = select(scored, scorer, budget="50%").card.render()
    assert "warm-up: none." in card
    assert "No such warm-up is recorded here." in card


def test_a_warm_up_by_supervised_training_is_not_the_one_that_is_meant(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "policy"))
    (copy / RECORD).write_text(json.dumps({"method": "full", "rows": 4}), encoding="utf-8")
    rolled = score(pool(12), Rollouts(copy, even, 4, max_new_tokens=8))
    with pytest.warns(UserWarning, match="no such warm-up of this one is recorded"):
        LearnAlignScorer(copy, correct_above=0.3).fit(rolled, out=tmp_path / "mean.safetensors")


def test_a_live_policy_is_not_warned_about(recwarn: pytest.WarningsRecorder) -> None:
    model = policy()
    rolled = score(pool(12), Rollouts(model, even, 4, max_new_tokens=8, tokenizer=tokenizer()))
    LearnAlignScorer(model, tokenizer=tokenizer(), correct_above=0.3).fit(rolled)
    assert not [one for one in recwarn if "warm-up" in str(one.message)]


@pytest.mark.parametrize("beta", [0.0, 0.04])
def test_the_first_step_goes_along_the_gradient_of_the_objective(beta: float, tmp_path: Path) -> None:
    """Adam's first step is the sign of the gradient; the rollouts are those that the verifier saw, the gradient is
    taken of them one by one. The KL term has none where the policy still is its reference."""
    seen: list[tuple[str, list[list[int]], list[float]]] = []

    def watches(prompts: list[str], completions: list[str], completion_ids: Any, **_: Any) -> list[float]:
        seen.append((prompts[0], [list(own) for own in completion_ids], even(completions)))
        return seen[-1][2]

    start = policy().double()
    made = warm(policy(), tmp_path / "warm", watches, problems=3, batch_problems=3, beta=beta, tokenizer=tokenizer())
    for prompt, responses, rewards in seen:
        own = torch.tensor(rewards, dtype=torch.float64)
        advantages = (own - own.mean()) / (own.std() + 1e-4)
        asked = tokenizer()(prompt)["input_ids"]
        for ids, advantage in zip(responses, advantages, strict=True):
            logits = start(torch.tensor([asked + ids]), use_cache=False).logits[0, len(asked) - 1 : -1]
            told = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).mean()
            (advantage * told / len(responses) / len(seen)).backward()
    after, moved = dict(made.load().model.named_parameters()), 0
    for name, before in start.named_parameters():
        assert before.grad is not None
        steep = before.grad.abs() > 1e-5
        change = after[name].detach().double() - before.detach()
        assert torch.equal(change[steep].sign(), before.grad[steep].sign()), name
        assert change.abs().max() < 1.01 * QUICK["learning_rate"] + 1e-6
        moved += int(steep.sum())
    assert len(seen) == 3
    assert moved > 10_000


def test_what_is_rewarded_grows(tmp_path: Path, folder: Path) -> None:
    options = {"problems": 12, "n": 8, "batch_problems": 1, "learning_rate": 5e-3}
    record = recorded(warm(folder, tmp_path / "warm", even, pool(12), **options))
    assert record["steps"] == 12
    assert record["reward_first"] < 0.5
    assert record["reward_last"] > record["reward_first"] + 0.2


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path, folder: Path) -> None:
    digests = []
    for number, seed in enumerate((0, 0, 1)):
        digests.append(warm(folder, tmp_path / f"warm{number}", seed=seed).source.digest)
        torch.rand(3)
        random.random()
        np.random.rand()
    assert digests[0] == digests[1] != digests[2]


# -- nothing else changes ---------------------------------------------------------------------------------------------


def test_a_live_model_is_copied_and_left_as_it_was(tmp_path: Path) -> None:
    model, own = policy(), tokenizer()
    model.model.layers[0].train()
    before, modes = weights_digest(model), [module.training for module in model.modules()]
    settings, sampling = model.config.to_dict(), model.generation_config.to_dict()
    padding = (own.pad_token, own.padding_side)
    made = warm(model, tmp_path / "warm", tokenizer=own)
    assert weights_digest(model) == before
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (model.config.to_dict(), model.generation_config.to_dict()) == (settings, sampling)
    assert "forward" not in vars(model)
    assert (own.pad_token, own.padding_side) == padding
    assert made.source.kind == "folder"
    assert folder_digest(tmp_path / "warm") == made.source.digest
    assert recorded(made)["base"]["id"] == "live Qwen3ForCausalLM"


@pytest.fixture
def accelerated() -> Iterator[tuple[Any, ...]]:
    """The kinds of state that accelerate shares in a process, with an accelerator of the caller's in them."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    kinds = (PartialState, AcceleratorState, GradientState)
    for kind in kinds:
        kind._shared_state.clear()
    Accelerator(cpu=True, gradient_accumulation_steps=7)
    yield kinds
    for kind in kinds:
        kind._shared_state.clear()


def test_the_process_is_left_as_it_was(
    tmp_path: Path, folder: Path, accelerated: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def state() -> list[Any]:
        numbers: Any = np.random.get_state()
        chance = [random.getstate(), numbers[1].tolist(), numbers[2], torch.get_rng_state().tolist()]
        shared = [dict(kind._shared_state) for kind in accelerated]
        return [*chance, dict(os.environ), shared, verbosity.get_verbosity(), warnings.filters[:]]

    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    before = state()
    assert all(before[5])
    warm(folder, tmp_path / "warm")
    assert state() == before
    with pytest.raises(ScoreError):
        warm(folder, tmp_path / "other", refused)
    assert state() == before
    assert not list((tmp_path / "here").iterdir())


def test_padding_is_no_part_of_what_is_saved(tmp_path: Path) -> None:
    """A trainer makes EOS the padding of a model without one, and its embedding would have no gradient any more."""
    own = tiny.byte_level()
    model = tiny.tiny(vocabulary=len(own), pad_token_id=None)
    assert own.pad_token is None
    letters = verifier("exact", gold="letter", pattern="(e)")
    rows = Dataset.from_dict({"prompt": ["a b c", "d", "e f"], "letter": ["e"] * 3})
    made = warm(model, tmp_path / "warm", letters, rows, problems=3, n=8, max_new_tokens=16, tokenizer=own)
    loaded = made.load()
    assert loaded.model.config.pad_token_id is None
    assert loaded.model.get_input_embeddings().padding_idx is None  # type: ignore[union-attr]
    assert made.reader.tokenizer.pad_token is own.pad_token is None


# -- which rows, in which order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 17, 101, 300])
@pytest.mark.parametrize("most", [1, 2, 3, 8, 1000])
def test_every_problem_comes_once_in_batches_of_equal_size(rows: int, most: int) -> None:
    batches = _order(rows, Recipe(**{**RECIPE, "batch_problems": most}))
    [size] = {len(batch) for batch in batches}
    assert size <= most
    assert all(len(set(batch)) == size for batch in batches)
    flat = [index for batch in batches for index in batch]
    assert set(flat[:rows]) == set(range(rows))
    assert flat[rows:] == flat[: len(flat) - rows]
    assert len(flat) - rows < min(size, len(batches))


def test_the_rows_trained_on_are_drawn_by_the_seed_and_judged_as_they_are(tmp_path: Path, folder: Path) -> None:
    problems, seen, ended = pool(9), list[str](), tokenizer().eos_token_id

    def watches(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> Any:
        seen.append(prompts[0])
        assert columns["answer"] == [world.true_answer(prompts[0])] * 4
        assert len(prompts) == len(completions) == len(completion_ids) == 4
        assert completions == [tokenizer().decode(own, skip_special_tokens=True) for own in completion_ids]
        assert all(len(own) == 8 or own[-1] == ended for own in completion_ids)
        return even(completions)

    warm(folder, tmp_path / "warm", watches, problems, problems=5, seed=2)
    drawn = np.sort(np.random.default_rng([2, WARM_UP_STREAM]).permutation(9)[:5])
    order = _order(5, Recipe(**{**RECIPE, "seed": 2, "batch_problems": 2}))
    assert seen == [problems[int(drawn[index])]["prompt"] for batch in order for index in batch]


def test_chats_are_read_as_chats(tmp_path: Path) -> None:
    own = tiny.byte_level(pad_token="</s>", chat_template=tiny.CHAT)
    base = tiny.saved(tmp_path / "base", tiny.tiny(vocabulary=len(own)), own)
    asked = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{n}?"}] for n in range(3)]
    seen: list[Any] = []

    def watches(prompts: list[Any], completions: list[Any], **_: Any) -> list[float]:
        seen.extend(prompts)
        return [float("e" in completion[0]["content"]) for completion in completions]

    rows = Dataset.from_dict({"messages": asked})
    made = warm(base, tmp_path / "warm", watches, rows, problems=3, n=8, max_new_tokens=16)
    assert recorded(made)["rows"] == 3
    assert {prompt[1]["content"] for prompt in seen} == {"0?", "1?", "2?"}
    assert all(prompt[0] == {"role": "system", "content": "Be brief."} for prompt in seen)


def test_updates_from_the_same_rollouts_are_steps_of_their_own(tmp_path: Path, folder: Path) -> None:
    record = recorded(warm(folder, tmp_path / "warm", updates=2, beta=0.0))
    assert (record["steps"], record["groups"], record["beta"]) == (4, 4, 0.0)


def test_the_habits_of_a_generation_config_do_not_steer_the_rollouts(tmp_path: Path) -> None:
    plain, steered, unfit = policy(), policy(), policy()
    even_digits = tokenizer().convert_tokens_to_ids(list("02468"))
    steered.generation_config.update(suppress_tokens=even_digits, eos_token_id=[1])
    unfit.generation_config.update(top_k=2, do_sample=False, eos_token_id=[1])  # transformers would not save these
    made = {
        name: warm(model, tmp_path / name, tokenizer=tokenizer())
        for name, model in {"plain": plain, "steered": steered, "unfit": unfit}.items()
    }
    assert made["plain"].source.digest == made["steered"].source.digest == made["unfit"].source.digest
    kept = {name: scorer.load().model.generation_config for name, scorer in made.items()}
    assert (kept["steered"].suppress_tokens, kept["steered"].eos_token_id) == (even_digits, [1])
    assert (kept["unfit"].top_k, kept["unfit"].eos_token_id) == (None, [1])


# -- LoRA -------------------------------------------------------------------------------------------------------------


def test_lora_saves_one_adapter_that_loads_onto_its_base(tmp_path: Path, folder: Path) -> None:
    pytest.importorskip("peft")
    before = folder_digest(folder)
    made = warm(folder, tmp_path / "warm", method="lora", learning_rate=1e-2)
    torch.rand(3)
    again = warm(folder, tmp_path / "again", method="lora", learning_rate=1e-2)
    record = recorded(made)
    assert record["method"] == "lora"
    assert record["lora"] == {"r": 8, "alpha": 32, "target_modules": "all-linear"}
    saved = [path.relative_to(tmp_path / "warm").as_posix() for path in (tmp_path / "warm").rglob("*.safetensors")]
    assert saved == ["adapter_model.safetensors"]
    assert folder_digest(folder) == before
    assert made.source.digest == again.source.digest
    loaded: Any = made.load().model
    second = [value for name, value in loaded.named_parameters() if "lora_B" in name]
    assert len(second) == 14
    assert all(value.any() for value in second)


# -- what goes wrong --------------------------------------------------------------------------------------------------


def test_rewards_that_are_all_equal_teach_nothing_and_that_is_said(tmp_path: Path, folder: Path) -> None:
    def alike(completions: list[str], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    with pytest.warns(UserWarning, match=r"taught nothing: in none of 4 groups .* \(mean reward 1.0\)"):
        made = warm(folder, tmp_path / "warm", alike, learning_rate=1e-3)
    assert recorded(made)["groups_with_signal"] == 0
    was, now = AutoModelForCausalLM.from_pretrained(folder).state_dict(), made.load().model.state_dict()
    assert all(torch.equal(was[name], now[name]) for name in was)


def test_a_verifier_that_judges_no_row_ends_it(tmp_path: Path, folder: Path) -> None:
    judged = r"judged none of the first 4 problems of the warm-up: verifier failed: OSError: no such judge"
    with pytest.raises(ScoreError, match=judged):
        warm(folder, tmp_path / "warm", refused, batch_problems=3)
    assert not (tmp_path / "warm").exists()


@pytest.mark.filterwarnings("ignore:the warm-up taught nothing")
def test_rows_that_are_not_judged_are_counted_and_teach_nothing(tmp_path: Path, folder: Path) -> None:
    rows = [{**row, "judge": number != 1} for number, row in enumerate(pool(4).to_list())]

    def judges(completions: list[str], judge: list[bool], **_: Any) -> list[Any]:
        return [1.0] * len(completions) if judge[0] else [*even(completions)[:-1], "no number"]

    made = warm(folder, tmp_path / "warm", judges, Dataset.from_list(rows), learning_rate=1e-3)
    record = recorded(made)
    assert (record["rows"], record["unverified_rows"], record["groups"]) == (4, 1, 4)
    assert (record["reward_first"], record["reward_last"]) == (1.0, 1.0)
    was, now = AutoModelForCausalLM.from_pretrained(folder).state_dict(), made.load().model.state_dict()
    assert all(torch.equal(was[name], now[name]) for name in was)


def test_one_reward_of_zero_is_a_verdict_among_many_failures(folder: Path) -> None:
    def judges(completions: list[str], judge: list[bool], **_: Any) -> list[float]:
        return [0.0] * len(completions) if judge[0] else refused(completions)

    rows = [{**row, "judge": number == 2} for number, row in enumerate(pool(12).to_list())]
    rewards = Rewards(Rollouts(folder, judges), rows, Recipe(**{**RECIPE, "n": 2}))
    assert rewards(completion_ids=[[2, 3]] * 20, row=[index for index in range(10) for _ in range(2)]) == [0.0] * 20
    assert (rewards.means, len(rewards.unverified), rewards.with_signal) == ([0.0], 9, 0)


def test_rows_that_cannot_be_sampled_for_are_counted_and_left_out(tmp_path: Path, folder: Path) -> None:
    rows = [*pool(2).to_list(), {"prompt": "", "answer": "1"}, {"prompt": "1" * 1020, "answer": "1"}]
    mixed = Dataset.from_list(rows)
    record = recorded(warm(folder, tmp_path / "warm", even, mixed))
    assert (record["rows"], record["unreadable_rows"], record["pool_rows"]) == (2, 2, 4)
    long = r"none of the 1 rows drawn .*: too long: 1,020 prompt tokens and 8 new ones, .* lower max_new_tokens=8\."
    with pytest.raises(ScoreError, match=long):
        warm(folder, tmp_path / "other", even, mixed.select([3]), problems=1)
    assert not (tmp_path / "other").exists()


def test_a_pool_smaller_than_the_draw_is_used_whole_and_that_is_said(tmp_path: Path, folder: Path) -> None:
    with pytest.warns(UserWarning, match="problems=300, and the pool has 3 rows: the warm-up trains on all of them"):
        made = warm(folder, tmp_path / "warm", even, pool(3), problems=300)
    assert recorded(made)["rows"] == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"problems": 0}, "problems=0 must be a whole number from 1 on"),
        ({"problems": 2.5}, "problems=2.5"),
        ({"n": 1}, "n=1 must be a whole number from 2 on"),
        ({"batch_problems": 0}, "batch_problems=0"),
        ({"updates": True}, "updates=True"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": 0.0}, "temperature=0.0 must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"learning_rate": 0}, "learning_rate=0"),
        ({"clip": 0}, "clip=0 must be a finite number above 0"),
        ({"beta": -0.1}, "beta=-0.1 must be a finite number from 0 on"),
        ({"seed": -1}, "seed=-1"),
        ({"method": "dora"}, "method='dora' is not 'lora' or 'full'"),
        ({"rollouts": 1}, "rollouts= samples with the policy before its warm-up"),
        ({"direction": "d.safetensors"}, "direction= was fitted with the policy before its warm-up"),
        ({"prompt": "nothing"}, "nothing"),
        ({"judge": "nothing"}, "no verifier is called 'nothing'"),
        ({"judge": verifier("exact", gold="solution")}, "solution"),
        ({"dataset": Dataset.from_dict({"prompt": []})}, "the dataset to warm up on is empty"),
        ({"dataset": [{"prompt": "1+1?"}]}, "draws from a datasets.Dataset, this is a list"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(
    options: dict[str, Any], says: str, tmp_path: Path, folder: Path
) -> None:
    with pytest.raises(CurateError, match=says):
        warm(folder, tmp_path / "warm", **options)
    assert not (tmp_path / "warm").exists()


def test_rollouts_of_the_policy_before_are_refused(tmp_path: Path, folder: Path) -> None:
    rolled = score(pool(), Rollouts(folder, even, 2, max_new_tokens=8))
    with pytest.raises(ColumnsError, match="hold rollouts already, of a policy before this warm-up"):
        warm(folder, tmp_path / "warm", even, rolled)


def test_a_folder_that_is_not_empty_is_refused_and_left_alone(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CurateError, match="is not empty"):
        warm(folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_adapter_is_refused_with_how_to_merge_it(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    base = saved_policy(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    adapter = tiny.saved(tmp_path / "adapter", model, tokenizer())
    with pytest.raises(CurateError, match=r"'adapter' is an adapter, .* merge it first with model.merge_and_unload"):
        warm(adapter, tmp_path / "warm")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    own = tiny.byte_level(eos_token=None)
    with pytest.raises(CurateError, match="the tokenizer has no EOS token"):
        warm(tiny.tiny(vocabulary=len(own)), tmp_path / "warm", tokenizer=own)


def test_without_trl_it_says_what_to_install(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingPackageError, match=r"a warm-up by GRPO needs.*pip install 'hf_curate\[trl\]'"):
        warm(folder, tmp_path / "warm")
