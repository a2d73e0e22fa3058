"""A network and server with faults: a proxy in front of a real S3 server, for which faults can be ordered.

with FaultyS3(endpoint) as faulty:
    faulty.order("lose reply", "PUT")           the next PUT reaches the server, its reply does not come back
    faulty.always("error 503", rate=0.2)        one request in five
    with faulty.gone(): ...                     nobody listens at the address
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

import boto3

__all__ = ["FAULTS", "Fault", "FaultyS3"]

Fault = Literal[
    "error 500", "error 503", "slow down", "lose reply", "reset", "cut", "conflict", "fails", "deny", "ignore condition"
]
# Those after which the same request may go well.
FAULTS: tuple[Fault, ...] = ("error 500", "error 503", "slow down", "lose reply", "reset", "cut")

_ANSWERS = {
    "error 500": (500, "InternalError", "We encountered an internal error."),
    "error 503": (503, "ServiceUnavailable", "The service is not available."),
    "slow down": (503, "SlowDown", "Please reduce your request rate."),
    "conflict": (409, "ConditionalRequestConflict", "A conflicting operation occurred during this request."),
    "fails": (412, "PreconditionFailed", ""),
    "deny": (403, "AccessDenied", "Access Denied"),
}


@dataclass
class _Order:
    fault: Fault
    method: str
    path: str
    times: float
    skip: int


@dataclass
class FaultyS3:
    """The proxy's address is `endpoint`; `seen` lists method and path of every request that came."""

    target: str
    seed: int = 0
    endpoint: str = ""
    seen: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._orders: list[_Order] = []
        self._rate: tuple[float, tuple[Fault, ...]] = (0.0, ())
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._port = 0
        self.client = boto3.client("s3", endpoint_url=self.target)

    def __enter__(self) -> Self:
        self._listen()
        self.endpoint = f"http://127.0.0.1:{self._port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hang_up()

    def order(self, fault: Fault, method: str = "", path: str = "", *, times: float = 1, skip: int = 0) -> None:
        """Let the fault befall the next requests of this method whose path and query contain `path`."""
        self._orders.append(_Order(fault, method, path, times, skip))

    def always(self, *faults: Fault, rate: float) -> None:
        """Let one of the faults befall any request with this probability."""
        self._rate = (rate, faults)

    def clear(self) -> None:
        self._orders, self._rate = [], (0.0, ())

    @contextmanager
    def gone(self) -> Iterator[None]:
        """Connections break off, and new ones are refused, until the block ends."""
        self._hang_up()
        try:
            yield
        finally:
            self._listen()

    def fate(self, method: str, path: str) -> Fault | None:
        with self._lock:
            self.seen.append((method, path))
            for order in self._orders:
                if order.times and order.method in ("", method) and order.path in path:
                    if order.skip:
                        order.skip -= 1
                        continue
                    order.times -= 1
                    return order.fault
            rate, faults = self._rate
            return self._random.choice(faults) if self._random.random() < rate else None

    def _listen(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def _hang_up(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.drop_connections()
            self._server = None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultyS3) -> None:
        self.proxy = proxy
        self.connections: set[socket.socket] = set()
        super().__init__(address, _Handler)

    def drop_connections(self) -> None:
        for connection in list(self.connections):
            _reset(connection)

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are what this server is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def handle_one(self) -> None:
        fate = self.server.proxy.fate(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if fate == "reset":
            self._break_off()
            return
        if fate in _ANSWERS:
            status, code, message = _ANSWERS[fate]
            self._answer(status, {}, f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode())
            return
        if fate == "ignore condition":
            # The condition is signed, so it cannot be left out; it holds where there is nothing.
            bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
            self.server.proxy.client.delete_object(Bucket=bucket, Key=key)
        address = urlsplit(self.server.proxy.target)
        upstream = HTTPConnection(address.hostname or "", address.port or 80, timeout=60)
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        upstream.putheader("Host", self.headers["Host"])  # signed by the client
        for name, value in self.headers.items():
            if name.lower() not in {"host", "expect", "connection"}:
                upstream.putheader(name, value)
        upstream.endheaders(body)
        reply = upstream.getresponse()
        data = reply.read()
        upstream.close()
        if fate == "lose reply":
            self._break_off()
        elif fate == "cut" and data and self.command != "HEAD":
            self._answer(reply.status, dict(reply.getheaders()), data, cut=len(data) // 2)
        elif fate == "cut":
            self._break_off()
        else:
            self._answer(reply.status, dict(reply.getheaders()), data)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_one

    def _answer(self, status: int, headers: dict[str, str], data: bytes, cut: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        size = {name.lower(): value for name, value in headers.items()}.get("content-length")
        self.send_header("Content-Length", size if self.command == "HEAD" and size else str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:cut])
        if cut is not None:
            self._break_off()

    def _break_off(self) -> None:
        self.wfile.flush()
        _reset(self.connection)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test may send thousands of requests."""


def _reset(connection: socket.socket) -> None:
    """End a connection as a crashed peer does, without a farewell."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:  # it is gone already
        pass
    connection.close()
