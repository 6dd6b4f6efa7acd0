"""The line between a server and its PostgreSQL, which can be cut: a real relay on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path


class Cable:
    """A context manager; `port` leads to the Unix socket or port of the database.

    While it is cut, nothing comes through and nobody is told so, as when a network fails.
    """

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._whole = asyncio.Event()
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Cable:
        self._thread.start()
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        self._on_loop(asyncio.start_server(self._relay, sock=listener))
        self._loop.call_soon_threadsafe(self._whole.set)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._drop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        self._loop.call_soon_threadsafe(self._whole.clear)

    def mend(self) -> None:
        """Connections from before have broken by now."""
        self._loop.call_soon_threadsafe(self._drop)
        self._loop.call_soon_threadsafe(self._whole.set)

    def _drop(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        await self._whole.wait()
        there = await self._connect()
        self._open.add(there[1])
        await asyncio.gather(self._pass_on(reader, there[1]), self._pass_on(there[0], writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        folder = Path(self._host)
        if folder.is_absolute():
            return await asyncio.open_unix_connection(folder / f".s.PGSQL.{self._port}")
        return await asyncio.open_connection(self._host, self._port)

    def _on_loop(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)
