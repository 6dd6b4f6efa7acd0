"""HTTP/1.1 on a raw socket: so little work in the client that the servers are what is measured."""

from __future__ import annotations

import json
import selectors
import socket
import time
from collections.abc import Iterator
from typing import Any

TIMEOUT_S = 60.0


class Wire:
    """One connection that is kept open. Not for threads to share."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._got = bytearray()
        self._port = port

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._socket.sendall(request(method, path, self._port, body))
        status, headers = self._read_head()
        if "content-length" in headers:
            return status, self._read(int(headers["content-length"]))
        if headers.get("transfer-encoding") == "chunked":
            return status, b"".join(self._chunks())
        return status, b""

    def json(self, method: str, path: str, body: bytes = b"") -> Any:
        """The answer's JSON. RuntimeError when it is an error."""
        status, answer = self.ask(method, path, body)
        if status >= 400:
            raise RuntimeError(f"{method} {path}: {status} {answer[:300]!r}")
        return json.loads(answer)

    def fetch(self, path: str) -> int:
        """Reads a body and throws it away; returns its size in bytes."""
        self._socket.sendall(request("GET", path, self._port))
        status, headers = self._read_head()
        if status != 200 or "content-length" not in headers:
            raise RuntimeError(f"GET {path}: {status} {headers}")
        size = left = int(headers["content-length"])
        left -= len(self._got)
        self._got.clear()
        buffer = bytearray(1 << 20)
        while left > 0:
            left -= self._checked(self._socket.recv_into(buffer, min(left, len(buffer))))
        return size

    def events(self, path: str) -> Iterator[dict[str, Any]]:
        """The data of server-sent events, until the server ends them."""
        self._socket.sendall(request("GET", path, self._port))
        status, _ = self._read_head()
        if status != 200:
            raise RuntimeError(f"GET {path}: {status}")
        text = b""
        for chunk in self._chunks():
            *blocks, text = (text + chunk).split(b"\n\n")
            for block in blocks:
                for line in block.split(b"\n"):
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])

    def _read_head(self) -> tuple[int, dict[str, str]]:
        while (end := self._got.find(b"\r\n\r\n")) < 0:
            self._receive()
        first, *lines = self._got[:end].decode("latin-1").split("\r\n")
        del self._got[: end + 4]
        headers = (line.partition(":") for line in lines)
        return int(first.split(" ")[1]), {name.lower(): text.strip() for name, _, text in headers}

    def _read(self, size: int) -> bytes:
        body = bytearray(size)
        at = min(len(self._got), size)
        body[:at] = self._got[:at]
        del self._got[:at]
        with memoryview(body) as view:
            while at < size:
                at += self._checked(self._socket.recv_into(view[at:]))
        return bytes(body)

    def _chunks(self) -> Iterator[bytes]:
        while True:
            while (end := self._got.find(b"\r\n")) < 0:
                self._receive()
            size = int(bytes(self._got[:end]), 16)
            del self._got[: end + 2]
            chunk = self._read(size + 2)[:-2]
            if not size:
                return
            yield chunk

    def _receive(self) -> None:
        data = self._socket.recv(1 << 16)
        self._checked(len(data))
        self._got += data

    def _checked(self, count: int) -> int:
        if not count:
            raise ConnectionError("the server closed the connection")
        return count


def request(method: str, path: str, port: int, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
    if body or method not in ("GET", "HEAD"):
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def together(port: int, requests: list[tuple[str, str, bytes]], connections: int) -> list[float]:
    """Sends all requests as fast as they are answered; seconds that each took.

    `connections` at once, open before the first one is sent; every answer must be a 2xx with a
    Content-Length.
    """
    waiting = iter([request(method, path, port, body) for method, path, body in requests])
    return list(_drive(port, waiting, connections))


def per_second(port: int, path: str, seconds: float, connections: int) -> float:
    """How many GET requests a second are answered, asked on so many connections at once."""
    end = time.perf_counter() + seconds
    asked = request("GET", path, port)

    def endless() -> Iterator[bytes]:
        while time.perf_counter() < end:
            yield asked

    begin = time.perf_counter()
    count = sum(1 for _ in _drive(port, endless(), connections))
    return count / (time.perf_counter() - begin)


def _drive(port: int, waiting: Iterator[bytes], connections: int) -> Iterator[float]:
    selector = selectors.DefaultSelector()
    lines = [socket.create_connection(("127.0.0.1", port), TIMEOUT_S) for _ in range(connections)]
    since: dict[socket.socket, float] = {}
    got: dict[socket.socket, bytes] = {}

    def send(line: socket.socket) -> None:
        data = next(waiting, None)
        if data is None:
            selector.unregister(line)
            return
        got[line] = b""
        since[line] = time.perf_counter()
        line.sendall(data)

    try:
        for line in lines:
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(line, selectors.EVENT_READ)
        for line in lines:
            send(line)
        while selector.get_map():
            ready = selector.select(TIMEOUT_S)
            if not ready:
                raise TimeoutError("no answer")
            for key, _ in ready:
                line = key.fileobj
                assert isinstance(line, socket.socket)
                got[line] += line.recv(1 << 16)
                if _is_whole(got[line]):
                    yield time.perf_counter() - since[line]
                    send(line)
    finally:
        for line in lines:
            line.close()
        selector.close()


def _is_whole(answer: bytes) -> bool:
    head, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        if not answer:
            raise ConnectionError("the server closed the connection")
        return False
    if not head.startswith(b"HTTP/1.1 2"):
        raise RuntimeError(f"refused: {answer[:300]!r}")
    low = head.lower()
    at = low.find(b"content-length:")
    return len(body) >= int(low[at + 15 :].split(b"\r\n", 1)[0])
