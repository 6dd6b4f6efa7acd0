"""The network between a router and a pod, with its faults: a real proxy on a real socket.

Each request has a connection of its own. `set` says how the network is, `rate` how many bytes come
back in a second, and `lie` changes what the pod says.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Mode = Literal["open", "cut", "silent"]
BLOCK = 1 << 14


@dataclass(frozen=True)
class Lie:
    """Answers to paths that fit are not the pod's own.

    `answer` comes instead of the pod's; then `endless` bytes, or nothing more. Without it the
    pod's answer comes, as `change` makes its body, without its last `missing` bytes.
    """

    path: str
    answer: bytes = b""
    endless: bytes = b""
    change: Callable[[bytes], bytes] = bytes
    missing: int = 0


def answer(body: bytes, status: int = 200, kind: str = "application/json") -> bytes:
    """A whole HTTP answer."""
    head = f"HTTP/1.1 {status} So\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


class Network:
    """Use it as a context manager; `url` is where the pod seems to be."""

    def __init__(self, pod_port: int) -> None:
        self._speaks = asyncio.Event()
        self._speaks.set()
        self.rate = 0
        self._cut = False
        self.pod_port = pod_port
        self.told = 0
        """How many lies were told."""
        self._lies: list[Lie] = []
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Network:
        self._thread.start()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._server = self._on_loop(asyncio.start_server(self._serve, sock=listener))
        return self

    def __exit__(self, *_: object) -> None:
        self.set("cut")
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def set(self, mode: Mode) -> None:
        """`cut` resets what is open and refuses what comes; `silent` says nothing any more."""
        self._on_loop(self._set(mode))

    def lie(self, path: str, answer: bytes = b"", **more: Any) -> None:
        self._lies.append(Lie(path, answer, **more))

    def heal(self) -> None:
        self._lies.clear()
        self.rate = 0
        self.set("open")

    def _on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _set(self, mode: Mode) -> None:
        self._cut = mode == "cut"
        if mode == "silent":
            self._speaks.clear()
        else:
            self._speaks.set()
        if mode == "cut":
            for writer in list(self._open):
                _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._request(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._cut:
            _reset(writer)
            return
        head = await reader.readuntil(b"\r\n\r\n")
        path = head.split(b" ", 2)[1].decode()
        lie = next((lie for lie in self._lies if re.search(lie.path, path)), None)
        self.told += lie is not None
        if lie and lie.answer:
            await self._say(writer, lie.answer)
            while lie.endless:
                await self._say(writer, lie.endless)
            return
        await self._speaks.wait()
        there, pod = await asyncio.open_connection("127.0.0.1", self.pod_port)
        self._open.add(pod)
        begun = re.sub(rb"(?i)\r\nconnection:[^\r]*", b"", head)
        pod.write(begun.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        upload = asyncio.ensure_future(self._pump(reader, pod))
        try:
            await self._answer(there, writer, lie)
        finally:
            upload.cancel()
            self._open.discard(pod)
            pod.close()

    async def _answer(
        self, there: asyncio.StreamReader, writer: asyncio.StreamWriter, lie: Lie | None
    ) -> None:
        if lie:
            head, body = await there.readuntil(b"\r\n\r\n"), lie.change(await there.read())
            length = b"Content-Length: %d" % len(body)
            head = re.sub(rb"(?i)content-length: *\d+", length, head)
            await self._say(writer, head + body[: len(body) - lie.missing])
        else:
            await self._pump(there, writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(BLOCK):
            await self._say(writer, data)

    async def _say(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        await self._speaks.wait()
        writer.write(data)
        await writer.drain()
        if self.rate:
            await asyncio.sleep(len(data) / self.rate)


def _reset(writer: asyncio.StreamWriter) -> None:
    end: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
