"""Fetching a file: in pieces, resumed after cuts, in constant memory, checked at the end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Protocol, cast

from polypod.client.calls import Call, Headers
from polypod.client.commands import (
    PASSING,
    Backoff,
    Context,
    Do,
    Flow,
    Lost,
    Meanwhile,
    Read,
    Reply,
    exchange,
    wait_or_raise,
)
from polypod.client.errors import ClientError, Damaged, without_login

WRITTEN_AT_ONCE = 1 << 20
"""Bytes. Hashing and writing them is a thread's work, while more come."""


class Sink(Protocol):
    """Where a file goes as it comes; both may block."""

    def write(self, chunk: bytes) -> object: ...

    def restart(self) -> object:
        """Forget what was written."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of what was written, in hexadecimal digits."""
        ...


class Arriving:
    """A file on its way: what has come, and what was announced.

    With `size` and `digest` no other file is taken, and never a byte more.
    """

    def __init__(self, sink: Sink, size: int | None = None, digest: str = "") -> None:
        self._sink = sink
        self._wanted_size, self._wanted_digest = size, digest
        self.size = self._furthest = 0
        self.cuts = 0
        """How many it has survived."""
        self.headers: Headers = {}
        """Those of the newest answer."""
        self._etag = self._announced = ""
        self._total: int | None = None
        self._new: list[bytes] = []
        self._new_size = 0

    def resume_headers(self) -> Headers:
        identity = {"Accept": "*/*", "Accept-Encoding": "identity"}
        if self.size and self._etag:
            return identity | {"Range": f"bytes={self.size}-", "If-Range": self._etag}
        return identity

    def goes_on(self, reply: Reply) -> bool:
        """Whether the reply is the rest of what we have."""
        start = re.match(r"bytes (\d+)-", reply.headers.get("content-range", ""))
        same = reply.headers.get("etag", self._etag) == self._etag
        return reply.status == 206 and bool(start) and int(start[1]) == self.size > 0 and same

    def expect(self, reply: Reply) -> None:
        """Raises ClientError where what comes is not the file as it is."""
        headers = self.headers = reply.headers
        etag = headers.get("etag", "")
        self._etag = "" if etag.startswith("W/") else etag
        self._announced = reply.announced or self._etag
        if headers.get("content-encoding", "identity") != "identity":
            raise ClientError(
                "Something between here and the service compresses downloads.",
                "Ask the service directly.",
            )
        total = headers.get("content-range", "").rpartition("/")[2]
        if reply.status == 200:
            total = headers.get("content-length", "")
        self._total = int(total) if total.isdecimal() else None
        if None not in (self._total, self._wanted_size) and self._total != self._wanted_size:
            raise Damaged(f"The file has {self._total} bytes instead of {self._wanted_size}.")

    def take(self, chunk: bytes) -> bool:
        """Whether that is further than ever. Raises Damaged where more comes than there can be."""
        self._new.append(chunk)
        self._new_size += len(chunk)
        self.size += len(chunk)
        if self._wanted_size is not None and self.size > self._wanted_size:
            raise Damaged("The file is longer than announced.")
        before, self._furthest = self._furthest, max(self.size, self._furthest)
        return self._furthest > before

    @property
    def is_much(self) -> bool:
        """Whether enough has come to be written."""
        return self._new_size >= WRITTEN_AT_ONCE

    def writing(self) -> partial[None]:
        """What writes all that came since the last time."""
        chunks, self._new, self._new_size = self._new, [], 0
        return partial(self._write, chunks)

    def _write(self, chunks: Sequence[bytes]) -> None:
        for chunk in chunks:
            self._sink.write(chunk)

    def restart(self) -> None:
        self._sink.restart()
        self.size, self._etag = 0, ""

    @property
    def cut_short(self) -> bool:
        return self._total is not None and self.size < self._total

    def damage(self) -> str:
        """What is wrong with the whole file; nothing if it is as announced."""
        size = self._total if self._wanted_size is None else self._wanted_size
        if size is not None and self.size != size:
            return f"{self.size} bytes instead of {size}"
        told = re.fullmatch(r'"(?:sha256[:-])?([0-9a-f]{64})"', self._announced)
        wanted = self._wanted_digest or (told[1] if told else "")
        if wanted and self._sink.digest != wanted:
            return f"its SHA-256 is {self._sink.digest} instead of {wanted}"
        return ""


def fetch(context: Context, call: Call, file: Arriving) -> Flow[None]:
    """Reads until the end, over as many connections as it takes.

    Raises:
        Damaged: other bytes came than were announced.
        ApiError, Unreachable: see `wait_or_raise`.
    """
    backoff = Backoff(context.patience_s)
    while True:
        attempt = call.with_headers(file.resume_headers())
        try:
            reply = yield from exchange(context, attempt, stream=True)
            goes_on = file.goes_on(reply)
            if file.size and not goes_on and reply.status not in PASSING:
                yield Do(file.restart)
                if reply.status in (206, 416):
                    continue
            if reply.status != 200 and not goes_on:
                yield from wait_or_raise(backoff, call, reply)
                continue
            file.expect(reply)
            while chunk := cast(bytes, (yield Read())):
                if file.take(chunk):
                    backoff.succeeded()
                if file.is_much:
                    yield Meanwhile(file.writing())
            yield Do(file.writing())
            if file.cut_short:
                raise Lost("the connection ended in the middle of the file")
            break
        except Lost as lost:
            file.cuts += 1
            yield Do(file.writing())
            yield from wait_or_raise(backoff, call, lost)
    if damage := file.damage():
        raise Damaged(
            f"{without_login(call.url)} arrived damaged: {damage}.",
            "Try again; if it stays so, something between here and the service changes it.",
        )
