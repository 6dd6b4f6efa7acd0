"""Files of jobs: whole or in part (RFC 9110: Range, If-Range, ETag), in constant memory."""

from __future__ import annotations

import asyncio
import os
import re
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
from polypod.errors import BadInput, Conflict, NotFound
from polypod.jobs.job import TERMINAL, Asset, Job
from polypod.model import nearest

CHUNK = 1 << 20
RETRY_AFTER_S = 2

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
    formats = [*FORMATS, *(model.formats if model else ())]
    if format_ and format_ not in formats:
        raise BadInput(
            f"Unknown format {format_[:50]!r}.{nearest(format_[:50], formats)}",
            f"Use one of: {', '.join(dict.fromkeys(formats))}.",
            parameter="format",
        )
    name = f"model.{format_}" if format_ else own
    return await _asset_response(api, request, job, name, attachment=True)


async def _asset_response(
    api: Api, request: Request, job: Job, name: str, *, attachment: bool = False
) -> Response:
    try:
        asset, path = await api.engine.asset(job, name)
    except (NotFound, Conflict) as problem:
        if _was_removed(job, name):
            raise Gone(
                "The files of this job were removed when their time was over.",
                "Submit it again to make them anew.",
            ) from None
        if isinstance(problem, Conflict) and job.status not in TERMINAL:
            problem.extra.setdefault("retry_after_s", RETRY_AFTER_S)
        raise
    return file_response(request, job, asset, path, attachment=attachment)


def file_response(
    request: Request, job: Job, asset: Asset, path: Path, *, attachment: bool = False
) -> Response:
    """200, 206 or 304 for the file at `path`; a POST gets it whole.

    Raises:
        RangeNotSatisfiable: the range begins behind the end.
    """
    size, etag = asset.file.size, f'"{asset.file.digest}"'
    shown = asset.file.media_type.startswith(("image/", "application/json", "text/plain"))
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
    wanted = asked.get("range", "")
    if wanted and asked.get("if-range", etag) == etag:
        begin, end = parse_range(wanted, size)
    else:
        begin, end = 0, size
    headers["content-type"] = asset.file.media_type
    headers["content-length"] = str(end - begin)
    if end - begin == size:
        return FileSlice(path, 0, size, 200, headers)
    headers["content-range"] = f"bytes {begin}-{end - 1}/{size}"
    return FileSlice(path, begin, end, 206, headers)


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
        if scope["method"] == "HEAD":
            await self._start(send)
            await send({"type": "http.response.body", "body": b""})
            return
        await unless_disconnected(receive, self._stream(send))

    async def _start(self, send: Send) -> None:
        head = {"type": "http.response.start", "status": self.status_code}
        await send({**head, "headers": self.raw_headers})

    async def _stream(self, send: Send) -> None:
        file = await asyncio.to_thread(os.open, self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            await self._start(send)
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
