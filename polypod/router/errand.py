"""One job on one pod: hand it over, tell what happens to it, bring its files home."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from polypod import metrics, tracing
from polypod.assets.storage import BlobStore, path_of, patiently, renew_all
from polypod.client import ApiError, AssetView, Event, JobView
from polypod.errors import Problem, Unavailable
from polypod.jobs.job import Asset, FileRef, JobError, StageRun
from polypod.jobs.runner import Book
from polypod.jobs.stages import FILE_LOST
from polypod.router.endpoint import Endpoint, document
from polypod.router.noted import noted
from polypod.router.routed import RoutedLive

CHUNK = 1 << 20
HAND_OVER_TRIES = 5
_HOME = ("output", "manifest")


class Gone(Exception):
    """The pod does not have the job (any more)."""


class Refused(Exception):
    """The pod will not take the job, now or (`for_good`) ever."""

    def __init__(self, error: JobError, for_good: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.for_good = for_good


class Errand:
    """`run` returns when the job has ended here; cancelled, it leaves the pod as it is."""

    def __init__(
        self, live: RoutedLive, endpoint: Endpoint, book: Book, blobs: BlobStore, work: Path
    ) -> None:
        self._live = live
        self._endpoint = endpoint
        self._book = book
        self._blobs = blobs
        self._work = work
        self._fetching: dict[str, asyncio.Task[Asset]] = {}

    async def run(self, *, there: bool) -> None:
        """`there`: the pod has the job already, from before this router's start.

        Raises:
            Gone, Refused, ClientError, httpx.HTTPError: it did not end; see `Dispatcher`.
        """
        with noted(self._live, self._endpoint):
            await self._run(there)

    async def _run(self, there: bool) -> None:
        folder = Path(tempfile.mkdtemp(prefix="errand-", dir=self._work))
        try:
            if not there:
                await self._hand_over()
            await self._follow(folder)
        except ApiError as error:
            raise (Gone() if error.status in (404, 410) else error) from error
        finally:
            for task in self._fetching.values():
                task.cancel()
            await asyncio.gather(*self._fetching.values(), return_exceptions=True)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    # There

    async def _hand_over(self) -> None:
        live = self._live
        job = live.job
        body = {
            "model": job.model,
            "inputs": {name: asdict(ref) for name, ref in job.inputs.items()},
            "params": dict(job.params),
            "until": job.until,
            "card": job.card,
            "priority": job.priority,
        }
        for _ in range(HAND_OVER_TRIES):
            for ref in job.inputs.values():
                await self._send(ref)
            answer = await self._endpoint.http.put(
                f"/job/{job.id}", json=body, headers=tracing.headers(job.trace)
            )
            if answer.status_code < 300:
                if document(answer).get("status") not in ("failed", "cancelled"):
                    return
                await self._endpoint.client.delete(job.id)  # an earlier try of ours, ended there
                continue
            problem = _problem(answer)
            if answer.status_code == 409 and "missing" in problem:
                continue
            error = JobError(
                str(problem.get("code") or "refused"),
                str(problem.get("error") or f"The pod refused the job ({answer.status_code})."),
                str(problem.get("hint") or ""),
            )
            raise Refused(error, for_good=answer.status_code in (400, 413, 415, 422))
        raise Refused(JobError("refused", "The pod does not keep the inputs."), for_good=False)

    async def _send(self, ref: FileRef) -> None:
        path = f"/blobs/{ref.digest}"
        if (await self._endpoint.http.head(path)).status_code == 200:
            return
        headers = {"Content-Type": ref.media_type, "Content-Length": str(ref.size)}
        try:
            content = _chunks(await path_of(self._blobs, ref.digest))
        except KeyError:
            raise Refused(FILE_LOST, for_good=True) from None
        answer = await self._endpoint.http.put(path, content=content, headers=headers)
        answer.raise_for_status()
        metrics.relayed_out(ref.size)

    # Back

    async def _follow(self, folder: Path) -> None:
        client, job_id = self._endpoint.client, self._live.job.id
        async for event in client.events(job_id):
            self._tell(event, folder)
        view = (await client.job(job_id)).view
        if view.status == "completed":
            await self._bring_home(view, folder)
            await self._book.finish(self._live, "completed")
        elif view.status == "failed":
            error = view.error
            failure = JobError(error.code, error.message, error.hint) if error else None
            await self._book.finish(self._live, "failed", failure)
        else:
            raise Gone

    def _tell(self, event: Event, folder: Path) -> None:
        live, view = self._live, event.job
        if event.kind == "log":
            self._book.logged(live, str(event.data.get("line", "")))
            return
        if event.kind in ("snapshot", "asset"):
            for asset in view.assets:
                self._fetch(asset, folder)
        live.at, live.message = view.stage, view.message
        live.told_progress, live.told_eta_s = view.progress, view.eta_seconds
        if view.status != "queued" and live.job.status == "queued":
            self._book.began(live, view.started_at or time.time())
        if event.kind == "progress":
            self._book.progressed(live)
        elif not view.done and event.kind != "asset":
            self._book.moved(live)

    def _fetch(self, asset: AssetView, folder: Path) -> None:
        if asset.kind in _HOME and asset.sha256 and asset.name not in self._fetching:
            work = self._bring(asset, folder)
            self._fetching[asset.name] = asyncio.get_running_loop().create_task(work)

    async def _bring(self, view: AssetView, folder: Path) -> Asset:
        """Fetch one file, unless it is here; the client checks its digest."""
        ref = FileRef(view.sha256, view.size or 0, view.media_type, view.name)
        if not await renew_all(self._blobs, [view.sha256]):
            path = folder / view.name
            await self._endpoint.client.download(self._live.job.id, path, asset=view.name)
            metrics.relayed_in(ref.size)
            put = partial(self._blobs.put_file, path, view.media_type, view.name)
            ref = await patiently(put, math.inf, self._wait_for_storage)
            if ref.digest != view.sha256:
                raise Problem(f"{view.name} came with other bytes than announced.")
        asset = Asset(
            view.name, ref, "manifest" if view.kind == "manifest" else "output", view.stage
        )
        if asset.kind == "output" and not self._live.ended:
            self._live.assets.append(asset)
            self._book.gained(self._live, [asset])
        return asset

    def _wait_for_storage(self, problem: Unavailable) -> None:
        """The pod keeps the files until then."""
        self._live.message = problem.message
        self._book.moved(self._live)

    async def _bring_home(self, view: JobView, folder: Path) -> None:
        """All files of the completed job, in the pod's order, and how its stages went."""
        for asset in view.assets:
            self._fetch(asset, folder)
        brought = [await task for task in self._fetching.values()]
        by_name = {asset.name: asset for asset in brought}
        inputs = [a for a in self._live.assets if a.kind == "input"]
        order = [by_name[a.name] for a in view.assets if a.name in by_name]
        self._live.assets = [*inputs, *order]
        manifest = next((a for a in order if a.kind == "manifest"), None)
        if manifest:
            path = await path_of(self._blobs, manifest.file.digest)
            self._live.runs = await asyncio.to_thread(_stage_runs, path)
            for run in self._live.runs:
                metrics.stage_ended(self._live.model.name, run)


def _stage_runs(manifest: Path) -> list[StageRun]:
    """The stages as the pod's manifest tells them."""
    stages = json.loads(manifest.read_text())["stages"]
    return [
        StageRun(
            s["stage"],
            s["seconds"],
            s["device"],
            s["kept"],
            s.get("peak_memory_bytes", 0),
            s.get("peak_gpu_memory_bytes", 0),
        )
        for s in stages
    ]


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    with path.open("rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        return document(answer)
    except ValueError:
        return {}
