"""An OpenAI-compatible server on 127.0.0.1 whose responses are known, with faults on demand."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Fault:
    """What a request gets instead of its answer. cut: the connection breaks in the middle of the body."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False


@dataclass
class Seen:
    """One request as the server saw it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def prompt(self) -> str:
        return self.body["prompt"] if "prompt" in self.body else self.body["messages"][-1]["content"]


class OpenAILoopback:
    """Answers choice k of a prompt with "<prompt>|<seed>|<k>", in reverse order of their index.

    faults: taken one by one by the POST requests of a prompt, or of any prompt under "*"; most_choices: what is given
    where more are asked; delay: seconds before a prompt's answer; `most_at_once` counts requests side by side.
    """

    def __init__(self, port: int = 0) -> None:
        self.faults: dict[str, list[Fault]] = {}
        self.most_choices = 1000
        self.delay: Callable[[str], float] = lambda prompt: 0.0
        self.choice: Callable[[dict[str, Any]], dict[str, Any]] = lambda choice: choice
        self.models: Fault = Fault(body=b'{"data": []}')
        self.seen: list[Seen] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.port = port
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Listens; on the same port as before where it was stopped."""
        loopback = self

        class Handler(_Handler):
            server_of = loopback

        self._server = _Server(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Dies: no more connections, and those that are open break."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):  # the other side was faster
                    connection.close() if connection.fileno() < 0 else connection.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def __enter__(self) -> OpenAILoopback:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def asked(self, prompt: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.prompt == prompt]

    # -- called by the handler, in threads ----------------------------------------------------------------------------

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def answer(self, seen: Seen) -> Fault:
        with self._lock:
            self.seen.append(seen)
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
            faults = self.faults.get(seen.prompt) or self.faults.get("*")
            fault = faults.pop(0) if faults else None
        try:
            time.sleep(self.delay(seen.prompt))
        finally:
            with self._lock:
                self._at_once -= 1
        return fault or Fault(body=json.dumps(self._completion(seen)).encode())

    def _completion(self, seen: Seen) -> dict[str, Any]:
        choices = []
        for k in reversed(range(min(seen.body.get("n", 1), self.most_choices))):
            text = f"{seen.prompt}|{seen.body['seed']}|{k}"
            holder = {"message": {"role": "assistant", "content": text}} if "messages" in seen.body else {"text": text}
            choices.append(self.choice({"index": k, "finish_reason": "stop", **holder}))
        return {"id": "loopback", "created": int(time.time()), "choices": choices}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_of: OpenAILoopback

    def setup(self) -> None:
        super().setup()
        self.server_of.opened(self.connection)

    def finish(self) -> None:
        self.server_of.closed(self.connection)
        super().finish()

    def do_GET(self) -> None:
        self.server_of.seen.append(Seen(self.path, dict(self.headers), {"prompt": "models"}))
        self._send(self.server_of.models)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(self.server_of.answer(Seen(self.path, dict(self.headers), body)))

    def _send(self, fault: Fault) -> None:
        self.send_response(fault.status)
        for name, value in fault.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(fault.body) + (100 if fault.cut else 0)))
        self.end_headers()
        self.wfile.write(fault.body)
        self.close_connection = self.close_connection or fault.cut

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on the terminal."""
