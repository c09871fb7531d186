"""Rows with rollouts as tokens: prompt ids, response ids and EOS, nothing else; and the reason of every other row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import assume, given
from hypothesis import strategies as st
from tiny import CHAT, byte_level, saved, tiny, unigram
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_curate.batches import Rollout
from hf_curate.errors import ColumnsError, CurateError, ModelError, RowError
from hf_curate.scorers.groups import Group, GroupReader
from hf_curate.weights import ModelSource

ROLES = ("prompt", "messages", "responses", "response_ids", "rewards")
USER = {"role": "user", "content": "6*7?"}
CHAT_BOS = "{{ bos_token }}" + CHAT
CHAT_THINK = CHAT.replace("<|assistant|>", "<|assistant|><think>\n")
ROW = {"prompt": "6*7?\n", "responses": ["42", "41, no"], "rewards": [1.0, 0.0]}
IDS = {"prompt": "6*7?\n", "response_ids": [[50, 2], [50]], "rewards": [1.0, 0.0]}


def reader_of(tokenizer: PreTrainedTokenizerFast, model: Any = None, **options: Any) -> GroupReader:
    named = {role: options.pop(role, None) for role in ROLES}
    source = ModelSource.of(model if model is not None else tiny("GPT2"))
    return GroupReader(source, named, tokenizer, options.pop("max_length", None), **options)


def read(reader: GroupReader, row: dict[str, Any]) -> Group:
    group = reader.read(row)
    assert isinstance(group, Group), group
    return group


def reason(reader: GroupReader, row: dict[str, Any]) -> str:
    error = reader.read(row)
    assert isinstance(error, RowError)
    return str(error)


@pytest.fixture(scope="module")
def plain() -> GroupReader:
    return reader_of(byte_level())


# -- tokens -----------------------------------------------------------------------------------------------------------


TEXT = st.text(max_size=20)
READERS = {
    (make.__name__, bos): reader_of(make(bos=bos), tiny("Qwen3")) for make in (byte_level, unigram) for bos in (0, 1)
}


@pytest.mark.parametrize("key", READERS)
@given(prompt=TEXT.map(lambda text: "Q" + text), texts=st.lists(TEXT, min_size=1, max_size=4))
def test_texts_give_exactly_prompt_ids_then_response_ids_then_eos(key: Any, prompt: str, texts: list[str]) -> None:
    assume(not prompt.rstrip().endswith("<think>"))  # an opened one is not repeated: it has tests of its own
    reader = READERS[key]
    tokenizer = reader.tokenizer
    group = read(reader, {"prompt": prompt, "responses": texts, "rewards": range_of(texts)})
    asked = tokenizer(prompt)["input_ids"]
    assert group.rollouts == [
        Rollout([*asked, *tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id], len(asked))
        for text in texts
    ]
    assert group.rewards.tolist() == range_of(texts)


def range_of(items: list[Any]) -> list[float]:
    return [float(place) for place, _ in enumerate(items)]


@pytest.mark.parametrize("make", [byte_level, unigram])
def test_plain_text_has_the_bos_of_its_tokenizer_once_and_the_response_has_none(make: Any) -> None:
    reader = reader_of(make(bos=True))
    bos = reader.tokenizer.bos_token_id
    for prompt in ("6*7?\n", "<s>6*7?\n"):
        for rollout in read(reader, ROW | {"prompt": prompt}).rollouts:
            assert rollout.input_ids.count(bos) == 1
            assert rollout.input_ids[0] == bos


@pytest.mark.parametrize("template", [CHAT, CHAT_BOS])
@pytest.mark.parametrize("bos", [True, False])
def test_a_chat_has_the_tokens_of_its_template_and_no_others(template: str, bos: bool) -> None:
    tokenizer = byte_level(chat_template=template, bos=bos)
    asked = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert asked.count(tokenizer.bos_token_id) == (template == CHAT_BOS)
    group = read(reader_of(tokenizer), {"messages": [USER], "responses": ["42"], "rewards": [1]})
    said = tokenizer("42", add_special_tokens=False)["input_ids"]
    assert group.rollouts == [Rollout([*asked, *said, tokenizer.eos_token_id], len(asked))]
    solved = [USER, {"role": "assistant", "content": "old"}]
    again = read(reader_of(tokenizer), {"messages": solved, "responses": ["42"], "rewards": [1]})
    assert again.rollouts == group.rollouts


def test_eos_is_appended_once(plain: GroupReader) -> None:
    eos = plain.tokenizer.eos_token_id
    first, second = read(plain, ROW | {"responses": ["42", "42</s>"]}).rollouts
    assert first == second
    assert first.input_ids.count(eos) == 1
    assert first.input_ids[-1] == eos
    inside = read(plain, ROW | {"responses": ["4</s>2", ""]}).rollouts
    assert inside[0].input_ids.count(eos) == 2
    assert inside[1].input_ids[inside[1].start :] == [eos]


def test_without_an_eos_the_response_is_its_text_and_an_empty_one_is_the_rows_reason() -> None:
    reader = reader_of(byte_level(eos_token=None))
    rollout = read(reader, ROW).rollouts[0]
    assert reader.tokenizer.decode(rollout.input_ids[rollout.start :]) == "42"
    assert reason(reader, ROW | {"responses": ["42", ""]}) == (
        "empty response: response 2 has no token, and the tokenizer has no EOS to append"
    )


@pytest.mark.parametrize("said", ["<think>\nadd\n</think>42", "\n<think>\r\nadd\n</think>42", "add\n</think>42"])
def test_a_think_that_the_template_opened_is_not_repeated(said: str) -> None:
    reader = reader_of(byte_level(chat_template=CHAT_THINK))
    rollout = read(reader, {"messages": [USER], "responses": [said], "rewards": [1]}).rollouts[0]
    assert reader.tokenizer.decode(rollout.input_ids) == ("<|user|>6*7?\n<|assistant|><think>\nadd\n</think>42</s>")
    ids = reader.tokenizer(said, add_special_tokens=False)["input_ids"]
    taken = read(reader, {"messages": [USER], "response_ids": [ids], "rewards": [1]}).rollouts[0]
    assert taken.input_ids[taken.start :] == ids, "ids are what was sampled"


def test_without_an_opened_think_the_responses_own_stays(plain: GroupReader) -> None:
    rollout = read(plain, ROW | {"responses": ["<think>a</think>", "b"]}).rollouts[0]
    assert plain.tokenizer.decode(rollout.input_ids[rollout.start :]) == "<think>a</think></s>"


@given(ids=st.lists(st.lists(st.integers(0, 399), min_size=1, max_size=9), min_size=1, max_size=5))
def test_ids_are_taken_as_they_are(ids: list[list[int]]) -> None:
    reader = READERS["byte_level", 0]
    group = read(reader, {"prompt": "6*7?", "response_ids": ids, "rewards": range_of(ids)})
    asked = reader.tokenizer("6*7?")["input_ids"]
    assert group.rollouts == [Rollout(asked + one, len(asked)) for one in ids]


def test_the_tokens_of_texts_read_again_as_ids_are_the_same_group(plain: GroupReader) -> None:
    group = read(plain, ROW)
    sampled = [rollout.input_ids[rollout.start :] for rollout in group.rollouts]
    row = {"prompt": ROW["prompt"], "response_ids": sampled, "rewards": ROW["rewards"]}
    again = read(plain, row)
    assert again.rollouts == group.rollouts
    assert np.array_equal(again.rewards, group.rewards)


def test_a_tokenizer_that_truncates_or_pads_by_itself_is_not_let(plain: GroupReader) -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    assert read(reader_of(tokenizer), ROW).rollouts == read(plain, ROW).rollouts


# -- rows that cannot be read -----------------------------------------------------------------------------------------


def test_an_id_without_an_embedding_is_the_rows_reason(tmp_path: Path) -> None:
    tokenizer, model = byte_level(), tiny("Qwen3", vocabulary=410)
    error = "unknown token id: response 2 holds id 410, the model knows 410"
    row = IDS | {"response_ids": [[409], [1, 410]]}
    for place in (model, saved(tmp_path, model, tokenizer)):
        reader = reader_of(tokenizer, place)
        assert reader.vocabulary == 410
        assert reason(reader, row) == error
        assert read(reader, IDS | {"response_ids": [[409], [0]]}).rollouts[0].input_ids[-1] == 409
    far = IDS | {"response_ids": [[99_999], [0]]}
    assert reason(reader_of(tokenizer, model), far) == (
        "unknown token id: response 1 holds id 99,999, the model knows 410"
    )


def test_the_vocabulary_of_a_live_model_follows_its_embeddings() -> None:
    model = tiny("Qwen3", vocabulary=400)
    reader = reader_of(byte_level(), model)
    assert reader.vocabulary == 400
    model.resize_token_embeddings(408)
    assert reader.vocabulary == 408


def test_a_prompt_without_any_token_is_the_rows_reason(plain: GroupReader) -> None:
    error = "no prompt: 0 characters that give no token: nothing predicts the response"
    assert reason(plain, ROW | {"prompt": ""}) == error
    assert reason(plain, IDS | {"prompt": ""}) == error
    with_bos = reader_of(byte_level(bos=True))
    assert read(with_bos, ROW | {"prompt": ""}).rollouts[0].start == 1


def test_a_row_over_max_length_is_never_truncated(plain: GroupReader) -> None:
    lengths = [len(rollout.input_ids) for rollout in read(plain, ROW).rollouts]
    assert lengths[0] < lengths[1]
    assert isinstance(reader_of(byte_level(), max_length=lengths[1]).read(ROW), Group)
    assert reason(reader_of(byte_level(), max_length=lengths[1] - 1), ROW) == (
        f"too long: prompt and response 2 have {lengths[1]} tokens, max_length is {lengths[1] - 1}"
    )
    assert plain.max_length == 256, "the model's own"
    asked = len(plain.tokenizer(IDS["prompt"])["input_ids"])
    assert reason(plain, IDS | {"response_ids": [[5], [5] * (5000 - asked)]}) == (
        "too long: prompt and response 2 have 5,000 tokens, max_length is 256"
    )


def test_what_cannot_be_read_as_a_group_is_the_rows_reason(plain: GroupReader) -> None:
    assert reason(plain, ROW | {"rewards": [1.0]}) == "rewards and responses differ: 1 rewards, 2 responses"
    assert reason(plain, ROW | {"rewards": [1.0, float("nan")]}) == "reward not finite: reward 2 is nan"
    assert reason(plain, IDS | {"response_ids": [[4], []]}) == "empty response: response 2 holds no token id"


def test_messages_without_a_template_are_an_error_that_says_what_to_set(plain: GroupReader) -> None:
    with pytest.raises(ModelError, match=r"no chat template: set tokenizer\.chat_template, or pass a prompt= column"):
        plain.read({"messages": [USER], "responses": ["42"], "rewards": [1]})


def test_a_template_that_refuses_the_messages_is_the_rows_reason() -> None:
    reader = reader_of(byte_level(chat_template="{{ raise_exception('no system role') }}"))
    row = {"messages": [USER], "responses": ["42"], "rewards": [1]}
    assert reason(reader, row) == "chat template failed: TemplateError: no system role"


def test_a_tokenizer_that_knows_no_token_of_the_prompt_gives_no_prompt() -> None:
    backend = Tokenizer(models.BPE({"a": 0, "</s>": 1}, []))  # without <unk>: what it does not know is dropped
    reader = reader_of(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))
    assert reason(reader, {"prompt": "zz", "responses": ["a"], "rewards": [1]}).startswith("no prompt: 2 characters")


# -- columns, batches, records ----------------------------------------------------------------------------------------


def test_scoring_reads_the_columns_of_the_group_and_no_others(plain: GroupReader) -> None:
    names = ["image", "rewards", "answer", "prompt", "responses", "response_ids"]
    assert plain.reads(names) == ["rewards", "prompt", "response_ids"]
    named = reader_of(byte_level(), responses="responses", messages="chat")
    assert named.reads([*names, "chat"]) == ["rewards", "responses", "chat"]


def test_where_columns_are_not_found_a_row_says_which_could_be_meant(plain: GroupReader) -> None:
    row = {"problem": "6*7?", "tries": ["42"], "graded": [1.0]}
    assert plain.reads(list(row)) == list(row)
    with pytest.raises(ColumnsError, match="Did you mean responses='tries' and rewards='graded'"):
        plain.columns_of(list(row), row)


def as_batch(row: dict[str, Any], rows: int = 2) -> dict[str, Any]:
    return {name: [value] * rows for name, value in row.items()}


CHATTY = {"messages": [USER], "responses": ["42"], "rewards": [1.0]}
ARRAYS = {"prompt": [USER], "response_ids": np.array([[4, 2]]), "rewards": np.array([1.0])}


@pytest.mark.parametrize(
    "row",
    [
        ROW,
        IDS,
        CHATTY,
        ARRAYS,
        CHATTY | {"rewards": [None]},
        CHATTY | {"rewards": []},
        CHATTY | {"rewards": ["1"]},
        CHATTY | {"rewards": None},
        CHATTY | {"messages": []},
        CHATTY | {"messages": [None]},
        ROW | {"prompt": []},
        {"messages": [], "responses": [], "rewards": []},
        {"prompt": [USER, USER], "responses": ["a", "b"], "rewards": [1, 0]},
        {"messages": [USER], "responses": [[{"role": "assistant", "content": "42"}]], "rewards": [1]},
    ],
)
def test_a_row_is_told_from_a_batch_of_it(plain: GroupReader, row: dict[str, Any]) -> None:
    assert not plain.is_batch(row)
    assert plain.is_batch(as_batch(row, 1))
    assert plain.is_batch(as_batch(row, 2))


def test_a_batch_of_no_rows_or_of_one_reward_per_row_is_a_batch(plain: GroupReader) -> None:
    assert plain.is_batch({"prompt": [], "responses": [], "rewards": []})
    assert plain.is_batch({"prompt": ["a", "b"], "responses": ["c", "d"], "rewards": [1.0, 0.0]})
    assert plain.is_batch({"prompt": ["a", None], "responses": [None, ["d"]], "rewards": [None, None]})


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("form", [None, "numpy"])
def test_a_map_says_by_itself_what_it_hands_over(plain: GroupReader, batched: bool, form: str | None) -> None:
    dataset = Dataset.from_list([CHATTY] * 3)
    said: list[bool] = []

    def look(rows: Any) -> None:
        said.append(plain.is_batch(rows))

    (dataset.with_format(form) if form else dataset).map(look, batched=batched, load_from_cache_file=False)
    assert said
    assert set(said) == {batched}


def test_the_record_names_the_columns_that_were_found_and_the_settings_those_asked_for() -> None:
    reader = reader_of(byte_level(), rewards="rewards", max_length=64)
    settings = reader.settings()
    assert settings["columns"] == dict.fromkeys(ROLES) | {"rewards": "rewards"}
    assert settings["max_length"] == 64
    assert reader.record() == settings
    read(reader, ROW)
    assert reader.record() == settings | {
        "columns": {
            "level": "prompt",
            "prompt": "prompt",
            "messages": None,
            "responses": "responses",
            "response_ids": None,
            "rewards": "rewards",
        }
    }
    other = reader_of(byte_level(bos=True)).settings()["tokenizer_sha256"]
    assert other != settings["tokenizer_sha256"]


def test_a_max_length_that_leaves_nothing_to_predict_is_refused() -> None:
    with pytest.raises(CurateError, match="max_length=1 leaves no room"):
        reader_of(byte_level(), max_length=1)
