"""Rollouts as an object for `datasets.map`: what is sampled, how it is verified, and what is written down."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import dill
import numpy as np
import pytest
from datasets import Dataset, List, Value
from datasets.fingerprint import Hasher
from openai_loopback import OpenAILoopback
from problems import CONTEXT, answers, problem_rows, problems, rolled, roller, sampling
from realdata import gsm8k_rows, needs_gsm8k
from rollouts import by_row
from tiny import CHAT, byte_level, run_script, saved, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_curate import Rollouts, ServerGenerator, score, verifier
from hf_curate.demo import MODEL, world
from hf_curate.errors import ColumnsError, CurateError, RowError, ScoreError
from hf_curate.rollouts.verify import RIGHT, UNPARSED, WRONG, Verdict, Verifier
from hf_curate.runs.local import load_run
from hf_curate.scorers.groups import GroupReader, prompt_tokens

COLUMNS = {
    "responses": List(Value("string")),
    "response_ids": List(List(Value("int32"))),
    "rewards": List(Value("float32")),
    "success_rate": Value("float32"),
    "learnability": Value("float32"),
    "rollouts_outcomes": List(Value("string")),
    "rollouts_truncated": Value("int32"),
    "rollouts_error": Value("string"),
}


@pytest.fixture(scope="module")
def eos() -> int:
    return AutoTokenizer.from_pretrained(MODEL).eos_token_id


@pytest.fixture(scope="module")
def done() -> Dataset:
    """Ten problems with eight rollouts."""
    return rolled(problems(10), roller(n=8))


# -- columns ----------------------------------------------------------------------------------------------------------


def test_the_columns_come_with_their_types_beside_the_dataset_s_own(done: Dataset) -> None:
    assert dict(done.features) == {"prompt": Value("string"), "answer": Value("string"), **COLUMNS}
    assert done.select_columns(["prompt", "answer"]).to_list() == problem_rows(10)
    assert {len(row[name]) for row in done for name in ("responses", "response_ids", "rewards")} == {8}
    assert set(done["rollouts_error"]) == {""}


def test_token_ids_are_those_that_were_sampled_and_decode_to_the_responses(done: Dataset, eos: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for row in done:
        for ids, text in zip(row["response_ids"], row["responses"], strict=True):
            assert tokenizer.decode(ids, skip_special_tokens=True) == text
            assert eos not in ids[:-1]
        assert row["rollouts_truncated"] == sum(ids[-1] != eos for ids in row["response_ids"])


def test_rewards_outcomes_and_rates_are_those_of_a_hand_made_verifier(done: Dataset) -> None:
    kinds = set()
    for row in done:
        right = [world.written_answer(text) == world.true_answer(row["prompt"]) for text in row["responses"]]
        assert row["rewards"] == list(map(float, right))
        assert [outcome == RIGHT for outcome in row["rollouts_outcomes"]] == right
        p = sum(right) / 8
        assert (row["success_rate"], row["learnability"]) == (p, p * (1 - p))  # eighths are exact in float32
        kinds |= set(right)
    assert kinds == {True, False}
    assert len(set(done["success_rate"])) > 2


def test_truncated_responses_are_kept_verified_as_they_are_and_counted(eos: int) -> None:
    found = rolled(problems(3), roller(max_new_tokens=5))
    whole = rolled(problems(3), roller())
    for row, longer in zip(found, whole, strict=True):
        assert row["rollouts_truncated"] == 4
        assert {len(ids) for ids in row["response_ids"]} == {5}
        assert row["response_ids"] == [ids[:5] for ids in longer["response_ids"]]
        assert row["rollouts_outcomes"] == [UNPARSED] * 4
        assert row["rewards"] == [0.0] * 4
        assert row["rollouts_error"] == ""
    assert whole["rollouts_truncated"][:] == [0] * 3


def test_a_temperature_of_zero_gives_equal_responses_and_no_learnability() -> None:
    found = rolled(problems(4), roller(temperature=0))
    assert all(len(set(row["responses"])) == 1 for row in found)
    assert found["learnability"][:] == [0.0] * 4


# -- ways to call it --------------------------------------------------------------------------------------------------


def test_a_row_a_batch_a_map_another_order_and_other_batches_give_the_same_responses(done: Dataset) -> None:
    made, rows = roller(n=8), problem_rows(10)
    wanted = done.remove_columns(["prompt", "answer"]).to_list()

    def plain(found: Any) -> Any:
        return Dataset.from_list([found], features=made.columns)[0]

    assert [plain(made(row)) for row in rows[:2]] == wanted[:2]
    batch = {name: [row[name] for row in rows] for name in rows[0]}
    assert [plain(row) for row in by_row(made(batch))] == wanted
    data = problems(10)
    for ways in ({"batch_size": 3}, {"batched": False}):
        assert rolled(data, made, **ways).remove_columns(data.column_names).to_list() == wanted
    order = [7, 0, 9, 3, 1, 8, 2, 6, 5, 4]
    shuffled = rolled(data.select(order), roller(n=8, batch_tokens=1000))
    assert shuffled.remove_columns(data.column_names).to_list() == [wanted[i] for i in order]


def test_an_iterable_dataset_gives_the_same_responses(done: Dataset) -> None:
    stream = problems(10).to_iterable_dataset().map(roller(n=8), batched=True, batch_size=4)
    assert [row["response_ids"] for row in stream] == done["response_ids"][:]
    rows = problems(10).to_iterable_dataset().map(roller(n=8))
    assert [row["rewards"] for row in rows.take(2)] == done["rewards"][:2]


def test_two_processes_give_the_same_responses(done: Dataset) -> None:
    data = problems(10)
    assert rolled(data, roller(n=8), num_proc=2).to_list() == done.to_list()


def test_more_rollouts_begin_with_those_of_fewer_and_seeds_differ(done: Dataset) -> None:
    four = rolled(problems(10), roller(n=4))
    assert four["response_ids"][:] == [ids[:4] for ids in done["response_ids"]]
    other = rolled(problems(10), roller(n=4, seed=1))
    pairs = zip(four["response_ids"], other["response_ids"], four["success_rate"], strict=True)
    assert all(one != two for one, two, rate in pairs if 0 < rate < 1)


def test_a_prompt_that_is_there_twice_has_the_same_rollouts() -> None:
    found = rolled(Dataset.from_list(problem_rows(2) + problem_rows(1)), roller())
    assert found[0] == found[2]
    assert found[0]["response_ids"] != found[1]["response_ids"]


def test_a_live_model_gives_what_its_folder_gives(done: Dataset) -> None:
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype="float32").train()
    live = Rollouts(model, answers(), 8, tokenizer=AutoTokenizer.from_pretrained(MODEL), max_new_tokens=40)
    assert rolled(problems(10), live).to_list() == done.to_list()
    assert model.training
    assert live.call().startswith("Rollouts(model, tokenizer=tokenizer, n=8")
    with pytest.raises(CurateError, match=r"save_pretrained\(folder\).*leave num_proc= and workers= away"):
        problems(4).map(live, batched=True, num_proc=2)


# -- chats ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = byte_level(chat_template=CHAT)
    return saved(tmp_path_factory.mktemp("chat") / "policy", tiny(vocabulary=len(tokenizer)), tokenizer)


QUESTION = [{"role": "user", "content": "How many?"}]


def test_chat_prompts_go_through_the_template_and_an_answer_in_them_is_left_out(chat_folder: Path) -> None:
    made = Rollouts(chat_folder, "exact", 3, max_new_tokens=6)
    rendered = "<|user|>How many?\n<|assistant|>"
    rows: list[dict[str, Any]] = [
        {"messages": QUESTION, "answer": "4"},
        {"messages": [*QUESTION, {"role": "assistant", "content": "#### 4"}], "answer": "4"},
        {"prompt": QUESTION, "answer": "4"},
        {"prompt": rendered, "answer": "4"},
    ]
    found = [made(row)["response_ids"] for row in rows]
    assert found == [found[0]] * 4
    assert len(set(map(tuple, found[0]))) > 1


def test_scorers_read_the_prompt_that_was_sampled_from(chat_folder: Path) -> None:
    made = Rollouts(chat_folder, "exact", 2, max_new_tokens=6)
    row = {"messages": QUESTION, "answer": "4"}
    roles = dict.fromkeys(("prompt", "messages", "responses", "response_ids", "rewards"))
    group = GroupReader(made.source, roles).read({**row, **made(row)})
    assert not isinstance(group, RowError)
    _, ids = prompt_tokens(QUESTION, made.reader.tokenizer)
    assert [rollout.input_ids[: rollout.start] for rollout in group.rollouts] == [ids] * 2
    assert [rollout.input_ids[rollout.start :] for rollout in group.rollouts] == made(row)["response_ids"]


def test_a_chat_without_messages_is_a_row_and_not_an_empty_batch(chat_folder: Path) -> None:
    found = Rollouts(chat_folder, "exact", 2, max_new_tokens=6)({"messages": [], "answer": "4"})
    assert found["rollouts_error"] == "no prompt: column 'messages' holds an empty list of messages"


def test_no_rows_at_all_are_no_rollouts() -> None:
    assert roller()({"prompt": [], "answer": []}) == {name: [] for name in COLUMNS}


def test_a_reward_function_sees_a_row_as_trl_shows_it(chat_folder: Path) -> None:
    seen: list[dict[str, Any]] = []

    def watching(prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[float]:
        seen.append({"prompts": prompts, "completions": completions, "ids": completion_ids, **columns})
        return [1.0] * len(completions)

    found = Rollouts(chat_folder, watching, 2, max_new_tokens=6)({"messages": QUESTION, "level": "hard"})
    texts = [[{"role": "assistant", "content": text}] for text in found["responses"]]
    wanted = {"prompts": [QUESTION] * 2, "completions": texts, "ids": found["response_ids"], "level": ["hard"] * 2}
    assert [{name: call[name] for name in wanted} for call in seen] == [wanted]


# -- verifiers that fail ----------------------------------------------------------------------------------------------


def raises(completions: Sequence[str], **_: Any) -> list[float]:
    raise KeyError("solution")


def hangs(completions: Sequence[str], **_: Any) -> list[float]:
    time.sleep(2)
    return [1.0] * len(completions)


FAILING: list[tuple[Callable[..., Any], str]] = [
    (raises, "verifier failed: KeyError: 'solution'"),
    (hangs, "verifier timed out: no rewards for 4 completions within 0.1 s"),
    (lambda completions, **_: ["1.0"] * 4, "verifier failed: reward 1 is str '1.0', expected a number or None"),
    (lambda completions, **_: [1.0] * 3, "verifier failed: it returned 3 rewards, expected 4"),
    (lambda completions, **_: [0.0, float("nan"), 0.0, 0.0], "verifier failed: reward 2 is nan"),
    (lambda completions, **_: [0.0, 0.0, 0.0, -1e39], "verifier failed: reward 4 is -1e+39, and a float32 holds up"),
    (lambda completions, **_: None, "verifier failed: it returned NoneType"),
]


@pytest.mark.parametrize(("function", "reason"), FAILING, ids=[reason[:50] for _, reason in FAILING])
def test_where_a_verifier_fails_the_responses_stay_and_rewards_are_null_with_the_reason(
    function: Callable[..., Any], reason: str
) -> None:
    row = problem_rows(1)[0]
    found, good = roller(verifier(function, timeout=0.1))(row), roller()(row)
    assert found["rollouts_error"].startswith(reason)
    for name in ("responses", "response_ids", "rollouts_truncated"):
        assert found[name] == good[name] is not None
    for name in ("rewards", "success_rate", "learnability", "rollouts_outcomes"):
        assert found[name] is None


def test_a_reward_of_none_could_not_be_parsed_and_counts_as_not_right() -> None:
    found = roller(lambda completions, **_: [1.0, None, 0.2, 0.5])(problem_rows(1)[0])
    assert found["rollouts_outcomes"] == [RIGHT, UNPARSED, WRONG, WRONG]
    assert found["rewards"] == [1.0, 0.0, float(np.float32(0.2)), 0.5]
    assert (found["success_rate"], found["learnability"]) == (0.25, 0.1875)
    assert found["rollouts_error"] == ""


class Fewer(Verifier):
    """Gives one result too few, or something that is no verdict."""

    name, version, failure_surface = "fewer", "1", "everything"

    def __init__(self, strange: bool = False) -> None:
        super().__init__({"gold": "answer"}, {"strange": strange})

    def verify(self, completions: Any, rows: Any, completion_ids: Any = None) -> list[Any]:
        found: list[Any] = [Verdict(RIGHT, 1.0)] * (len(completions) - 1)
        return [*found, "right"] if self.options["strange"] else found


def test_a_verifier_of_one_s_own_must_judge_every_response() -> None:
    row = problem_rows(1)[0]
    assert roller(Fewer())(row)["rollouts_error"] == "verifier failed: 3 verdicts among 3 results, expected 4"
    found = roller(Fewer(strange=True))
    assert found(row)["rollouts_error"] == "verifier failed: 3 verdicts among 4 results, expected 4"
    assert found.call().endswith("verifier=Fewer(strange=True))")


def test_a_row_without_a_gold_answer_keeps_its_responses_and_its_neighbours_do_not_move() -> None:
    rows = problem_rows(5)
    wanted = rolled(Dataset.from_list(rows), roller())
    found = rolled(Dataset.from_list([*rows[:2], {**rows[2], "answer": None}, *rows[3:]]), roller())
    assert found[2]["rollouts_error"] == "gold missing: column 'answer' holds None"
    assert (found[2]["response_ids"], found[2]["rewards"]) == (wanted[2]["response_ids"], None)
    assert [found[i] for i in (0, 1, 3, 4)] == [wanted[i] for i in (0, 1, 3, 4)]


def test_prompts_that_cannot_be_sampled_from_are_null_with_a_reason() -> None:
    rows = problem_rows(2)
    rows[1:1] = [{"prompt": "", "answer": "1"}, {"prompt": "1" * CONTEXT, "answer": "1"}]
    found = rolled(Dataset.from_list(rows), roller())
    assert found["rollouts_error"][0] == found["rollouts_error"][3] == ""
    assert found["rollouts_error"][1].startswith("no prompt")
    assert found["rollouts_error"][2] == "too long: 512 prompt tokens and 40 new ones, the context is 512"
    assert all(found[index][name] is None for index in (1, 2) for name in COLUMNS if name != "rollouts_error")


def test_where_no_prompt_leaves_room_the_error_names_the_setting() -> None:
    with pytest.raises(ScoreError, match=r"(?s)none of the 8 rows.*too long.*lower max_new_tokens=1024\."):
        rolled(problems(8), roller(max_new_tokens=1024))


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        *({"n": n} for n in (0, -1, True, 2.0, "4")),
        *({"max_new_tokens": new} for new in (0, 1.5)),
        *({"temperature": hot} for hot in (-0.1, float("nan"), float("inf"), "hot", None)),
        *({"top_p": p} for p in (0, 1.01, float("nan"), "all")),
        *({"seed": seed} for seed in (-1, 1.5, True, None)),
        {"batch_tokens": 0},
    ],
    ids=str,
)
def test_settings_that_cannot_be_sampled_with_are_refused_when_the_object_is_made(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(CurateError, match=rf"^{name}="):
        roller(**options)


def test_an_unknown_verifier_is_an_error_with_the_near_miss() -> None:
    with pytest.raises(CurateError, match=r"no verifier is called 'exat'. Did you mean 'exact'\?"):
        roller("exat")
    with pytest.raises(CurateError, match="is no verifier"):
        roller(3)


def test_a_gold_column_that_is_not_there_is_an_error_that_says_which_are() -> None:
    renamed = problems(3).rename_column("answer", "answr")
    with pytest.raises(ColumnsError, match=r"(?s)answer.*answr"):
        rolled(renamed, roller())
    assert rolled(renamed, roller(answers(gold="answr"))).select_columns(["rewards"]).to_list() == (
        rolled(problems(3), roller()).select_columns(["rewards"]).to_list()
    )


def test_only_the_columns_that_are_needed_are_read() -> None:
    names = ["id", "answer", "image", "prompt"]
    assert roller().reads(names) == ["answer", "prompt"]
    assert roller(raises).reads(names) == names


# -- identity, record, pickles ----------------------------------------------------------------------------------------


def test_the_identity_changes_with_whatever_changes_rollouts_or_rewards_and_with_nothing_else() -> None:
    changed = [
        roller(),
        roller(n=5),
        roller(temperature=0.9),
        roller(top_p=0.9),
        roller(max_new_tokens=41),
        roller(seed=1),
        roller(dtype="float16"),
        roller(prompt="prompt"),
        roller(model_kwargs={"attn_implementation": "eager"}),
        roller("exact"),
        roller("math"),
        roller(answers(numbers=False)),
        roller(answers(gold="solution")),
        roller(raises),
        roller(hangs),
        roller(verifier(raises, version="2")),
        roller(verifier(raises, timeout=1)),
    ]
    identities = [made.identity for made in changed]
    assert len(set(identities)) == len(identities)
    same = [roller(device="cpu"), roller(batch_tokens=9), roller(temperature=1), roller(answers(numbers=True))]
    assert {made.identity for made in same} == {identities[0]}
    assert roller(verifier("math", workers=1)).identity == roller("math").identity


def test_the_identity_changes_with_the_tokens_that_end_a_response(tmp_path: Path) -> None:
    def identity(model: Any, own: Any) -> str:
        return Rollouts(model, "exact", tokenizer=own).identity

    folder = tmp_path / "policy"
    shutil.copytree(MODEL, folder)
    said = json.loads((folder / "generation_config.json").read_text())
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    own = AutoTokenizer.from_pretrained(folder)
    before = identity(folder, None), identity(model, own)
    for ends in (7, [own.eos_token_id, 7]):
        (folder / "generation_config.json").write_text(json.dumps(said | {"eos_token_id": ends}))
        model.generation_config.eos_token_id = ends
        assert identity(folder, None) != before[0]
        assert identity(model, own) != before[1]
    (folder / "generation_config.json").write_text(json.dumps(said))
    assert identity(folder, None) == before[0]
    own.eos_token = "0"
    model.generation_config.eos_token_id = said["eos_token_id"]
    assert identity(model, own) != before[1]


def test_the_record_is_json_and_holds_the_contract_and_the_settings() -> None:
    made = roller(seed=3)
    rolled(problems(2), made)
    record = json.loads(json.dumps(made.record()))
    assert record["verifier"] == made.verifier.record()
    assert record["verifier"]["failure_surface"]
    wanted = {"n": 4, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 40, "seed": 3, "server": None}
    assert {name: record["settings"][name] for name in wanted} == wanted
    assert record["settings"]["columns"] == {"level": "prompt", "prompt": "prompt", "messages": None}
    assert (record["identity"], record["column"]) == (made.identity, "learnability")
    assert record["model"]["digest"]
    assert str(MODEL.parent) not in json.dumps(record)


@pytest.mark.parametrize(
    ("judge", "written"),
    [
        ("exact", "verifier('exact')"),
        (answers(), r"verifier('exact', pattern='(?m)^#(\\d+)$')"),
        (verifier("math", gold="solution", timeout=3), "verifier('math', gold='solution', timeout=3)"),
        (raises, "verifier(raises)"),
        (verifier(hangs, timeout=2.5, chat=True), "verifier(hangs, timeout=2.5, chat=True)"),
        (lambda completions, **_: [], "verifier(function)"),
    ],
    ids=["named", "pattern", "math", "function", "options", "lambda"],
)
def test_the_call_is_python_and_makes_the_same_contract(judge: Any, written: str) -> None:
    made = roller(judge, seed=2)
    assert made.call() == (
        f"Rollouts('./{MODEL.name}', n=4, max_new_tokens=40, seed=2, dtype='float32', verifier={written})"
    )
    tree = ast.parse(made.call(), mode="eval").body
    assert isinstance(tree, ast.Call)
    names = {"verifier": verifier, "raises": raises, "hangs": hangs, "function": judge}
    (contract,) = [keyword.value for keyword in tree.keywords if keyword.arg == "verifier"]
    assert eval(ast.unparse(contract), names).identity == made.verifier.identity
    assert repr(made) == f"<{made.call()}>"


SCRIPT = """
import json, sys
from datasets.fingerprint import Hasher
from problems import answers, problems, rolled, roller

