"""An HTTP proxy between a client and a server that fails as it is told: real sockets, real faults.

`proxy.fail(...)` sets what happens to the next requests that fit; all others pass unchanged.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import struct
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal

BLOCK = 1 << 16

Kind = Literal[
    "status",  # answer `status` with S3's error `code`
    "cut request",  # end the connection after `after` bytes of what the client sends
    "stall request",  # read no more after that
    "damage request",  # change the byte that follows
    "cut response",  # the same with what the server answers
    "stall response",
    "damage response",
    "lose response",  # the server has done it, but the connection is reset
    "no response",  # the server has done it, but says nothing
]


@dataclass
class Fault:
    kind: Kind
    method: str
    path: str
    times: int
    status: int = 503
    code: str = "SlowDown"
    after: int = 0

    def fits(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and self.path in path


class FaultyProxy:
    """`requests` holds the method, path and Range of each request that came."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream_port = upstream_port
        self.requests: list[tuple[str, str, str]] = []
        self.stopping = threading.Event()
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        proxy = self

        class Handler(_Handler):
            def relay(self) -> None:
                self.relay_for(proxy)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._thread.join()
        self._server.socket.close()

    def fail(self, kind: Kind, method: str, path: str = "", times: int = 1, **more: Any) -> Fault:
        """The next `times` requests with this method and this in their path."""
        fault = Fault(kind, method, path, times, **more)
        with self._lock:
            self._faults.append(fault)
        return fault

    def count(self, method: str, path: str = "") -> int:
        return sum(1 for m, p, _ in self.requests if m == method and path in p)

    def take(self, method: str, path: str, range_: str) -> Fault | None:
        with self._lock:
            self.requests.append((method, path, range_))
            for fault in self._faults:
                if fault.fits(method, path):
                    fault.times -= 1
                    return fault
        return None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def relay(self) -> None: ...

    def do_GET(self) -> None:
        self.relay()

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def log_message(self, *_: Any) -> None: ...

    def relay_for(self, proxy: FaultyProxy) -> None:
        fault = proxy.take(self.command, self.path, self.headers.get("range", ""))
        with contextlib.suppress(ConnectionError), contextlib.ExitStack() as stack:
            if fault and fault.kind == "status":
                self._refuse(fault)
                return
            upstream = http.client.HTTPConnection("127.0.0.1", proxy.upstream_port, timeout=60)
            stack.callback(upstream.close)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    upstream.putheader(name, value)
            upstream.endheaders()
            for block in self._with_fault(self._body(), fault, "request", proxy):
                upstream.send(block)
            answer = upstream.getresponse()
            if fault and fault.kind in ("lose response", "no response"):
                self._stop_here(fault, proxy)
                return
            self.send_response_only(answer.status, answer.reason)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            if answer.getheader("content-length") is None:
                self.send_header("connection", "close")
                self.close_connection = True
            self.end_headers()
            blocks = iter(lambda: answer.read1(BLOCK), b"")
            for block in self._with_fault(blocks, fault, "response", proxy):
                self.wfile.write(block)
            return
        self.close_connection = True

    def _body(self) -> Iterator[bytes]:
        left = int(self.headers.get("content-length") or 0)
        while left and (block := self.rfile.read1(min(left, BLOCK))):
            left -= len(block)
            yield block

    def _with_fault(
        self, blocks: Iterator[bytes], fault: Fault | None, way: str, proxy: FaultyProxy
    ) -> Generator[bytes]:
        if fault is None or not fault.kind.endswith(way):
            yield from blocks
            return
        passed = 0
        for block in blocks:
            room = fault.after - passed
            passed += len(block)
            if not 0 <= room < len(block):
                yield block
            elif fault.kind.startswith("damage"):
                yield block[:room] + bytes([block[room] ^ 1]) + block[room + 1 :]
            else:
                yield block[:room]
                self._stop_here(fault, proxy)
                raise ConnectionError

    def _refuse(self, fault: Fault) -> None:
        for _ in self._body():
            pass
        text = f"<Error><Code>{fault.code}</Code><Message>told to</Message></Error>".encode()
        self.send_response_only(fault.status)
        self.send_header("date", self.date_time_string())
        self.send_header("content-type", "application/xml")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _stop_here(self, fault: Fault, proxy: FaultyProxy) -> None:
        if fault.kind.startswith(("stall", "no")):
            proxy.stopping.wait(60)
        self.close_connection = True
        if fault.kind != "cut response":  # that one ends in order, so that what was sent arrives
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        os.close(self.connection.detach())  # `close` would wait for the files made from it
