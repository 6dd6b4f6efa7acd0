"""Files of jobs: whole or in part (RFC 9110: Range, If-Range, ETag), in constant memory.

From a folder or the cache they are sent as they lie there; from a bucket the client is sent to the
bucket itself, or they come through here.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Generator
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from polypod.access.keys import READ
from polypod.api.endpoint import Api, needs, unless_disconnected
from polypod.api.problems import Gone, RangeNotSatisfiable
from polypod.assets.blobs import MEDIA_TYPES
from polypod.assets.derive import FORMATS
from polypod.assets.storage import BlobStore
from polypod.errors import BadInput, Conflict, NotFound, Unavailable
from polypod.jobs.job import TERMINAL, Asset, Job
from polypod.model import Model, nearest

log = logging.getLogger("polypod.api")

CHUNK = 1 << 20
RETRY_AFTER_S = 2
SHOWN = ("image/", "video/", "application/json", "text/plain")
"""Media types that a browser shows in place; others it saves."""

_ENDINGS = {kind: ending for ending, kind in reversed(MEDIA_TYPES.items())}
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


@needs(READ)
async def download(api: Api, request: Request) -> Response:
    """GET /job/{job_id}/download: the main result, in another format if asked for."""
    job = await api.job(request.path_params["job_id"], request)
    return await result_response(api, request, job, request.query_params.get("format", ""))


@needs(READ)
async def result(api: Api, request: Request) -> Response:
    """GET /job/{job_id}/result/{asset}: any asset, as soon as it exists."""
    job = await api.job(request.path_params["job_id"], request)
    return await _asset_response(api, request, job, request.path_params["asset"])


async def result_response(api: Api, request: Request, job: Job, format_: str) -> Response:
    """The main result of a completed job."""
    if job.status != "completed":
        raise _no_result(job)
    model = api.engine.models.get(job.model)
    own = model.result_name(job.params) if model else _first_result(job)
    if format_:
        check_format(format_, model)
    name = f"model.{format_}" if format_ else own
    return await _asset_response(api, request, job, name, attachment=True)


def check_format(format_: str, model: Model | None) -> None:
    """BadInput for a format that no result of the model can be had in."""
    formats = [*FORMATS, *(model.formats if model else ())]
    if format_ not in formats:
        raise BadInput(
            f"Unknown format {format_[:50]!r}.{nearest(format_[:50], formats)}",
            f"Use one of: {', '.join(dict.fromkeys(formats))}.",
            parameter="format",
        )


async def _asset_response(
    api: Api, request: Request, job: Job, name: str, *, attachment: bool = False
) -> Response:
    try:
        asset = await api.engine.find_asset(job, name)
        return await file_response(api.engine.blobs, request, job, asset, attachment=attachment)
    except (NotFound, Conflict) as problem:
        if _was_removed(job, name):
            raise Gone(
                "The files of this job were removed when their time was over.",
                "Submit it again to make them anew.",
            ) from None
        if isinstance(problem, Conflict) and job.status not in TERMINAL:
            problem.extra.setdefault("retry_after_s", RETRY_AFTER_S)
        raise


async def file_response(
    blobs: BlobStore, request: Request, job: Job, asset: Asset, *, attachment: bool = False
) -> Response:
    """200, 206 or 304 with the file, or 307 to where it is; a POST gets it whole, from here.

    Raises:
        RangeNotSatisfiable: the range begins behind the end.
        NotFound: it is not kept any more.
        Unavailable: the storage fails.
    """
    size, etag = asset.file.size, f'"{asset.file.digest}"'
    shown = asset.file.media_type.startswith(SHOWN)
    headers = {
        "accept-ranges": "bytes",
        "cache-control": "private, no-cache",
        "content-disposition": _disposition(job, asset, attachment or not shown),
        "etag": etag,
        "x-content-type-options": "nosniff",
    }
    asked = request.headers if request.method in ("GET", "HEAD") else Headers()
    if _matches(asked.get("if-none-match", ""), etag):
        return Response(None, 304, headers)
    if request.method == "GET" and blobs.remote:
        url = await _elsewhere(blobs, asset, headers["content-disposition"])
        if url:
            return Response(None, 307, headers | {"location": url, "cache-control": "no-store"})
    wanted = asked.get("range", "")
    if wanted and asked.get("if-range", etag) == etag:
        begin, end = parse_range(wanted, size)
    else:
        begin, end = 0, size
    headers["content-type"] = asset.file.media_type
    headers["content-length"] = str(end - begin)
    status = 200 if end - begin == size else 206
    if status == 206:
        headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
    if request.method == "HEAD":
        return Response(None, status, headers)
    if path := blobs.here(asset.file.digest):
        return FileSlice(path, begin, end, status, headers)
    source = blobs.stream(asset.file.digest, begin, None if end == size else end)
    try:
        return await Relay(source, status, headers).begun()
    except KeyError:
        raise _not_kept(asset) from None


async def _elsewhere(blobs: BlobStore, asset: Asset, disposition: str) -> str | None:
    file = asset.file
    try:
        return await asyncio.to_thread(blobs.url, file.digest, disposition, file.media_type)
    except KeyError:
        raise _not_kept(asset) from None


def _not_kept(asset: Asset) -> NotFound:
    return NotFound(f"The file of {asset.name!r} is no longer kept.", "Submit the job again.")


def parse_range(text: str, size: int) -> tuple[int, int]:
    """Begin and end (exclusive) of the one range in a Range header.

    Everything for what is malformed, in other units or has several ranges, as RFC 9110 allows.

    Raises:
        RangeNotSatisfiable: no byte is in the range.
    """
    match = _RANGE.fullmatch(text.strip().replace(" ", "")) if len(text) < 100 else None
    first, last = match.groups() if match else ("", "")
    if not first and not last:
        return 0, size
    if not first:
        begin, end = max(size - int(last), 0), size
    else:
        begin, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < begin:
            return 0, size
    if begin >= size:
        raise RangeNotSatisfiable(
            f"The file has {size} bytes; the range begins behind its end.",
            "Ask without Range for the whole file.",
            size=size,
        )
    return begin, end


class FileSlice(Response):
    """The bytes from `begin` up to `end` of a file, read in a thread, chunk by chunk.

    A file that has been opened stays whole, even if it is removed meanwhile.
    """

    def __init__(
        self, path: Path, begin: int, end: int, status: int, headers: dict[str, str]
    ) -> None:
        super().__init__(None, status, headers)
        self._path, self._begin, self._end = path, begin, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_disconnected(receive, self._stream(send))

    async def _stream(self, send: Send) -> None:
        file = await asyncio.to_thread(os.open, self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await _start(self, send)
            at = self._begin
            while at < self._end:
                size = min(CHUNK, self._end - at)
                chunk = await asyncio.to_thread(os.pread, file, size, at)
                if not chunk:
                    raise OSError(f"{self._path} is shorter than it should be")
                at += len(chunk)
                body = {"type": "http.response.body", "body": chunk}
                await send({**body, "more_body": at < self._end})
            if self._begin == self._end:
                await send({"type": "http.response.body", "body": b""})
        finally:
            os.close(file)


class Relay(Response):
    """The chunks of a blocking generator, each made in a thread while the one before is sent."""

    def __init__(self, source: Generator[bytes], status: int, headers: dict[str, str]) -> None:
        super().__init__(None, status, headers)
        self._source = source
        self._coming = self._fetch()

    async def begun(self) -> Relay:
        """Itself once the first chunk is there: until then an error can be the answer."""
        await self._coming
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await unless_disconnected(receive, self._relay(send))

    async def _relay(self, send: Send) -> None:
        try:
            chunk = await self._coming
            await _start(self, send)
            while chunk:
                self._coming = self._fetch()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                chunk = await asyncio.shield(self._coming)
            await send({"type": "http.response.body", "body": b""})
        except Unavailable as problem:  # the server cuts the connection, as too little has come
            log.warning("a download broke off: %s", problem)
        finally:
            self._coming.add_done_callback(self._close)

    def _fetch(self) -> asyncio.Future[bytes]:
        return asyncio.get_running_loop().run_in_executor(None, next, self._source, b"")

    def _close(self, last: asyncio.Future[bytes]) -> None:
        """Once no thread is in the generator."""
        last.exception()
        last.get_loop().run_in_executor(None, self._source.close)


async def _start(response: Response, send: Send) -> None:
    head = {"type": "http.response.start", "status": response.status_code}
    await send({**head, "headers": response.raw_headers})


def _no_result(job: Job) -> Conflict:
    if job.status == "failed" and job.error:
        return Conflict(f"The job failed: {job.error.message}", job.error.hint, job_id=job.id)
    if job.status in TERMINAL:
        return Conflict("The job was cancelled, so it has no result.", "Submit it again.")
    return Conflict(
        f"The job is {job.status}; its result is not there yet.",
        "Follow status_url, and ask again when it is completed.",
        job_id=job.id,
        retry_after_s=RETRY_AFTER_S,
    )


def _first_result(job: Job) -> str:
    return next((a.name for a in job.assets if a.name.startswith("model.")), "model")


def _was_removed(job: Job, name: str) -> bool:
    """Whether the job had the file, or has lost its files: one that completed has a manifest."""
    if job.status not in TERMINAL:
        return False
    lost = job.status == "completed" and job.asset("manifest.json") is None
    return lost or job.asset(name) is not None or name in job.inputs


def _disposition(job: Job, asset: Asset, attachment: bool) -> str:
    """A name that tells model and job, with the ending that goes with the content."""
    stem, dot, ending = asset.name.rpartition(".")
    if not dot:
        stem, ending = asset.name, _ENDINGS.get(asset.file.media_type, "bin")
    middle = job.id[:8] if stem == "model" else f"{job.id[:8]}-{stem}"
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", f"{job.model}-{middle}.{ending}")
    return f'{"attachment" if attachment else "inline"}; filename="{safe}"'


def _matches(header: str, etag: str) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags
