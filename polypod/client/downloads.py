"""Downloads: in pieces to a temporary name, resumed after a cut, checked, then renamed."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlencode

from polypod.client.calls import Call, Headers
from polypod.client.commands import (
    Backoff,
    Context,
    Do,
    Flow,
    Lost,
    Read,
    Reply,
    exchange,
    wait_or_raise,
)
from polypod.client.errors import ApiError, ClientError, Damaged, JobFailed, Unreachable
from polypod.client.flows import job
from polypod.client.views import Download, JobView

CHUNKS = 8
"""Chunks (64 KiB each) that are written and hashed at once: that is a thread's work each time."""
ELSEWHERE_REFUSED = (401, 403, 404)


def download(
    context: Context, job_id: str, path: Path, asset: str | None, format_: str | None
) -> Flow[Download]:
    """Saves the job's main result, in `format_` if given, or the named asset.

    `path` is a file, or a folder that is there already: then the service's name is kept.

    Raises:
        JobFailed: if the job ended without a result.
        ApiError: 404 for an unknown job or asset, 409 if it is not there yet.
        Damaged: if the bytes are not those that the service announced, twice.
        OSError: if the file cannot be written.
    """
    view = yield from job(context, job_id)
    if view.status in ("failed", "cancelled") and not asset:
        raise JobFailed(view)
    urls = _urls(context, view, asset, format_)
    for url in urls[:-1]:  # at another host, which may not know us
        try:
            return (yield from _save(context, Call("GET", url), path))
        except Unreachable:
            continue
        except ApiError as error:
            if error.status not in ELSEWHERE_REFUSED:
                raise
    return (yield from _save(context, Call("GET", urls[-1]), path))


def _urls(context: Context, view: JobView, asset: str | None, format_: str | None) -> Sequence[str]:
    """Where the file is: where the service says; if that is another host, then also with us."""
    server = context.server
    if asset:
        found = view.asset(asset)
        told, ours = found.url if found else "", server.path("job", view.id, "result", asset)
    else:
        told, ours = view.download_url, server.path("job", view.id, "download")
    if format_:
        return [f"{ours}?{urlencode({'format': format_})}"]
    there = server.resolve(told) if told else ours
    return [there] if server.is_ours(there) else [there, ours]


def _save(context: Context, call: Call, path: Path) -> Flow[Download]:
    for last_try in (False, True):
        part = cast(_Part, (yield Do(partial(_Part, path))))
        try:
            yield from _fetch(context, call, part)
            if not (damage := part.damage()):
                return cast(Download, (yield Do(part.publish)))
            if last_try:
                raise Damaged(
                    f"{call.url} arrived damaged twice: {damage}.",
                    "Try again; if it stays so, something between here and the service changes it.",
                )
        finally:
            part.discard()
    raise AssertionError("unreachable")


def _fetch(context: Context, call: Call, part: _Part) -> Flow[None]:
    """Reads until the end, over as many connections as it takes."""
    backoff = Backoff(context.patience_s)
    while True:
        attempt = call.with_headers(part.resume_headers())
        try:
            reply = yield from exchange(context, attempt, stream=True)
            goes_on = part.goes_on(reply)
            if part.size and not goes_on:
                yield Do(part.restart)
                if reply.status in (206, 416):
                    continue
            if reply.status != 200 and not goes_on:
                yield from wait_or_raise(backoff, call, reply)
                continue
            part.expect(reply)
            while chunk := cast(bytes, (yield Read())):
                backoff.succeeded()
                if part.take(chunk):
                    yield Do(part.flush)
            yield Do(part.flush)
            if not part.cut_short:
                return
            raise Lost("the connection ended in the middle of the file")
        except Lost as lost:
            part.cuts += 1
            yield Do(part.flush)
            yield from wait_or_raise(backoff, call, lost)


class _Part:
    """A download on its way: a hidden file beside its later place, and what was announced."""

    def __init__(self, path: Path) -> None:
        self._into = path if path.is_dir() else path.parent
        self._into.mkdir(parents=True, exist_ok=True)
        self._name = "" if path.is_dir() else path.name
        self._path = self._into / f".polypod-{secrets.token_hex(6)}.part"
        self._file = self._path.open("xb")
        self.cuts = 0
        self._etag = self._announced = ""
        self._total: int | None = None
        self._media_type = ""
        self._begin()

    def _begin(self) -> None:
        self.size = 0
        self._new: list[bytes] = []
        self._hash = hashlib.sha256()

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
        headers = reply.headers
        etag = headers.get("etag", "")
        self._etag = "" if etag.startswith("W/") else etag
        self._announced = reply.announced or self._etag
        self._media_type = headers.get("content-type", "").partition(";")[0]
        self._name = self._name or _filename(headers)
        if headers.get("content-encoding", "identity") != "identity":
            raise ClientError(
                "Something between here and the service compresses downloads.",
                "Ask the service directly.",
            )
        total = headers.get("content-range", "").rpartition("/")[2]
        if reply.status == 200:
            total = headers.get("content-length", "")
        self._total = int(total) if total.isdecimal() else None

    def take(self, chunk: bytes) -> bool:
        """Adds what came; whether there is enough of it to `flush`."""
        self._new.append(chunk)
        self.size += len(chunk)
        return len(self._new) >= CHUNKS

    def flush(self) -> None:
        for chunk in self._new:
            self._file.write(chunk)
            self._hash.update(chunk)
        self._new.clear()

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._etag = ""
        self._begin()

    @property
    def cut_short(self) -> bool:
        return self._total is not None and self.size < self._total

    def damage(self) -> str:
        """What is wrong with the whole file; nothing if it is as announced."""
        if self._total is not None and self.size != self._total:
            return f"{self.size} bytes instead of {self._total}"
        announced = re.fullmatch(r'"(?:sha256[:-])?([0-9a-f]{64})"', self._announced)
        if announced and announced[1] != self._hash.hexdigest():
            return f"its SHA-256 is {self._hash.hexdigest()} instead of {announced[1]}"
        return ""

    def publish(self) -> Download:
        self._file.close()
        path = self._into / (self._name or "download")
        self._path.replace(path)
        return Download(path, self.size, self._hash.hexdigest(), self._media_type, self.cuts)

    def discard(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def _filename(headers: Headers) -> str:
    """The name in Content-Disposition, without any folder."""
    text = headers.get("content-disposition", "")
    found: Any = re.search(r"filename\*=UTF-8''([^;]+)", text, re.IGNORECASE)
    name = unquote(found[1]) if found else ""
    if not name and (found := re.search(r'filename="?([^";]+)"?', text)):
        name = found[1]
    name = re.split(r"[\\/]", name)[-1].strip()
    return "" if name in (".", "..") else name