def reward(completions, **columns):
    return [float(len(text)) for text in completions]

before = [Hasher.hash(roller(judge)) for judge in (answers(), reward)]
made = [roller(judge) for judge in (answers(), reward)]
for one in made:
    rolled(problems(2), one)
print(json.dumps([before, [Hasher.hash(one) for one in made], [one.identity for one in made]]))
"""


def test_hashes_are_those_of_every_process_also_after_use(tmp_path: Path) -> None:
    folders = f"{Path(__file__).parent}:{Path(__file__).parents[1]}"
    ways = [{"PYTHONPATH": folders}, {"PYTHONPATH": folders, "PYTHONHASHSEED": "2"}]
    first, second = (run_script(tmp_path, SCRIPT, **way) for way in ways)
    assert first == second
    before, after, identities = first
    assert before == after
    assert len(set(before)) == 2
    assert before[0] == Hasher.hash(roller(device="cpu", batch_tokens=64)) != Hasher.hash(roller(seed=1))
    assert identities[0] == roller().identity


def test_pickles_hold_no_weights_and_make_the_object_again(done: Dataset) -> None:
    made = roller(n=8)
    made.load()
    held = pickle.dumps(made)
    assert len(held) < 20_000
    again = pickle.loads(held)
    assert again.identity == made.identity
    assert again(problem_rows(1)[0])["response_ids"] == done[0]["response_ids"]
    live = Rollouts(made.load().model, answers(), tokenizer=made.reader.tokenizer)
    with pytest.raises(CurateError, match="pickled with a live model"):
        dill.loads(dill.dumps(live))


def test_score_keeps_rollouts_and_their_record_in_a_folder(done: Dataset, tmp_path: Path) -> None:
    made = roller(n=8)
    assert score(problems(10), made, out=tmp_path / "run").to_list() == done.to_list()
    run = load_run(tmp_path / "run")
    assert run.dataset.to_list() == done.to_list()
    assert run.record()["verifier"]["name"] == "exact"
    assert run.identity == made.identity
    assert dict(run.columns) == COLUMNS


def test_a_second_map_takes_the_rollouts_from_the_cache(tmp_path: Path) -> None:
    problems(3).to_json(tmp_path / "problems.jsonl")
    with sampling() as sampled:
        for options in ({}, {"batch_tokens": 500}, {"seed": 1}):
            rolled(Dataset.from_json(str(tmp_path / "problems.jsonl")), roller(**options))  # type: ignore[arg-type]
    assert sampled == [3, 3]


# -- a server ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("httpx2")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with OpenAILoopback() as server:
        yield server


def asked_of(loopback: OpenAILoopback) -> dict[str, dict[str, Any]]:
    """The bodies of the requests for responses since the last call, by their prompt."""
    found = {seen.body["prompt"]: seen.body for seen in loopback.seen if seen.path.endswith("completions")}
    loopback.seen.clear()
    return found


def test_a_server_gives_texts_without_ids_and_is_part_of_the_record(loopback: OpenAILoopback) -> None:
    server = ServerGenerator(loopback.url, "small", completions="text")
    made = roller(lambda completions, **_: [float(text.endswith("|1")) for text in completions], server=server)
    found = rolled(problems(3), made)
    assert "response_ids" not in found.column_names
    for row in found:
        assert [text.partition("|")[0] for text in row["responses"]] == [row["prompt"]] * 4
        assert (row["rewards"], row["success_rate"]) == ([0.0, 1.0, 0.0, 0.0], 0.25)
        assert row["rollouts_truncated"] == 0
    bodies = asked_of(loopback).values()
    assert {(body["n"], body["max_tokens"], body["temperature"], body["top_p"]) for body in bodies} == {(4, 40, 1, 1)}
    assert made.record()["settings"]["server"]["model"] == "small"
    assert made.call().endswith(", verifier=verifier(function), server=server)")
    assert made.identity != roller(made.verifier).identity


def test_seeds_of_a_server_belong_to_prompt_and_seed_and_fit_into_31_bits(loopback: OpenAILoopback) -> None:
    server = ServerGenerator(loopback.url, "small", completions="text")
    found = []
    for seed in (0, 1, 2**70):
        rolled(problems(5), roller(server=server, seed=seed))
        found.append({prompt: body["seed"] for prompt, body in asked_of(loopback).items()})
    assert len({value for asked in found for value in asked.values()}) == 15
    assert all(0 <= value < 2**31 for asked in found for value in asked.values())
    rolled(problems(5).select([3, 1]), roller(server=server))
    again = asked_of(loopback)
    assert len(again) == 2
    assert all(found[0][prompt] == body["seed"] for prompt, body in again.items())


def test_old_token_ids_do_not_stay_beside_a_server_s_responses(loopback: OpenAILoopback) -> None:
    server = ServerGenerator(loopback.url, "small", completions="text")
    old = rolled(problems(2), roller())
    with pytest.raises(ColumnsError, match=r"dataset\.remove_columns\('response_ids'\)"):
        rolled(old, roller(server=server))
    fresh = rolled(old.remove_columns("response_ids"), roller(server=server))
    assert all("|" in text for texts in fresh["responses"] for text in texts)


def tells(loopback: OpenAILoopback, **changes: Any) -> ServerGenerator:
    """A server whose response k is a line of arithmetic and "#k", with the demo tokenizer's ids and the end token."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)

    def choice(plain: dict[str, Any]) -> dict[str, Any]:
        said = f"1+1=2\n#{plain['index']}"
        told = {"text": said, "token_ids": [*tokenizer(said)["input_ids"], tokenizer.eos_token_id]}
        return {**plain, **told, **{name: change(told) for name, change in changes.items()}}

    loopback.choice = choice
    return ServerGenerator(loopback.url, "small", completions="text", token_ids=True)


