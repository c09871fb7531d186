"""From bytes to routes and back: one thread per connection, faults on the way, everything noted in the journal."""

from __future__ import annotations

import json
import socket
import sys
import time
import traceback
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from . import card, commit, info, lfs, manage, pulls, resolve
from .answers import HubError, Reply, json_reply
from .faults import Access, Fault
from .request import Core, Request, find_route

ROUTERS = (card, commit, info, lfs, manage, pulls, resolve)  # importing them fills the table of routes


class Server(ThreadingHTTPServer):
    """One origin on 127.0.0.1; ``origin`` is "hub" or "storage"."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, core: Core, origin: str, port: int) -> None:
        self.core = core
        self.origin = origin
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def server_bind(self) -> None:
        """HTTPServer would look up the host's name, which can take seconds."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "127.0.0.1", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut_all(self) -> None:
        """Close the connections that clients keep open."""
        for connection in list(self._open):
            self.shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 120

    @property
    def hub(self) -> Server:
        assert isinstance(self.server, Server)
        return self.server

    def _answer(self) -> None:
        body, core = self._read_body(), self.hub.core
        if self.path.startswith("/_admin/"):
            self._send(_admin(core, self.command, self.path, body))
            return
        base = f"http://{self.headers.get('Host', self.hub.url.removeprefix('http://'))}"
        request = Request(core, self.command, self.path, self.headers, body, base, self.hub.origin)
        fault = core.faults.take(self.command, self.path)
        route, reply = _met(request, fault) if fault else _routed(request)
        self._note(request, route, reply, fault)
        if reply is None:
            self._cut()
        else:
            self._send(reply, half=fault is not None and fault.when == "midway")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _answer  # noqa: N815 - http.server's names

    def _note(self, request: Request, route: str, reply: Reply | None, fault: Fault | None) -> None:
        """Written before the reply is sent: whoever has the reply finds the request in the log."""
        told = "" if fault is None else f"{fault.when} {'cut' if fault.cut else fault.status or 'slow'}"
        path = request.path if request.origin == "storage" else request.target
        status = reply.status if reply else 0
        sent = "Authorization" in request.headers
        request.core.journal.note(
            Access(request.method, path, status, request.caller.name, sent, request.origin, route, told)
        )

    def _read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", "").lower():
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return bytes(body)

    def _send(self, reply: Reply, half: bool = False) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        if half:
            self.wfile.write(reply.body[: len(reply.body) // 2])
            self._cut()
        elif self.command != "HEAD":
            self.wfile.write(reply.body)

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def version_string(self) -> str:
        return "loopback-hub"

    def log_message(self, format: str, *args: Any) -> None:
        """The journal has it."""


def _met(request: Request, fault: Fault) -> tuple[str, Reply | None]:
    """The route that was taken ("" for none) and what is sent, None for nothing, when a request meets a fault."""
    if fault.when == "before":
        time.sleep(fault.delay)
        if fault.cut or fault.status is not None:
            return "", _replaced(None, fault)
        return _routed(request)
    route, reply = _routed(request)
    time.sleep(fault.delay)
    return route, _replaced(reply, fault)


def _replaced(reply: Reply | None, fault: Fault) -> Reply | None:
    if fault.cut:
        return reply if fault.when == "midway" else None
    if fault.status is None:
        return reply
    headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
    return HubError(fault.status, fault.message, headers=headers).reply()


def _routed(request: Request) -> tuple[str, Reply]:
    """The name of the route that answers, and its answer."""
    name, core = "", request.core
    try:
        if request.origin == "storage":
            for header, value in request.headers.items():
                if header == "Authorization" or core.accounts.found_in(value):
                    request.note_leak(header)
        else:
            request.caller = core.accounts.identify(request.headers.get("Authorization"))
        request.look_for_tokens(request.target, "path")
        found = find_route(request)
        if found is None:
            raise HubError(404, "This Hub does not know this path")
        name, handler = found
        return name, handler(request)
    except HubError as error:
        return name, error.reply()
    except Exception:  # noqa: BLE001 - whatever is wrong in this server: the client gets a 500, the console says what
        traceback.print_exc()
        return name, HubError(500, "The loopback Hub failed: its console says how").reply()


def _admin(core: Core, method: str, path: str, body: bytes) -> Reply:
    """``/_admin/faults`` (GET, POST one, DELETE all), ``/_admin/log`` and ``/_admin/leaks`` (GET; DELETE empties
    both)."""
    if path == "/_admin/faults" and method == "POST":
        try:
            return json_reply(asdict(core.faults.add(Fault(**json.loads(body)))))
        except (TypeError, ValueError) as error:
            return json_reply({"error": str(error)}, 400)
    if path == "/_admin/faults" and method == "DELETE":
        core.faults.clear()
    elif path in ("/_admin/log", "/_admin/leaks") and method == "DELETE":
        core.journal.clear()
    elif method != "GET" or path not in ("/_admin/faults", "/_admin/log", "/_admin/leaks"):
        return json_reply({"error": "There are /_admin/faults, /_admin/log and /_admin/leaks"}, 404)
    shown = {"faults": core.faults.waiting(), "log": core.journal.accesses, "leaks": core.journal.leaks}
    return json_reply([asdict(item) for item in list(shown[path.removeprefix("/_admin/")])])
