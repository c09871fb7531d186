"""Requests to one server over HTTP: a bounded number at a time, each made again while that may help.

The key goes to the given address alone: no redirect is followed, no proxy stands between two programs of one machine,
and what a server says is repeated without the key.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import math
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import SplitResult, urlsplit

from hf_curate.errors import CurateError, MissingPackageError, RowError
from hf_curate.rollouts.verify import shown

if TYPE_CHECKING:
    import httpx2

T = TypeVar("T")

AGAIN = (408, 409, 429, 500, 502, 503, 504)
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_RETRY_AFTER = 0.5, 30.0, 60.0
"""Seconds: before the first retry, doubled at each; the longest of ours; the longest that a server may ask for."""
CONNECT_SECONDS = 10.0
_jitter = random.SystemRandom()  # the seeded generator of `random` is the caller's


@dataclass(frozen=True)
class Manners:
    """How a server is asked. key_name: the environment variable that the key came from, for errors; timeout: seconds
    for one request from start to end; retries: tries after the first."""

    base_url: str
    key_name: str | None
    concurrency: int
    timeout: float
    retries: int


class Wire:
    """Requests to one server, a bounded number at a time, each made again while that may help."""

    def __init__(self, manners: Manners, key: str | None) -> None:
        self.manners, self.key, self.httpx = manners, key, _httpx()
        self.places = asyncio.Semaphore(manners.concurrency)
        self.client: httpx2.AsyncClient = self.httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            follow_redirects=False,
            timeout=self.httpx.Timeout(None, connect=min(CONNECT_SECONDS, manners.timeout)),
            limits=self.httpx.Limits(max_connections=manners.concurrency),
            trust_env=not is_loopback(address(manners.base_url)),  # else a proxy of the environment would get the key
        )

    async def __aenter__(self) -> Wire:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.client.aclose()

    async def ask(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T]) -> T:
        """What `read` makes of the answer's JSON (it raises `AgainError` where it can make nothing of it).

        RowError: refused, or failed after all retries. CurateError: no request to this server can succeed.
        """
        problem: AgainError | None = None
        async with self.places:
            for attempt in range(self.manners.retries + 1):
                if problem is not None:
                    await asyncio.sleep(_pause(attempt, problem.after))
                try:
                    return await self._once(path, body, read)
                except AgainError as again:
                    problem = again
        assert problem is not None
        tries = self.manners.retries + 1
        detail = f"{self._clean(problem.detail)} ({tries} {'try' if tries == 1 else 'tries'})"
        raise (UnreachableError if problem.unreachable else RowError)("server failed", detail)

    async def _once(self, path: str, body: Mapping[str, Any] | None, read: Callable[[Any], T]) -> T:
        url, timeout = self.manners.base_url + path, self.manners.timeout
        method, content, headers = "GET", None, {}
        if body is not None:  # as ASCII: prompts may hold halves of characters
            method, content, headers = "POST", json.dumps(body).encode(), {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(timeout):
                answer = await self.client.request(method, url, content=content, headers=headers)
        except TimeoutError:
            raise AgainError(f"no answer within {timeout:g} s") from None
        except self.httpx.RequestError as error:
            lost = isinstance(error, self.httpx.TransportError)
            raise AgainError(f"{type(error).__name__}: {error}".removesuffix(": "), unreachable=lost) from None
        if not answer.is_success:
            raise self._refusal(answer, path, body)
        try:
            parsed = json.loads(answer.content)
        except (ValueError, RecursionError):
            raise AgainError(f"its answer is no JSON: {self._clean(answer.text)!r}") from None
        return read(parsed)

    def _refusal(self, answer: httpx2.Response, path: str, body: Mapping[str, Any] | None) -> Exception:
        """What a status other than 2xx means."""
        status, where, name = answer.status_code, self.manners.base_url, self.manners.key_name
        said = self._clean(_said(answer.content))
        told = f"status {status}: {said}" if said else f"status {status}"
        if status in AGAIN and (status, body) != (500, None):  # a server may be unable to list its models, for good
            return AgainError(told, after=_retry_after(answer.headers.get("Retry-After", "")))
        if status in (401, 403):
            which = f"the key in {name}" if self.key else "a request without a key"
            named = f"Set {name} to a key of that server." if name else ""
            do = named or "Name the variable that holds one: api_key_env=NAME."
            return CurateError(f"{where} refuses {which} (status {status}). {do}")
        if 300 <= status < 400:
            target = self._clean(_origin(answer.headers.get("Location", "")))
            return CurateError(
                f"{where} redirects to {target} (status {status}), and no request follows: give base_url as the "
                "address that answers."
            )
        if status in (404, 405) and body is not None:
            return CurateError(
                f"{where} has no {path} for model {body['model']!r} ({told}). Compare base_url (it mostly ends in "
                f"/v1) and model with what this prints: curl {where}/models; or ask the other endpoint, "
                "completions='chat' or 'text'."
            )
        return RowError("server failed" if status >= 500 and body is not None else "server refused", told)

    def _clean(self, text: str) -> str:
        return shown(text.replace(self.key, "[key]") if self.key else text)


class AgainError(Exception):
    """A request failed in a way that may pass. after: seconds that the server asks to wait."""

    def __init__(self, detail: str, after: float = 0.0, unreachable: bool = False) -> None:
        self.detail, self.after, self.unreachable = detail, after, unreachable
        super().__init__(detail)


class UnreachableError(RowError):
    """The row's last try got no answer at all."""