def test_token_ids_of_a_server_are_a_column_that_scorers_and_reward_functions_read(
    loopback: OpenAILoopback, eos: int
) -> None:
    seen: list[Any] = []

    def judge(completions: list[str], completion_ids: Any, **_: Any) -> list[float]:
        seen.append(completion_ids)
        return [float(text.endswith("1")) for text in completions]

    made = roller(judge, server=tells(loopback), n=2)
    data = problems(3)
    found = rolled(data, made)
    assert dict(found.features) == {"prompt": Value("string"), "answer": Value("string"), **COLUMNS}
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for row in found:
        assert row["responses"] == ["1+1=2\n#0", "1+1=2\n#1"]
        assert row["response_ids"] == [[*tokenizer(text)["input_ids"], eos] for text in row["responses"]]
    assert seen == found["response_ids"][:]
    group = GroupReader(made.source, dict.fromkeys(("prompt", "messages", "responses", "response_ids", "rewards")))
    read = group.read(found[0])
    assert [one.input_ids[one.start :] for one in read.rollouts] == found[0]["response_ids"]
    old = rolled(data, roller())
    assert rolled(old, made)["response_ids"][:] == found["response_ids"][:], "old ids are replaced"
    texts_alone = ServerGenerator(loopback.url, "small", completions="text")
    assert made.identity != roller(made.verifier, server=texts_alone, n=2).identity


