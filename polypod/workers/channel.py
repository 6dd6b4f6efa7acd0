"""The supervisor's end of the socket between it and a harness: JSON lines, never blocking."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from typing import Any

CHUNK = 1 << 18


class Channel:
    """`on_readable` is called on the loop when there is something for `lines()`."""

    def __init__(self, ours: socket.socket, on_readable: Callable[[], object]) -> None:
        self._socket = ours
        self._socket.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(ours, on_readable)
        self._rest = b""
        self._unsent = bytearray()

    def lines(self) -> list[bytes]:
        """The whole lines that have come. Empty: there is nothing more now."""
        found: list[bytes] = []
        while not found:
            try:
                data = self._socket.recv(CHUNK)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            if not data:  # that the process is dead is noticed elsewhere
                self._loop.remove_reader(self._socket)
                break
            *found, self._rest = (self._rest + data).split(b"\n")
        return found

    def send(self, order: Mapping[str, Any]) -> None:
        self._unsent += json.dumps(order).encode() + b"\n"
        self._write()

    def close(self) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()

    def _write(self) -> None:
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # it is dead
            self._unsent.clear()
        if self._unsent:
            self._loop.add_writer(self._socket, self._write)
        else:
            self._loop.remove_writer(self._socket)
