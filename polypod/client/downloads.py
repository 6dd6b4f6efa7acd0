"""Downloads: to a temporary name, checked, then renamed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import re
import secrets
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlencode

from polypod.client.calls import Call, Headers
from polypod.client.commands import Context, Do, Flow
from polypod.client.errors import ApiError, Damaged, JobFailed, Unreachable
from polypod.client.fetch import Arriving, fetch
from polypod.client.flows import job
from polypod.client.views import Download, JobView

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
    """What arrives damaged is fetched once more."""
    for last_try in (False, True):
        part = _Part(path)
        file = Arriving(part)
        try:
            yield Do(part.open)
            yield from fetch(context, call, file)
            return cast(Download, (yield Do(partial(part.publish, file))))
        except Damaged:
            if last_try:
                raise
        finally:
            part.discard()
    raise AssertionError("unreachable")


class _Part:
    """A hidden file beside its later place."""

    def __init__(self, path: Path) -> None:
        self._wanted = path
        self._hash = hashlib.sha256()
        self._left = contextlib.ExitStack()
        """What is still to be tidied up."""

    def open(self) -> None:
        path = self._wanted
        if path.exists() and not (path.is_dir() or path.is_file()):  # a device, such as /dev/null
            raise OSError(errno.EINVAL, "It is no file that can be replaced", str(path))
        self._into, self._name = (path, "") if path.is_dir() else (path.parent, path.name)
        self._into.mkdir(parents=True, exist_ok=True)
        self._path = self._into / f".polypod-{secrets.token_hex(6)}.part"
        self._file = self._path.open("xb")
        self._left.callback(self._path.unlink, missing_ok=True)
        self._left.callback(self._file.close)

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def publish(self, file: Arriving) -> Download:
        self._file.close()
        path = self._into / (self._name or _filename(file.headers) or "download")
        self._path.replace(path)
        media_type = file.headers.get("content-type", "").partition(";")[0]
        return Download(path, file.size, self.digest, media_type, file.cuts)

    def discard(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk, what was not yet written is told again
            self._left.close()


def _filename(headers: Headers) -> str:
    """The name in Content-Disposition, without any folder."""
    text = headers.get("content-disposition", "")
    found: Any = re.search(r"filename\*=UTF-8''([^;]+)", text, re.IGNORECASE)
    name = unquote(found[1]) if found else ""
    if not name and (found := re.search(r'filename="?([^";]+)"?', text)):
        name = found[1]
    name = re.split(r"[\\/]", name)[-1].strip()
    return "" if name in (".", "..") else name