STRANGE: list[tuple[dict[str, Callable[..., Any]], str]] = [
    ({"token_ids": lambda told: [3, 20]}, "unknown token id: response 1 holds id 20, the tokenizer knows 0 to 19"),
    ({"token_ids": lambda told: [-1]}, "unknown token id: response 1 holds id -1"),
    (
        {"token_ids": lambda told: told["token_ids"][1:]},
        "token ids and text differ: response 1 is '1+1=2\\n#0', its ids say '+1=2\\n#0'",
    ),
    ({"text": lambda told: "2+2=4"}, "token ids and text differ: response 1 is '2+2=4', its ids say '1+1=2"),
    ({"token_ids": lambda told: None}, "no token ids: a choice of 2 came without its `token_ids`"),
    ({"prompt_token_ids": lambda told: [1, 2, 3]}, "prompts differ: the server read 3 tokens, here there are "),
]


@pytest.mark.parametrize(("changes", "reason"), STRANGE, ids=[reason[:40] for _, reason in STRANGE])
def test_token_ids_that_cannot_be_those_of_the_text_are_a_null_with_the_reason(
    loopback: OpenAILoopback, changes: dict[str, Any], reason: str
) -> None:
    found = roller(server=tells(loopback, **changes), n=2)(problem_rows(1)[0])
    assert found["rollouts_error"].startswith(reason)
    assert all(found[name] is None for name in COLUMNS if name != "rollouts_error")


