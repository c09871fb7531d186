"""Responses from an OpenAI-compatible server, under the faults that servers have."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import pickle
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from openai_loopback import Fault, OpenAILoopback

from hf_curate.errors import CurateError, MissingPackageError, RowError
from hf_curate.rollouts import wire
from hf_curate.rollouts.completions import _read
from hf_curate.rollouts.server import Sampled, ServerGenerator

pytest.importorskip("httpx2")
KEY = "sk-loopback-0123456789abcdef"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(wire, "FIRST_PAUSE", 0.01)


@pytest.fixture
def loopback() -> Iterator[OpenAILoopback]:
    with OpenAILoopback() as server:
        yield server


def at(loopback: OpenAILoopback, **options: Any) -> ServerGenerator:
    return ServerGenerator(loopback.url, "small", **{"completions": "text", **options})


def generate(server: ServerGenerator, prompts: list[Any], n: int = 2, **options: Any) -> list[Any]:
    settings = {"temperature": 1.0, "top_p": 0.9, "max_tokens": 50, "seeds": list(range(7, 7 + len(prompts)))}
    return server.generate(prompts, n, **{**settings, **options})


def texts(found: list[Sampled]) -> list[str]:
    return [one.text for one in found]


def error_of(work: Any) -> str:
    with pytest.raises(CurateError) as caught:
        work()
    return str(caught.value)


# -- what is asked and read -------------------------------------------------------------------------------------------


def test_choices_come_by_their_index_from_one_request(loopback: OpenAILoopback) -> None:
    found = generate(at(loopback), ["a"], n=3)
    assert found == [[Sampled(f"a|7|{k}", True, None) for k in range(3)]]
    (seen,) = loopback.seen
    assert seen.path == "/v1/completions"
    asked = {"model": "small", "prompt": "a", "n": 3, "temperature": 1.0, "top_p": 0.9, "max_tokens": 50, "seed": 7}
    assert seen.body == asked
    assert "Authorization" not in seen.headers


def test_messages_go_to_the_chat_endpoint(loopback: OpenAILoopback) -> None:
    chat = [{"role": "system", "content": "short"}, {"role": "user", "content": "a"}]
    found = generate(at(loopback, completions="chat"), [chat], n=1)
    assert texts(found[0]) == ["a|7|0"]
    assert loopback.seen[0].path == "/v1/chat/completions"
    assert loopback.seen[0].body["messages"] == chat
    assert "n" not in loopback.seen[0].body


def test_a_prompt_of_the_other_kind_is_refused_before_anything_is_asked(loopback: OpenAILoopback) -> None:
    assert "completions='text' continues" in error_of(lambda: generate(at(loopback, completions="chat"), ["a"]))
    chat = [{"role": "user", "content": "a"}]
    assert "completions='chat' for messages" in error_of(lambda: generate(at(loopback), ["a", chat]))
    assert loopback.seen == []


def test_the_order_of_results_is_that_of_the_prompts(loopback: OpenAILoopback) -> None:
    loopback.delay = lambda prompt: 0.3 if prompt == "0" else 0.0
    prompts = [str(i) for i in range(6)]
    found = generate(at(loopback), prompts, n=1)
    assert [texts(own) for own in found] == [[f"{i}|{7 + i}|0"] for i in range(6)]


def test_no_more_requests_than_allowed_are_under_way_and_as_many_are(loopback: OpenAILoopback) -> None:
    loopback.delay = lambda prompt: 0.1
    loopback.most_choices = 1
    found = generate(at(loopback, concurrency=3), [str(i) for i in range(4)], n=4)
    assert all(len(own) == 4 for own in found)
    assert loopback.most_at_once == 3


def test_a_request_that_waits_for_its_retry_keeps_its_place(loopback: OpenAILoopback) -> None:
    loopback.faults = {"a": [Fault(503), Fault(503)]}
    generate(at(loopback, concurrency=1), ["a", "b"], n=1)
    assert [seen.prompt for seen in loopback.seen] == ["a", "a", "a", "b"]


def test_an_interrupt_ends_what_is_under_way(loopback: OpenAILoopback) -> None:
    loopback.delay = lambda prompt: 5.0
    main = threading.main_thread()
    if threading.current_thread() is not main:
        pytest.skip("signals reach the main thread alone")
    begun = time.monotonic()
    threading.Timer(0.5, signal.pthread_kill, (main.ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        generate(at(loopback), ["a", "b"])
    assert time.monotonic() - begun < 4
    assert not [thread for thread in threading.enumerate() if thread.name == "hf_curate server"]


def test_a_response_that_was_cut_off_is_not_finished(loopback: OpenAILoopback) -> None:
    loopback.choice = lambda choice: {**choice, "finish_reason": "length"}
    assert [one.finished for one in generate(at(loopback), ["a"])[0]] == [False, False]


@pytest.mark.parametrize("completions", ["text", "chat"])
def test_token_ids_are_asked_for_and_kept_where_that_is_said(loopback: OpenAILoopback, completions: str) -> None:
    loopback.choice = lambda choice: {**choice, "token_ids": [3, 1, 4], "prompt_token_ids": [choice["index"]]}
    server = at(loopback, completions=completions, token_ids=True)
    prompt: Any = "a" if completions == "text" else [{"role": "user", "content": "a"}]
    found = generate(server, [prompt], n=2)
    assert [(one.token_ids, one.prompt_ids) for one in found[0]] == [([3, 1, 4], [0]), ([3, 1, 4], [1])]
    assert loopback.seen[0].body["return_token_ids"] is True
    generate(at(loopback), ["a"])
    assert "return_token_ids" not in loopback.seen[-1].body
    assert repr(server).endswith(", token_ids=True)")
    assert pickle.loads(pickle.dumps(server)).token_ids
    assert (server.record()["token_ids"], at(loopback).record()["token_ids"]) == (True, False)


def test_a_choice_that_repeats_no_prompt_ids_has_those_of_its_answer() -> None:
    choice = {"message": {"content": "a"}, "token_ids": [3], "prompt_token_ids": None}
    [found] = _read({"choices": [choice], "prompt_token_ids": [7, 8]}, "chat")
    assert (found.token_ids, found.prompt_ids) == ([3], [7, 8])


@pytest.mark.parametrize("told", [None, [], "314", [3, "1"], [3.0], [True]])
def test_a_response_without_the_token_ids_that_were_asked_for_costs_its_prompt(
    loopback: OpenAILoopback, told: Any
) -> None:
    loopback.choice = lambda choice: {**choice, "token_ids": told if choice["index"] == 1 else [3]}
    [lacks, *_] = generate(at(loopback, token_ids=True), ["a"], n=2)
    assert isinstance(lacks, RowError)
    assert str(lacks).startswith("no token ids: a choice of 2 came without its `token_ids`. vLLM and SGLang tell them")
    assert len(loopback.seen) == 1, "asking again would not help"
    [whole] = generate(at(loopback, token_ids=True), ["a"], n=1)
    assert whole[0].token_ids == [3]


def test_temperature_0_asks_once_and_gives_n(loopback: OpenAILoopback) -> None:
    found = generate(at(loopback), ["a"], n=4, temperature=0)
    assert texts(found[0]) == ["a|7|0"] * 4
    assert len(loopback.seen) == 1
    assert "n" not in loopback.seen[0].body


def test_equal_responses_in_spite_of_a_temperature_are_warned_of_once(loopback: OpenAILoopback) -> None:
    server, prompts = at(loopback), [str(i) for i in range(8)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(server, prompts)
        loopback.choice = lambda choice: {**choice, "text": "4"}
        generate(server, prompts, n=1)
        generate(server, prompts[:7])
        generate(server, prompts, temperature=0)
    with pytest.warns(UserWarning, match="all 2 responses to each of 8 prompts are equal"):
        generate(server, prompts)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(server, prompts)


def test_halves_of_characters_neither_stop_a_prompt_nor_stay_in_a_response(loopback: OpenAILoopback) -> None:
    (found,) = generate(at(loopback), ["a\ud83d"], n=1)
    assert texts(found) == ["a?|7|0"]


def test_a_response_without_its_reasoning_is_no_response(loopback: OpenAILoopback) -> None:
    def split(choice: dict[str, Any]) -> dict[str, Any]:
        return {**choice, "message": {"content": "4", "reasoning_content": "2 + 2 is 4"}}

    loopback.choice = split
    (found,) = generate(at(loopback, completions="chat"), [[{"role": "user", "content": "a"}]])
    assert isinstance(found, RowError)
    assert found.kind == "server took out the reasoning"
    assert "10 characters" in found.detail


def test_it_works_inside_a_running_event_loop_and_in_threads(loopback: OpenAILoopback) -> None:
    async def inside() -> list[Any]:
        return generate(at(loopback), ["a"])

    assert texts(asyncio.run(inside())[0]) == ["a|7|0", "a|7|1"]
    before = threading.active_count()
    assert generate(at(loopback), []) == []
    assert threading.active_count() <= before


# -- fewer choices ----------------------------------------------------------------------------------------------------


def test_fewer_choices_than_asked_are_completed_with_other_seeds(loopback: OpenAILoopback) -> None:
    loopback.most_choices = 2
    (found,) = generate(at(loopback), ["a"], n=5)
    assert [seen.body.get("n", 1) for seen in loopback.seen] == [5, 3, 1]
    assert len(set(texts(found))) == 5
    assert len({seen.body["seed"] for seen in loopback.seen}) == 3
    assert loopback.seen[0].body["seed"] == 7


def test_a_server_of_one_choice_is_asked_one_by_one_and_the_seeds_stay_the_same(loopback: OpenAILoopback) -> None:
    loopback.most_choices = 1
    (alone,) = generate(at(loopback), ["a"], n=6)
    assert len(set(texts(alone))) == 6
    assert sorted(seen.body.get("n", 1) for seen in loopback.seen) == [1, 1, 1, 1, 5, 6]
    others = generate(at(loopback, concurrency=1), ["b", "a", "c"], n=6, seeds=[1, 7, 2])
    assert texts(others[1]) == texts(alone)


# -- faults -----------------------------------------------------------------------------------------------------------

ONCE = {
    "status 500": Fault(500, b"boom"),
    "status 503": Fault(503),
    "status 429": Fault(429),
    "status 408": Fault(408),
    "no JSON": Fault(body=b"<html>busy</html>"),
    "JSON of something else": Fault(body=b'{"error": "overloaded"}'),
    "no choices": Fault(body=b'{"choices": []}'),
    "a choice without text": Fault(body=b'{"choices": [{"index": 0, "text": null}]}'),
    "nested beyond reading": Fault(body=b"[" * 100_000),
    "not the encoding that it says": Fault(body=b"plain", headers={"Content-Encoding": "gzip"}),
    "a cut connection": Fault(body=b'{"choices": [', cut=True),
}


@pytest.mark.parametrize("fault", ONCE)
def test_what_may_pass_is_asked_again(loopback: OpenAILoopback, fault: str) -> None:
    loopback.faults = {"b": [ONCE[fault]]}
    found = generate(at(loopback), ["a", "b"])
    assert [texts(own) for own in found] == [["a|7|0", "a|7|1"], ["b|8|0", "b|8|1"]]
    assert len(loopback.asked("b")) == 2


@pytest.mark.parametrize("fault", ONCE)
def test_what_does_not_pass_fails_its_row_after_all_retries(loopback: OpenAILoopback, fault: str) -> None:
    loopback.faults = {"b": [ONCE[fault]] * 3}
    good, bad = generate(at(loopback, retries=2), ["a", "b"])
    assert texts(good) == ["a|7|0", "a|7|1"]
    assert isinstance(bad, RowError)
    assert bad.kind == "server failed"
    assert bad.detail.endswith("(3 tries)")
    assert len(loopback.asked("b")) == 3


def test_retry_after_is_kept_to(loopback: OpenAILoopback) -> None:
    loopback.faults = {"a": [Fault(429, headers={"Retry-After": "1"})]}
    begun = time.monotonic()
    assert texts(generate(at(loopback), ["a"], n=1)[0]) == ["a|7|0"]
    assert 1.0 <= time.monotonic() - begun < 10


def test_retry_after_may_be_a_date_and_is_capped() -> None:
    read = wire._retry_after
    assert read("2.5") == 2.5
    assert read("86400") == read("inf") == 60.0
    assert 20 < read(email.utils.formatdate(time.time() + 30, usegmt=True)) <= 30
    assert read("-5") == read("nan") == read("soon") == read("") == 0.0
    assert read(email.utils.formatdate(0, usegmt=True)) == 0.0


def test_pauses_double_to_a_limit_and_leave_the_callers_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "FIRST_PAUSE", 0.5)
    random.seed(3)
    before = random.getstate()
    for attempt, longest in ((1, 0.5), (2, 1.0), (5, 8.0), (7, 30.0), (5000, 30.0)):
        pauses = [wire._pause(attempt, 0.0) for _ in range(20)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert random.getstate() == before


def test_a_slow_answer_is_given_up_and_asked_for_again(loopback: OpenAILoopback) -> None:
    waits = iter([1.5, 0.0])
    loopback.delay = lambda prompt: next(waits)
    begun = time.monotonic()
    assert texts(generate(at(loopback, timeout=0.4), ["a"], n=1)[0]) == ["a|7|0"]
    assert time.monotonic() - begun < 1.4


def test_a_row_that_takes_too_long_each_time_says_so(loopback: OpenAILoopback) -> None:
    loopback.delay = lambda prompt: 0.8 if prompt == "b" else 0.0
    good, bad = generate(at(loopback, timeout=0.3, retries=1), ["a", "b"], n=1)
    assert texts(good) == ["a|7|0"]
    assert str(bad) == "server failed: no answer within 0.3 s (2 tries)"


def test_a_server_that_dies_half_way_and_comes_back_costs_no_row(loopback: OpenAILoopback) -> None:
    loopback.delay = lambda prompt: 0.05
    prompts = [str(i) for i in range(20)]
    found: list[Any] = []
    server = at(loopback, concurrency=2, retries=12)
    caller = threading.Thread(target=lambda: found.extend(generate(server, prompts, n=1)))
    caller.start()
    while len(loopback.seen) < 6:
        time.sleep(0.01)
    loopback.stop()
    served = len(loopback.seen)
    time.sleep(0.3)
    assert caller.is_alive()
    assert len(loopback.seen) == served < 20
    loopback.start()
    caller.join(30)
    assert [texts(own) for own in found] == [[f"{i}|{7 + i}|0"] for i in range(20)]


def test_no_server_at_all_ends_the_run() -> None:
    with OpenAILoopback() as gone:
        pass
    told = error_of(lambda: generate(at(gone, retries=1), ["a", "b"]))
    assert f"curl {gone.url}/models" in told
    assert "ConnectError" in told
    assert f"curl {gone.url}/models" in error_of(at(gone, retries=1).record)


def test_a_row_that_is_refused_costs_no_other(loopback: OpenAILoopback) -> None:
    said = json.dumps({"error": {"message": "the context is 512 tokens"}}).encode()
    loopback.faults = {"b": [Fault(400, said)], "c": [Fault(422, b'{"detail": "max_tokens"}')]}
    good, long, other = generate(at(loopback), ["a", "b", "c"])
    assert texts(good) == ["a|7|0", "a|7|1"]
    assert str(long) == "server refused: status 400: the context is 512 tokens"
    assert str(other) == "server refused: status 422: max_tokens"
    assert len(loopback.asked("b")) == 1


@pytest.mark.parametrize(
    ("status", "words"),
    [(401, "refuses a request without a key"), (403, "Set OPENAI_API_KEY"), (404, "/completions for model 'small'")],
)
def test_what_no_row_can_mend_ends_the_run_at_once(loopback: OpenAILoopback, status: int, words: str) -> None:
    loopback.faults = {"*": [Fault(status, b'{"error": {"message": "no"}}') for _ in range(100)]}
    assert words in error_of(lambda: generate(at(loopback, concurrency=2), [str(i) for i in range(100)]))
    assert len(loopback.seen) < 10


def test_a_server_that_wants_a_key_where_none_is_named_says_how_to_name_one(loopback: OpenAILoopback) -> None:
    loopback.faults = {"a": [Fault(401)]}
    told = error_of(lambda: generate(at(loopback, api_key_env=None), ["a"]))
    assert told == (
        f"{loopback.url} refuses a request without a key (status 401). Name the variable that holds one: "
        "api_key_env=NAME."
    )


# -- the key ----------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_and_stays_out_of_everything_else(
    loopback: OpenAILoopback, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", f" {KEY}\n")
    server = at(loopback, retries=1)
    echo = json.dumps({"error": {"message": f"bad request with {KEY}"}}).encode()
    loopback.faults = {
        "b": [Fault(400, echo)],
        "c": [Fault(500, KEY.encode())] * 2,
        "d": [Fault(body=b'"' + KEY.encode())] * 2,
    }
    found = generate(server, ["a", "b", "c", "d"])
    loopback.faults = {"*": [Fault(401, echo)]}
    refused = error_of(lambda: generate(server, ["a"]))
    assert {seen.headers["Authorization"] for seen in loopback.seen} == {f"Bearer {KEY}"}
    assert [str(own) for own in found[1:3]] == [
        "server refused: status 400: bad request with [key]",
        "server failed: status 500: [key] (2 tries)",
    ]
    assert "the key in OPENAI_API_KEY" in refused
    shown = [refused, *map(str, found), json.dumps(server.record()), repr(server), caplog.text]
    shown += [repr(pickle.dumps(server)), repr(vars(server))]
    assert not [text for text in shown if KEY in text]
    assert "[key]" in str(found[3])


def test_no_redirect_is_followed_and_no_key_goes_to_another_origin(
    loopback: OpenAILoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with OpenAILoopback() as other:
        away = {"Location": f"http://user:secret@127.0.0.1:{other.port}/v1/completions?token=1"}
        for status in (301, 302, 307, 308):
            loopback.faults = {"a": [Fault(status, headers=away)]}
            told = error_of(lambda: generate(at(loopback), ["a"]))
            assert f"redirects to http://127.0.0.1:{other.port} (status {status})" in told
            assert "secret" not in told
        loopback.models = Fault(307, headers=away)
        error_of(at(loopback).record)
        assert other.seen == []


def test_a_proxy_of_the_environment_gets_nothing_that_is_for_this_machine(
    loopback: OpenAILoopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with OpenAILoopback() as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert texts(generate(at(loopback), ["a"], n=1)[0]) == ["a|7|0"]
        assert proxy.seen == []


def test_a_key_does_not_travel_unencrypted_to_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    ServerGenerator("http://gpu-7:8000/v1", "m")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    told = error_of(lambda: ServerGenerator("http://gpu-7:8000/v1", "m"))
    assert "api_key_env=None" in told
    assert KEY not in told
    assert ServerGenerator("http://gpu-7:8000/v1", "m", api_key_env=None).key() is None
    for url in ("https://gpu-7/v1", "http://localhost:8000/v1", "http://[::1]:8000/v1", "http://127.0.0.2/v1"):
        assert ServerGenerator(url, "m").key() == KEY
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\nX-Other: 2")
    assert "sk-1" not in error_of(lambda: ServerGenerator("https://gpu-7/v1", "m"))


# -- records and settings ---------------------------------------------------------------------------------------------


def test_the_record_is_the_same_whatever_the_port_and_the_time(loopback: OpenAILoopback) -> None:
    entry = {"id": "/home/me/small", "owned_by": "vllm", "root": "/home/me/small", "created": 1, "max_model_len": 512}
    listing = {"data": [{"id": "other", "owned_by": "x"}, entry]}
    loopback.models = Fault(body=json.dumps(listing).encode())
    server = ServerGenerator(loopback.url + "/", "/home/me/small", completions="text", extra={"top_k": 0})
    record = server.record()
    assert record == {
        "base_url": "http://loopback/v1",
        "model": "small",
        "protocol": "OpenAI /completions",
        "token_ids": False,
        "extra": {"top_k": 0},
        "says": {"id": "small", "owned_by": "vllm", "root": "small", "max_model_len": 512},
    }
    with OpenAILoopback() as other:
        entry["created"] = 2
        other.models = Fault(body=json.dumps(listing).encode())
        assert ServerGenerator(other.url, "/home/me/small", completions="text", extra={"top_k": 0}).record() == record
    loopback.models = Fault(503)
    assert server.record() == record


@pytest.mark.parametrize("answer", [Fault(404), Fault(500), Fault(body=b"[]"), Fault(body=b'{"data": [1]}')])
def test_a_server_may_say_nothing_of_itself(loopback: OpenAILoopback, answer: Fault) -> None:
    loopback.models = answer
    assert at(loopback).record()["says"] is None
    assert len(loopback.seen) == 1


def test_a_record_waits_for_a_server_that_is_busy_and_does_not_guess(loopback: OpenAILoopback) -> None:
    loopback.models = Fault(503, b"loading")
    assert "status 503: loading (2 tries)" in error_of(at(loopback, retries=1).record)


def test_a_pickle_holds_the_arguments_and_works_elsewhere(loopback: OpenAILoopback) -> None:
    server = at(loopback, concurrency=2, timeout=9.0)
    before = pickle.dumps(server)
    generate(server, ["a"])
    server.record()
    assert pickle.dumps(server) == before
    assert texts(generate(pickle.loads(before), ["b"], n=1)[0]) == ["b|7|0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("localhost:8000/v1", "m"), "is no address"),
        (("ftp://localhost/v1", "m"), "is no address"),
        (("http://localhost:99999/v1", "m"), "is no address"),
        (("http://[::1/v1", "m"), "is no address"),
        (("http://local host/v1", "m"), "is no address"),
        ((None, "m"), "base_url is a NoneType"),
        (("http://localhost/v1/chat/completions", "m"), "up to and with /v1"),
        (("http://localhost/v1", ""), "model=''"),
    ],
)
def test_addresses_and_names_that_cannot_be_used(arguments: Any, words: str) -> None:
    assert words in error_of(lambda: ServerGenerator(*arguments))


@pytest.mark.parametrize("url", ["https://me:hunter2@host/v1", "https://host/v1?key=hunter2", "http://host/#hunter2"])
def test_secrets_in_addresses_are_refused_without_repeating_them(url: str) -> None:
    told = error_of(lambda: ServerGenerator(url, "m"))
    assert "api_key_env" in told
    assert "hunter2" not in told


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"concurrency": 0}, "concurrency=0"),
        ({"retries": -1}, "retries=-1"),
        ({"timeout": 0}, "timeout=0"),
        ({"completions": "Chat"}, "neither 'chat' nor 'text'"),
        ({"extra": {"seed": 1}}, "'seed'"),
        ({"extra": {"x": {1, 2}}}, "cannot be sent"),
        ({"extra": {"return_token_ids": True}}, "whose answers would be dropped: token_ids=True keeps them"),
        ({"token_ids": 1}, "token_ids=1 is neither True nor False"),
    ],
)
def test_options_that_cannot_be_used(options: Any, words: str) -> None:
    assert words in error_of(lambda: ServerGenerator("http://localhost/v1", "m", **options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 0}, "n=0"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0}, "top_p=0"),
        ({"seeds": [1, 2]}, "2 seeds for 1 prompts"),
    ],
)
def test_numbers_that_nothing_can_be_sampled_with(loopback: OpenAILoopback, options: Any, words: str) -> None:
    assert words in error_of(lambda: generate(at(loopback), ["a"], **options))
    assert loopback.seen == []


def test_a_missing_package_is_named(loopback: OpenAILoopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingPackageError, match=r"hf_curate\[server\]"):
        generate(at(loopback), ["a"])
