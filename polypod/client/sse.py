"""Server-sent events (WHATWG HTML, section 9.2), read piece by piece."""

from __future__ import annotations

import codecs
from dataclasses import dataclass


@dataclass(frozen=True)
class Message:
    """One dispatched event."""

    kind: str
    data: str
    id: str


class EventParser:
    """Feed it the bytes of one connection as they come; it gives the messages that are complete.

    `last_id` is what to send as `Last-Event-ID`. (`retry` is ignored: our waits are our own.)
    """

    def __init__(self, last_id: str = "") -> None:
        self.last_id = last_id
        self._decode = codecs.getincrementaldecoder("utf-8-sig")("replace").decode
        self._rest = ""
        self._kind = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Message]:
        text = self._rest + self._decode(chunk)
        # A CR at the end may be the first half of CRLF: it waits for the next chunk.
        held = "\r" if text.endswith("\r") else ""
        lines = text.removesuffix("\r").replace("\r\n", "\n").replace("\r", "\n").split("\n")
        self._rest = lines.pop() + held
        return [message for line in lines if (message := self._line(line))]

    def _line(self, line: str) -> Message | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._kind = value
        elif name == "id" and "\0" not in value:
            self.last_id = value
        return None

    def _dispatch(self) -> Message | None:
        data, self._data = self._data, []
        kind, self._kind = self._kind or "message", ""
        return Message(kind, "\n".join(data), self.last_id) if data else None