@pytest.mark.parametrize(
    "change",
    [
        lambda told: f" {told['text']}\n",
        lambda told: f"{told['text']}<eos>",
        lambda told: f"{told['text']}\N{REPLACEMENT CHARACTER}",
    ],
    ids=["white space", "special tokens", "half a character"],
)
def test_a_text_may_differ_from_its_ids_by_what_servers_do_to_texts(loopback: OpenAILoopback, change: Any) -> None:
    row = problem_rows(1)[0]
    prompt = AutoTokenizer.from_pretrained(MODEL)(row["prompt"])["input_ids"]
    server = tells(loopback, text=change, prompt_token_ids=lambda told: prompt)
    found = roller(server=server, n=2)(row)
    assert found["rollouts_error"] == ""
    assert found["responses"][0] == change({"text": "1+1=2\n#0"})


def test_a_server_that_refuses_one_prompt_costs_that_row_alone(loopback: OpenAILoopback) -> None:
    from openai_loopback import Fault

    rows = problem_rows(3)
    loopback.faults[rows[1]["prompt"]] = [Fault(400, b'{"error": {"message": "too long"}}')]
    found = rolled(Dataset.from_list(rows), roller(server=ServerGenerator(loopback.url, "small", completions="text")))
    assert found["rollouts_error"][:] == ["", "server refused: status 400: too long", ""]
    assert found["responses"][1] is None


