"""Responses from a real server, `transformers serve`, that serves the demo model on loopback."""

from __future__ import annotations

import re
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import warm
from transformers.utils.import_utils import is_serve_available

from hf_curate.demo import MODEL, load_traces
from hf_curate.errors import RowError
from hf_curate.rollouts import wire
from hf_curate.rollouts.server import ServerGenerator

pytest.importorskip("httpx2")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not is_serve_available(), reason="needs a server: pip install 'transformers[serving]'"),
]
STARTS_WITHIN = 90
STEP = re.compile(r"\d+[+*-]\d+=\d+\n")
TRACE = re.compile(r"(\d+[+*-]\d+=\d+\n)+#\d+")


class Serve:
    """One `transformers serve` process."""

    def __init__(self, port: int, log: Path) -> None:
        self.url, self.log = f"http://127.0.0.1:{port}/v1", log
        self._out = log.open("w")
        code = "from transformers.cli.transformers import main; main()"
        where = ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
        command = [sys.executable, "-c", code, "serve", str(MODEL), *where]
        self._process = warm.Popen(command, stdout=self._out, stderr=warm.STDOUT)

    def wait(self) -> Serve:
        """Until it answers."""
        until(self._answers, STARTS_WITHIN, f"{self.log.read_text()[-2000:]}\nthe server did not start")
        return self

    def answered(self) -> int:
        """Completions that it has given."""
        return len(re.findall(r"POST /v1/completions \S+ 200", self.log.read_text()))

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._out.close()

    def _answers(self) -> bool:
        assert self._process.poll() is None, self.log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(self.url.removesuffix("/v1") + "/health", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False


def until(done: Callable[[], bool], seconds: float, otherwise: str) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


@pytest.fixture(scope="module")
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def serve(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    server = Serve(port, tmp_path_factory.mktemp("serve") / "log").wait()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def no_key_and_short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(wire, "LONGEST_PAUSE", 1.0)


SAMPLES = {"generation_config": '{"do_sample": true, "top_k": 0}'}


def generator(serve: Serve, extra: dict[str, str] | None = SAMPLES, **options: Any) -> ServerGenerator:
    return ServerGenerator(serve.url, str(MODEL), completions="text", extra=extra, **options)


def sampled(server: ServerGenerator, rows: int, n: int, **options: Any) -> list[Any]:
    settings = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 60, "seeds": list(range(rows))}
    return server.generate(load_traces()["prompt"][:rows], n, **{**settings, **options})


def test_its_responses_are_arithmetic_traces_and_differ_by_seed(serve: Serve) -> None:
    found = sampled(generator(serve, concurrency=2), rows=6, n=3, seeds=[1, 2, 3, 4, 5, 6])
    texts = [one.text for own in found for one in own]
    assert len(texts) == 18
    assert sum(TRACE.fullmatch(text) is not None for text in texts) >= 12
    assert any(len({one.text for one in own}) > 1 for own in found)
    assert all(one.finished for own in found for one in own if TRACE.fullmatch(one.text))


def test_it_ignores_the_temperature_where_the_models_config_does_not_sample_and_that_is_said(serve: Serve) -> None:
    with pytest.warns(UserWarning, match="all 2 responses to each of 8 prompts are equal"):
        found = sampled(generator(serve, extra=None), rows=8, n=2)
    assert found == sampled(generator(serve), rows=8, n=2, temperature=0)


def test_a_response_cut_at_max_tokens_is_not_finished(serve: Serve) -> None:
    ((one,),) = sampled(generator(serve), rows=1, n=1, max_tokens=8)
    assert not one.finished
    assert STEP.match(one.text + "\n")


def test_the_most_likely_response_does_not_depend_on_the_seed(serve: Serve) -> None:
    (first,) = sampled(generator(serve), rows=1, n=2, temperature=0)
    (second,) = sampled(generator(serve), rows=1, n=2, temperature=0, seeds=[99])
    assert first == second
    assert first[0] == first[1]


def test_a_model_that_it_does_not_serve_is_refused_in_its_own_words(serve: Serve) -> None:
    (found,) = sampled(ServerGenerator(serve.url, "another", completions="text"), rows=1, n=1)
    assert isinstance(found, RowError)
    assert found.kind == "server refused"
    assert "requested 'another'" in found.detail


def test_its_record_names_no_folder_of_this_machine(serve: Serve) -> None:
    record = generator(serve).record()
    assert record["model"] == MODEL.name
    assert record["base_url"] == "http://loopback/v1"
    assert str(MODEL.parent) not in str(record)


def test_it_dies_half_way_and_comes_back_and_every_row_is_complete(serve: Serve, port: int, tmp_path: Path) -> None:
    rows, before = 16, serve.answered()
    found: list[Any] = []
    server = generator(serve, concurrency=2, retries=200)
    caller = threading.Thread(target=lambda: found.extend(sampled(server, rows, n=3)))
    caller.start()
    until(lambda: serve.answered() - before >= 5, 60, "no answers")
    serve.kill()
    got = serve.answered() - before
    second = Serve(port, tmp_path / "log")
    try:
        caller.join(STARTS_WITHIN)
        assert not caller.is_alive()
        assert 5 <= got < 3 * rows
        assert got + second.answered() >= 3 * rows
        assert [len(own) for own in found] == [3] * rows
        assert all(one.text for own in found for one in own)
    finally:
        second.kill()
