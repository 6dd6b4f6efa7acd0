"""Handing a job to a pod: its files, the stages that are done, then the job itself."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from polypod import metrics, tracing
from polypod.assets.storage import BlobStore, content_of, path_of, renew_all
from polypod.jobs.finished import FinishedStage
from polypod.jobs.job import FileRef, Job, JobError
from polypod.jobs.stages import FILE_LOST
from polypod.router.endpoint import Endpoint, document

CHUNK = 1 << 20
SMALL = 1 << 16
"""Bytes of a file that comes with what names it, in either direction."""
TRIES = 5
ANSWER_S = 5.0
"""How long a job that is no longer wanted waits for the answer to its hand-over."""
FOR_GOOD = (400, 413, 415, 422)


class Refused(Exception):
    """The pod will not take the job, now or (`for_good`) ever."""

    def __init__(self, error: JobError, for_good: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.for_good = for_good


async def hand_over(
    endpoint: Endpoint, job: Job, finished: Iterable[FinishedStage], blobs: BlobStore
) -> None:
    """The pod has the job when this returns. Repeating it is harmless.

    Raises:
        Refused: it does not take it.
        ClientError, httpx.HTTPError, ValueError: what came is no answer to that.
    """
    stages = [s for s in finished if await renew_all(blobs, [f.digest for f in s.files.values()])]
    files = [*job.inputs.values(), *(ref for stage in stages for ref in stage.files.values())]
    small = {ref.digest for ref in job.inputs.values() if ref.size <= SMALL}
    body = {
        "model": job.model,
        "inputs": {name: await _named(ref, blobs) for name, ref in job.inputs.items()},
        "params": dict(job.params),
        "until": job.until,
        "parent": job.parent,
        "card": job.card,
        "priority": job.priority,
        "stages": [stage.to_json() for stage in stages],
    }
    for _ in range(TRIES):
        for ref in files:
            if ref.digest not in small:
                await _send(endpoint.http, ref, blobs)
        answer = await _put(endpoint.http, job, body)
        if answer.status_code < 300:
            if document(answer).get("status") not in ("failed", "cancelled"):
                return
            await endpoint.client.delete(job.id)  # an earlier try of ours, ended there
            continue
        problem = _problem(answer)
        if not (answer.status_code == 409 and "missing" in problem):
            raise _refusal(answer, problem)
        small.clear()  # an older pod does not look for them in the job
    raise Refused(JobError("refused", "The pod does not keep the inputs."), for_good=False)


async def _named(ref: FileRef, blobs: BlobStore) -> dict[str, Any]:
    """The file's reference; with its `content` where that is small."""
    if ref.size > SMALL:
        return asdict(ref)
    try:
        content = await content_of(blobs, ref.digest)
    except KeyError:
        raise Refused(FILE_LOST, for_good=True) from None
    metrics.relayed_out(ref.size)
    return asdict(ref) | {"content": b64encode(content).decode()}


async def _send(http: httpx.AsyncClient, ref: FileRef, blobs: BlobStore) -> None:
    path = f"/blobs/{ref.digest}"
    if (await http.head(path)).status_code == 200:
        return
    headers = {"Content-Type": ref.media_type, "Content-Length": str(ref.size)}
    content = _chunks(await _path(ref, blobs))
    answer = await http.put(path, content=content, headers=headers)
    answer.raise_for_status()
    metrics.relayed_out(ref.size)


async def _path(ref: FileRef, blobs: BlobStore) -> Path:
    try:
        return await path_of(blobs, ref.digest)
    except KeyError:
        raise Refused(FILE_LOST, for_good=True) from None


async def _put(http: httpx.AsyncClient, job: Job, body: dict[str, Any]) -> httpx.Response:
    """Not cancelled half-way: what the pod got without our knowing would run there for nobody."""
    headers = tracing.headers(job.trace)
    put = asyncio.ensure_future(http.put(f"/job/{job.id}", json=body, headers=headers))
    try:
        return await asyncio.shield(put)
    except asyncio.CancelledError:
        await asyncio.wait([put], timeout=ANSWER_S)
        put.cancel()
        raise


def _refusal(answer: httpx.Response, problem: dict[str, Any]) -> Refused | ValueError:
    if not problem.get("error") or answer.status_code not in (*FOR_GOOD, 409, 429, 503):
        told = problem.get("error") or ""
        return ValueError(f"It answers a job with HTTP {answer.status_code}. {told}".strip())
    code, hint = problem.get("code") or "refused", problem.get("hint") or ""
    error = JobError(str(code), str(problem["error"]), str(hint))
    return Refused(error, for_good=answer.status_code in FOR_GOOD)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        return document(answer)
    except ValueError:
        return {}