FAULTS: dict[str, dict[str, Any]] = {
    "server failed: status 429": {"status": 429},
    "server failed: status 500: boom": {"status": 500, "body": b"boom"},
    "server failed: its answer is no JSON: '<html>'": {"body": b"<html>"},
    "server failed: its answer holds no choices: {}": {},
    "server failed: RemoteProtocolError": {"body": b'{"choices": [', "cut": True},
}


@pytest.mark.parametrize("reason", FAULTS)
def test_a_server_that_fails_one_prompt_for_good_costs_that_row_alone(loopback: OpenAILoopback, reason: str) -> None:
    from openai_loopback import Fault

    rows = problem_rows(3)
    loopback.faults[rows[1]["prompt"]] = [Fault(**FAULTS[reason])]
    server = ServerGenerator(loopback.url, "small", completions="text", retries=0)
    found = rolled(Dataset.from_list(rows), roller(server=server))
    assert [error == "" for error in found["rollouts_error"]] == [True, False, True]
    assert found["rollouts_error"][1].startswith(reason)
    assert found["rollouts_error"][1].endswith("(1 try)")
    assert [row["rewards"] is None for row in found] == [False, True, False]


def test_a_server_that_refuses_the_key_ends_the_run_with_what_to_set(loopback: OpenAILoopback) -> None:
    from openai_loopback import Fault

    loopback.faults["*"] = [Fault(401)] * 3
    with pytest.raises(CurateError, match=r"refuses a request without a key \(status 401\)\. Set OPENAI_API_KEY"):
        rolled(problems(3), roller(server=ServerGenerator(loopback.url, "small", completions="text")))