def _said(content: bytes) -> str:
    """The message in the body of a refusal."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return content.decode("utf-8", "replace").strip()
    while isinstance(found, dict):
        found = next((found[name] for name in ("error", "message", "detail") if found.get(name)), "")
    return found if isinstance(found, str) else json.dumps(found)


def _retry_after(header: str) -> float:
    """Seconds, from a number or a date; 0 where it says nothing that can be read."""
    try:
        wait = float(header)
    except ValueError:
        try:
            wait = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(wait, 0.0), LONGEST_RETRY_AFTER) if not math.isnan(wait) else 0.0


def _pause(attempt: int, after: float) -> float:
    """Seconds before try number `attempt`, counted from 0."""
    own = min(FIRST_PAUSE * 2 ** min(attempt - 1, 30), LONGEST_PAUSE)
    return max(after, own * _jitter.uniform(0.5, 1.0))


# -- addresses --------------------------------------------------------------------------------------------------------


def address(base_url: Any) -> SplitResult:
    """The parts of a base URL that can be asked and written down."""
    if not isinstance(base_url, str):
        raise CurateError(f"base_url is a {type(base_url).__name__}, expected text like 'http://localhost:8000/v1'.")
    try:
        url = urlsplit(base_url)
        usable = url.scheme in ("http", "https") and url.hostname and url.port != 0
    except ValueError:  # a port that is none, half an IPv6 address
        usable, url = False, SplitResult("", "", "", "", "")
    if "@" in base_url or "?" in base_url or "#" in base_url:
        raise CurateError(
            "base_url holds a user name, a password or a query, and addresses end up in logs: give it without, and "
            "the key in the environment variable that api_key_env names."
        )
    if not usable or re.search(r"[^\x21-\x7e]", base_url):
        raise CurateError(f"base_url={base_url!r} is no address like 'http://localhost:8000/v1'.")
    if url.path.rstrip("/").endswith("completions"):
        raise CurateError(f"base_url={base_url!r} is the address of one endpoint: give it up to and with /v1.")
    return url


def is_loopback(url: SplitResult) -> bool:
    """Whether an address is of this machine."""
    host = url.hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _origin(location: str) -> str:
    """Scheme, host and port of a redirect; "another place" where there are none."""
    try:
        url = urlsplit(location)
        port = f":{url.port}" if url.port else ""
    except ValueError:
        return "another place"
    return f"{url.scheme}://{url.hostname}{port}" if url.hostname else "another place"


# -- running ----------------------------------------------------------------------------------------------------------


async def together(work: Sequence[Awaitable[T]]) -> list[T]:
    """The results in order; the first error ends the others."""

    async def one(item: Awaitable[T]) -> T:
        return await item

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in work]
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from None
    return [task.result() for task in tasks]


def apart(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work()` in an event loop of a thread of its own: the caller may be inside a running one."""
    outcome: Future[T] = Future()
    stop: list[Callable[[], object]] = []

    async def main() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        stop.append(lambda: loop.call_soon_threadsafe(task.cancel))
        return await work()

    def run() -> None:
        try:
            outcome.set_result(asyncio.run(main()))
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is raised again in the caller's thread
            outcome.set_exception(error)

    thread = threading.Thread(target=run, daemon=True, name="hf_curate server")
    thread.start()
    try:
        return outcome.result()
    finally:
        if not outcome.done():  # interrupted
            with contextlib.suppress(RuntimeError):  # its loop has just closed
                for cancel in stop:
                    cancel()
        thread.join()


def _httpx() -> ModuleType:
    try:
        import httpx2
    except ImportError as error:
        raise MissingPackageError("httpx2", "server", "a server that samples") from error
    return httpx2
