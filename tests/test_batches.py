"""From a row to token positions: the text as the model reads it, one BOS, and every span's own tokens."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any
from unicodedata import combining

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import CHAT, TEXTS, byte_level, unigram
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_curate import GraceScorer
from hf_curate import memory as memory_room
from hf_curate.batches import (
    ENOUGH_TOKENS,
    MOST_PADDING,
    TALLY,
    Example,
    Tally,
    bucket,
    encode,
    in_batches,
    pad,
    render,
)
from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import ModelError, RowError
from hf_curate.memory import TokenBudget
from hf_curate.rows import Trace

CHAT_THINK = CHAT.replace("<|assistant|>", "<|assistant|><think>\n")
CHAT_BOS = "{{ bos_token }}" + CHAT
ASKED = ({"role": "user", "content": "How many?"},)
SOLVED = "48/2=24\n\n48+24=72\n\n#### 72"


def trace_of(completion: str, prompt: Any = "How many?\n", gold: str | None = None, steps: Any = None) -> Trace:
    return Trace(prompt, completion, gold, steps)


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return byte_level()


def with_template(template: str, **options: Any) -> PreTrainedTokenizerFast:
    return byte_level(chat_template=template, **options)


def span_texts(example: Example) -> list[str]:
    return [example.text[start:end] for start, end in example.characters]


# -- the text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["How many?", "How many?\n", "How many? "])
def test_plain_strings_are_concatenated_with_nothing_in_between(prompt: str, bpe: PreTrainedTokenizerFast) -> None:
    assert render(trace_of(SOLVED, prompt), bpe) == (prompt, SOLVED, False)
    example = encode(trace_of(SOLVED, prompt), bpe)
    assert example.text == prompt + SOLVED
    assert example.input_ids == bpe(prompt + SOLVED)["input_ids"]


def test_chat_prompts_go_through_the_template_and_the_completion_does_not() -> None:
    tokenizer = with_template(CHAT)
    prompt, completion, opened = render(trace_of(SOLVED, ASKED), tokenizer)
    assert prompt == "<|user|>How many?\n<|assistant|>"
    assert (completion, opened) == (SOLVED, False)
    example = encode(trace_of(SOLVED, ASKED), tokenizer)
    assert example.text == prompt + SOLVED
    assert example.input_ids[0] == tokenizer.convert_tokens_to_ids("<|user|>")


@pytest.mark.parametrize(
    ("template", "completion", "expected"),
    [
        (CHAT, "<think>\nadd\n</think>\n\n#### 72", "<|assistant|><think>\nadd\n</think>\n\n#### 72"),
        (CHAT_THINK, "<think>\nadd\n</think>\n\n#### 72", "<|assistant|><think>\nadd\n</think>\n\n#### 72"),
        (CHAT_THINK, "\n<think>\r\nadd\n</think>\n\n#### 72", "<|assistant|><think>\nadd\n</think>\n\n#### 72"),
        (CHAT_THINK, "add\n</think>\n\n#### 72", "<|assistant|><think>\nadd\n</think>\n\n#### 72"),
        (
            CHAT.replace("<|assistant|>", "<|assistant|><think>"),
            "<think>\nadd\n</think>\n\n#### 72",
            "<|assistant|><think>\nadd\n</think>\n\n#### 72",
        ),
        (
            CHAT.replace("<|assistant|>", "<|assistant|><think>\n\n</think>\n\n"),
            "add\n\n#### 72",
            "<|assistant|><think>\n\n</think>\n\nadd\n\n#### 72",
        ),
    ],
)
def test_a_think_that_the_template_opened_is_not_repeated(template: str, completion: str, expected: str) -> None:
    example = encode(trace_of(completion, ASKED), with_template(template))
    assert example.text == "<|user|>How many?\n" + expected
    assert example.text.count("<think>") == 1
    assert span_texts(example) == ["add", "72"]


def test_messages_without_a_chat_template_are_an_error_that_names_the_fix(bpe: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ModelError, match=r"has no chat template: set tokenizer.chat_template, or pass prompt="):
        encode(trace_of(SOLVED, ASKED), bpe)


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no system role') }}", "{{ messages[7]['role']['x'] }}", "{% for %}", "{{ 1 + 'a' }}"],
)
def test_a_template_that_fails_is_the_rows_reason(template: str) -> None:
    with pytest.raises(RowError, match="chat template failed"):
        encode(trace_of(SOLVED, ASKED), with_template(template))


def test_a_template_cannot_run_code() -> None:
    attack = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RowError, match="chat template failed: SecurityError"):
        encode(trace_of(SOLVED, ASKED), with_template(attack))


# -- one BOS ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("template", [CHAT, CHAT_BOS])
def test_a_chat_has_the_bos_that_its_template_writes_and_no_other(template: str, adds: bool) -> None:
    tokenizer = with_template(template, bos=adds)
    ids = encode(trace_of(SOLVED, ASKED), tokenizer).input_ids
    assert ids.count(tokenizer.bos_token_id) == (template == CHAT_BOS)
    assert (ids[0] == tokenizer.bos_token_id) == (template == CHAT_BOS)


@pytest.mark.parametrize("prompt", ["How many?\n", "<s>How many?\n"])
def test_plain_text_has_exactly_one_bos_where_the_tokenizer_adds_one(prompt: str) -> None:
    tokenizer = byte_level(bos=True)
    example = encode(trace_of(SOLVED, prompt), tokenizer)
    assert example.input_ids.count(tokenizer.bos_token_id) == 1
    assert example.input_ids[0] == tokenizer.bos_token_id
    assert example.input_ids == encode(trace_of(SOLVED, "How many?\n"), tokenizer).input_ids


def test_plain_text_has_no_bos_where_the_tokenizer_adds_none(bpe: PreTrainedTokenizerFast) -> None:
    assert bpe.bos_token_id not in encode(trace_of(SOLVED), bpe).input_ids


def test_a_tokenizer_without_bos_and_eos_works() -> None:
    tokenizer = byte_level(bos_token=None, eos_token=None)
    example = encode(trace_of(SOLVED), tokenizer)
    assert tokenizer.eos_token is None
    assert span_texts(example) == ["48/2=24", "48+24=72", "72"]


def test_an_eos_that_the_tokenizer_appends_belongs_to_no_span() -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", tokenizer.eos_token_id)]
    )
    example = encode(trace_of(SOLVED), tokenizer)
    assert example.input_ids[-1] == tokenizer.eos_token_id
    assert len(example.input_ids) - 1 not in example.labels


# -- positions --------------------------------------------------------------------------------------------------------


def tokens_of(example: Example, tokenizer: PreTrainedTokenizerFast) -> list[tuple[int, int]]:
    special = isinstance(tokenizer.bos_token_id, int) and example.input_ids[0] == tokenizer.bos_token_id
    return tokenizer(example.text, return_offsets_mapping=True, add_special_tokens=special)["offset_mapping"]


LANGUAGES = [
    "48/2=24\r\n\r\n48+24=72\r\n\r\n#### 72",
    "أولا نجمع ٢ و ٢\n\nثم نتحقق\n\n#### أربعة",
    "count 🎉🎉 and 👩‍👩‍👧\n\nso three 🎉\n\n#### 3️⃣",
    "e\u0301te\u0301 first\n\nnai\u0308ve a\u030angstro\u0308m\n\n#### cafe\u0301",
    "ﬁrst ½ step\n\nsecond ２ step\n\n#### ４",
    "\u200fמספר\u200e one\n\nשתיים\n\n#### שלוש",
    "  spaces  \n\n\ttabs\tand\u00a0more\u3000wide\n\n#### 1 000",
    "日本語で考える\n\n二段目\n\n#### 七十二",
]


@pytest.mark.parametrize("completion", LANGUAGES)
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("make", [byte_level, unigram])
def test_positions_are_the_tokens_of_the_span_in_any_script(make: Any, bos: bool, completion: str) -> None:
    tokenizer = make(TEXTS + LANGUAGES, size=420 if make is byte_level else 200, bos=bos)
    example = encode(trace_of(completion), tokenizer)
    assert len(example.spans) == 3
    assert example.text == "How many?\n" + completion
    offsets = tokens_of(example, tokenizer)
    for (start, end), positions in zip(example.characters, example.spans, strict=True):
        wanted = [i for i, (low, high) in enumerate(offsets) if i > 0 and low < high and low < end and high > start]
        assert positions == wanted
        assert min(positions) >= 1
        covered = {c for i in positions for c in range(*offsets[i])}
        # a normaliser that composes "e\u0301" reports the token at the letter alone
        visible = {c for c in range(start, end) if not (example.text[c].isspace() or combining(example.text[c]))}
        assert visible <= covered, "every visible character of the span is in one of its tokens"
        assert all(c in range(start, end) or example.text[c].isspace() for c in covered), "and no other's"


@pytest.mark.parametrize("completion", LANGUAGES)
def test_the_tokens_of_a_span_decode_to_its_text(completion: str) -> None:
    tokenizer = byte_level(TEXTS + LANGUAGES, size=420)
    example = encode(trace_of(completion), tokenizer)
    for text, positions in zip(span_texts(example), example.spans, strict=True):
        assert tokenizer.decode([example.input_ids[i] for i in positions]).strip() == text


def test_the_demos_characters_are_its_tokens() -> None:
    tokenizer = GraceScorer(MODEL).reader.tokenizer
    for row in load_traces().select(range(20)):
        example = encode(trace_of(row["completion"], row["prompt"]), tokenizer)
        assert len(example.input_ids) == len(example.text)
        assert example.spans == [list(range(start, end)) for start, end in example.characters]
        assert span_texts(example) == [*row["completion"].split("\n")[:-1], row["completion"].split("#")[-1]]
        assert example.first_completion_token == len(row["prompt"])


def test_whitespace_inside_a_step_is_in_it_also_where_the_tokenizer_trims_its_offsets() -> None:
    tokenizer = byte_level(["a\n\n\n\nb    c"] * 40, size=300)
    trimmed = byte_level(["a\n\n\n\nb    c"] * 40, size=300)
    trimmed.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trace = trace_of("foo    bar\nbaz\n\nmore\n\n#### 7")
    example, other = (encode(trace, one, split="blank_lines") for one in (tokenizer, trimmed))
    assert "ĠĠĠ" in tokenizer.convert_ids_to_tokens([example.input_ids[i] for i in example.spans[0]])
    assert other.spans[:2] == example.spans[:2]


def test_a_token_that_overlaps_two_spans_belongs_to_both() -> None:
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "ab;cd": 1, "x": 2, "#7": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("[ \n]"), behavior="isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    example = encode(trace_of("ab;cd x\n#7", "x "), tokenizer, split=";")
    assert span_texts(example) == ["ab", "cd x", "7"]
    assert example.spans == [[2], [2, 3, 4], [6]]
    assert example.labels == [2, 3, 4, 6]


def test_a_first_token_that_nothing_predicts_is_left_out(bpe: PreTrainedTokenizerFast) -> None:
    example = encode(trace_of(SOLVED, ""), bpe)
    assert example.spans[0][0] == 1
    assert example.first_completion_token == 0
    with_bos = byte_level(bos=True)
    example = encode(trace_of(SOLVED, ""), with_bos)
    assert example.spans[0][0] == 1
    assert with_bos.decode(example.input_ids[1:]).startswith("48/2")


def test_a_step_whose_only_token_nothing_predicts_is_the_rows_reason() -> None:
    tokenizer = GraceScorer(MODEL).reader.tokenizer
    with pytest.raises(RowError, match="no label: step 1 has no token with a token before it"):
        encode(trace_of("1\n2+2=4\n#4", ""), tokenizer)


def test_a_prompt_that_ends_inside_a_token_still_gives_the_completion_its_tokens(
    bpe: PreTrainedTokenizerFast,
) -> None:
    merged = byte_level(["xy " * 50], size=300)
    example = encode(trace_of("y 1\n\n#### 2", "x"), merged)
    assert tokens_of(example, merged)[0] == (0, 2)
    assert example.first_completion_token == 0
    assert example.spans[0][0] == 1


def test_a_row_over_max_length_is_never_truncated(bpe: PreTrainedTokenizerFast) -> None:
    length = len(encode(trace_of(SOLVED), bpe).input_ids)
    assert len(encode(trace_of(SOLVED), bpe, max_length=length).input_ids) == length
    with pytest.raises(RowError, match=f"too long: {length} tokens, max_length is {length - 1}"):
        encode(trace_of(SOLVED), bpe, max_length=length - 1)


def test_a_tokenizer_that_truncates_by_itself_is_not_let() -> None:
    tokenizer = byte_level()
    length = len(encode(trace_of(SOLVED), tokenizer).input_ids)
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=200)
    assert len(encode(trace_of(SOLVED), tokenizer).input_ids) == length


def test_a_lone_surrogate_is_the_rows_reason() -> None:
    scorer = GraceScorer(MODEL)
    for row in ({"prompt": "1\ud800?", "completion": "1\n#1"}, {"prompt": "1?", "completion": "1\udfff\n#1"}):
        assert scorer(row)["grace_error"].startswith("not valid Unicode")


def test_overlap_is_the_share_of_answer_tokens_that_occur_in_the_steps() -> None:
    tokenizer = GraceScorer(MODEL).reader.tokenizer
    assert encode(trace_of("1+1=2\n#25", "1?"), tokenizer).overlap == 0.5
    assert encode(trace_of("1+1=2\n#2", "1?"), tokenizer).overlap == 1.0
    assert encode(trace_of("1+1=2\n#7", "1?"), tokenizer).overlap == 0.0


# -- batches ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 3000), max_size=60), st.integers(1, 8000))
def test_bucketing_takes_every_row_once_within_the_budget(lengths: list[int], batch_tokens: int) -> None:
    batches = list(bucket(lengths, batch_tokens))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        longest = max(lengths[index] for index in batch)
        assert len(batch) == 1 or len(batch) * longest <= batch_tokens
    ordered = [lengths[index] for batch in batches for index in batch]
    assert ordered == sorted(lengths, reverse=True)


@given(st.lists(st.integers(1, 3000), max_size=60), st.integers(1, 40_000))
def test_a_batch_that_is_large_enough_ends_before_padding_and_for_no_other_reason(
    lengths: list[int], batch_tokens: int
) -> None:
    batches = [[lengths[index] for index in batch] for batch in bucket(lengths, batch_tokens)]
    for own, after in pairwise([*batches, []]):
        longest, real = own[0], sum(own)
        if (len(own) - 1) * longest >= ENOUGH_TOKENS:
            assert real >= (1 - MOST_PADDING) * len(own) * longest
        if after and (len(own) + 1) * longest <= batch_tokens:
            assert len(own) * longest >= ENOUGH_TOKENS
            assert real + after[0] < (1 - MOST_PADDING) * (len(own) + 1) * longest


LENGTHS = st.lists(st.integers(1, 300), max_size=60)


@given(LENGTHS, st.integers(1, 2000))
def test_what_fits_goes_in_the_buckets_and_comes_back_in_the_rows_order(lengths: list[int], batch_tokens: int) -> None:
    batches: list[list[int]] = []

    def work(batch: list[int]) -> list[int]:
        batches.append(batch)
        return [10 * index for index in batch]

    found = in_batches(lengths, TokenBudget(batch_tokens), work)
    assert found == [10 * index for index in range(len(lengths))]
    assert batches == list(bucket(lengths, batch_tokens))


@given(LENGTHS, st.integers(1, 2000), st.integers(1, 2000))
def test_out_of_memory_costs_the_rows_that_do_not_fit_alone_and_no_other(
    lengths: list[int], batch_tokens: int, memory: int
) -> None:
    done: list[int] = []
    tried: list[tuple[int, ...]] = []

    def work(batch: list[int]) -> list[int]:
        tried.append(tuple(batch))
        if len(batch) * max(lengths[index] for index in batch) > memory:
            raise MemoryError
        done.extend(batch)
        return [10 * index for index in batch]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_room, "_release", lambda: None)  # which goes through all of Python's objects
        found = in_batches(lengths, TokenBudget(batch_tokens), work)
    for index, (length, result) in enumerate(zip(lengths, found, strict=True)):
        if length <= memory:
            assert result == 10 * index
        else:
            assert str(result) == f"out of memory: {length:,} tokens, in a batch of its own"
    assert sorted(done) == [index for index, length in enumerate(lengths) if length <= memory], "each once"
    assert len(set(tried)) == len(tried), "and nothing is tried as it failed"


def test_an_error_of_another_kind_is_not_held_back() -> None:
    def work(batch: list[int]) -> list[int]:
        raise RuntimeError("no memory has run out")

    with pytest.raises(RuntimeError, match="no memory has run out"):
        in_batches([3, 4], TokenBudget(100), work)


def test_padding_stands_to_the_right() -> None:
    examples = [Example(ids, [[1]], "", [], 0, "", "") for ids in ([5, 6], [7, 8, 9])]
    padded = pad(examples, torch.device("cpu"))
    assert padded.shape == (2, 3)
    assert padded[0, :2].tolist() == [5, 6]
    assert padded[1].tolist() == [7, 8, 9]


def test_tokens_and_padding_are_counted_where_rows_become_tensors() -> None:
    TALLY.take()
    examples = [Example(ids, [[1]], "", [], 0, "", "") for ids in ([5, 6], [7, 8, 9], [1])]
    pad(examples, torch.device("cpu"))
    assert (TALLY.tokens, TALLY.padded) == (6, 9)
    pad(examples[:1], torch.device("cpu"))
    assert TALLY.take() == (8, 11)
    assert TALLY.take() == (0, 0)


def test_threads_count_together() -> None:
    tally = Tally()
    with ThreadPoolExecutor(8) as threads:
        taken = list(threads.map(lambda i: tally.take() if i % 10 == 0 else tally.add(1, 2), range(20_000)))
    sums = np.sum([pair for pair in taken if pair is not None] + [tally.take()], axis=0)
    assert sums.tolist() == [18_000, 36_000]