def test_a_server_that_gives_fewer_choices_than_asked_still_fills_every_row(loopback: OpenAILoopback) -> None:
    loopback.most_choices = 3
    found = rolled(problems(3), roller(server=ServerGenerator(loopback.url, "small", completions="text")))
    assert [len(set(row["responses"])) for row in found] == [4, 4, 4]
    assert {len(row["rewards"]) for row in found} == {4}


# -- real problems ----------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@needs_gsm8k
def test_problems_of_gsm8k_are_sampled_and_judged(tmp_path: Path) -> None:
    tokenizer = byte_level()
    folder = saved(tmp_path / "policy", tiny(vocabulary=len(tokenizer)), tokenizer)
    data = Dataset.from_list(gsm8k_rows("test")[:8])
    found = rolled(data, Rollouts(folder, "exact", 2, max_new_tokens=8))
    assert set(found["rollouts_error"]) == {""}
    assert {outcome for row in found["rollouts_outcomes"] for outcome in row} <= {RIGHT, WRONG, UNPARSED}
    assert found["rollouts_truncated"][:] == [sum(i[-1] != 2 for i in ids) for ids in found["response_ids"]]


@pytest.mark.realdata
@needs_gsm8k
def test_every_gold_answer_of_gsm8k_is_right_by_exact() -> None:
    rows = gsm8k_rows("test")
    assert len(rows) == 1319
    found = verifier("exact").verify([row["answer"] for row in rows], rows)
    assert {verdict.outcome for verdict in found if isinstance(verdict, Verdict)} == {RIGHT}
    assert len(found) == sum(isinstance(verdict, Verdict) for verdict in found) == 1319
    moved = [*rows[1:], rows[0]]
    others = verifier("exact").verify([row["answer"] for row in moved], rows)
    assert sum(v.outcome == RIGHT for v in others if isinstance(v, Verdict)) < 60  # neighbours with equal answers


@pytest.mark.realdata
@needs_gsm8k
def test_gold_answers_of_gsm8k_are_right_by_math() -> None:
    rows = gsm8k_rows("test")[:200]
    contract = verifier("math")
    found = contract.verify([row["answer"] for row in rows], rows)
    assert [verdict for verdict in found if not (isinstance(verdict, Verdict) and verdict.outcome == RIGHT)] == []
