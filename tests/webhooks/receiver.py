"""A receiver of webhooks on a real socket, which answers as it is told."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.api.serving import until


@dataclass(frozen=True)
class Got:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.body)


class Receiver(ThreadingHTTPServer):
    """Answers 200, unless `answers` has a function for the path."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[Got] = []
        self.answers: dict[str, Callable[[_Handler], None]] = {}
        self.over = threading.Event()
        self.host = f"127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Receiver:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.shutdown()
        self._thread.join(10)
        self.server_close()

    def url(self, path: str = "/hook") -> str:
        return f"http://{self.host}{path}"

    def at(self, path: str) -> list[Got]:
        return [got for got in self.got if got.path == path]

    def wait(self, count: int = 1, path: str = "/hook") -> list[Got]:
        return until(lambda: (found := self.at(path)) and len(found) >= count and found)

    def handle_error(self, request: object, client_address: object) -> None:
        """A sender that hangs up is expected here."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.got.append(Got(self.path, headers, body))
        self.server.answers.get(self.path, _Handler.say)(self)

    do_GET = do_POST

    def say(self, status: int = 200, body: bytes = b"thanks", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def hang(self) -> None:
        self.server.over.wait(60)

    def say_without_end(self) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.over.is_set():
            self.wfile.write(b"x" * 65536)

    def log_message(self, format: str, *args: object) -> None:
        pass
