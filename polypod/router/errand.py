"""One job on one pod: hand it over, tell what happens to it, bring its files home."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import time
from base64 import b64decode
from functools import partial
from typing import Any

from polypod import metrics
from polypod.assets.blobs import media_type_of
from polypod.assets.storage import BlobStore, content_of, patiently, renew_all
from polypod.client import ApiError, AssetView, Event, JobView
from polypod.client.fetch import Arriving
from polypod.client.views import read_json
from polypod.errors import Problem, Unavailable
from polypod.jobs.finished import FinishedStage, file_of, run_of
from polypod.jobs.job import Asset, FileRef, JobError, StageRun
from polypod.jobs.publish import MANIFEST
from polypod.jobs.runner import Book
from polypod.jobs.store.statements import storable
from polypod.router.endpoint import Endpoint, document, words
from polypod.router.handover import SMALL, Refused, hand_over
from polypod.router.noted import noted
from polypod.router.routed import RoutedLive

log = logging.getLogger("polypod.router")

AGAIN_S = (0.5, 2.0)
"""Waits before a pod that failed at a job is asked once more for the same."""
MOST_TEXT = 2001
"""Characters of a line that a model prints (`workers.output`)."""
MOST_LINES = 1000
MOST_ETA_S = 1e8
MOST_ASSETS = 1000
MOST_MANIFEST = 1 << 20
"""Bytes."""
MOST_STAGES = 100
STATUSES = ("queued", "processing", "completed", "failed", "cancelled")
_HOME = ("output", "manifest")


class Gone(Exception):
    """The pod does not have the job (any more)."""


class Broken(Exception):
    """The pod fails at the job, though it seems well; the message says how."""


class Errand:
    """`run` returns when the job has ended here; cancelled, it leaves the pod as it is."""

    def __init__(self, live: RoutedLive, endpoint: Endpoint, book: Book, blobs: BlobStore) -> None:
        self._live = live
        self._endpoint = endpoint
        self._book = book
        self._blobs = blobs
        self._fetching: dict[str, asyncio.Task[Asset]] = {}
        self._remaining = len(live.plan)
        """How many stages the pod has still to do."""
        self._runs: list[StageRun] = []
        """How they went, as the manifest tells."""

    async def run(self, *, there: bool) -> None:
        """`there`: the pod has the job already, from before this router's start.

        Raises:
            Gone, Refused, Broken: it did not end; see `Dispatcher`.
            Problem, OSError: something is wrong here, not there.
        """
        with noted(self._live, self._endpoint):
            for pause_s in AGAIN_S:
                with contextlib.suppress(Broken):
                    return await self._try(there)
                await asyncio.sleep(pause_s)
            await self._try(there)

    async def _try(self, there: bool) -> None:
        try:
            await self._go(there)
        except (Gone, Refused, Problem):
            raise
        except Exception as error:  # whatever a broken pod can bring about
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise
            log.info("job %s on %s: %r", self._live.job.id, self._endpoint.id, error)
            raise Broken(words(error)) from error

    async def _go(self, there: bool) -> None:
        gathering = asyncio.Event()
        gatherer = asyncio.create_task(self._gather(gathering))
        try:
            if not there:
                live = self._live
                await hand_over(self._endpoint, live.job, live.finished.values(), self._blobs)
            await self._follow(gathering)
        except ApiError as error:
            raise (Gone() if error.status in (404, 410) else error) from error
        finally:
            tasks: list[asyncio.Task[Any]] = [gatherer, *self._fetching.values()]
            self._fetching = {}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # Back

    async def _follow(self, gathering: asyncio.Event) -> None:
        client, live = self._endpoint.client, self._live
        view = JobView(live.job.id, "")
        async for event in client.events(live.job.id, files=SMALL):
            view = self._tell(event, gathering)
        if view.status == "completed":
            await self._bring_home(view)
            live.home = True
            await self._book.finish(live, "completed")
        elif view.status == "failed":
            error = view.error
            words = (error.code, error.message, error.hint) if error else ()
            failure = JobError(*(_text(each) for each in words)) if words else None
            live.home = True
            await self._book.finish(live, "failed", failure)
        else:
            raise Gone

    def _tell(self, event: Event, gathering: asyncio.Event) -> JobView:
        live, view = self._live, checked(event.job, self._live)
        if event.kind == "stopping":
            live.runs_there = False  # what is stopped in order is no loss that the job may cause
            return view
        if event.kind == "log":
            self._book.logged(live, _text(event.data.get("line", "")))
            return view
        if event.kind == "snapshot" and not live.log:  # printed before it was listened to
            for line in str(event.data.get("log") or "").splitlines()[-MOST_LINES:]:
                self._book.logged(live, _text(line))
        if event.kind in ("snapshot", "asset"):
            for asset in view.assets:
                self._fetch(asset)
        live.at, live.message = _text(view.stage), _text(view.message)
        live.told_progress = max(0.0, min(100.0, view.progress))
        live.told_eta_s = view.eta_seconds
        live.runs_there = view.status != "queued"
        if live.runs_there and live.job.status == "queued":
            self._book.began(live, _began_at(view, live))
        if view.status == "processing" and 0 < len(view.remaining_stages) < self._remaining:
            self._remaining = len(view.remaining_stages)
            gathering.set()
        if event.kind == "progress":
            self._book.progressed(live)
        elif not view.done and event.kind != "asset":
            self._book.moved(live)
        return view

    def _fetch(self, asset: AssetView) -> None:
        names = {MANIFEST, *(name for stage in self._live.model.stages for name in stage.assets)}
        ours = asset.kind in _HOME and asset.name in names
        if ours and asset.sha256 and asset.name not in self._fetching:
            work = self._bring(asset)
            self._fetching[asset.name] = asyncio.get_running_loop().create_task(work)

    async def _bring(self, view: AssetView) -> Asset:
        """Fetch one file, unless it is here."""
        told = {"digest": view.sha256, "size": view.size, "filename": view.name}
        ref = file_of(told | {"media_type": media_type_of(view.name)})
        if view.kind == "manifest" and ref.size > MOST_MANIFEST:
            raise ValueError("Its manifest is too large.")
        if not await renew_all(self._blobs, [ref.digest]):
            await (self._keep_small(ref, view.content) if view.content else self._keep(ref))
        elif (here := self._blobs.here(ref.digest)) and here.stat().st_size != ref.size:
            raise ValueError(f"{ref.filename} is not of the size that it tells.")
        kind = "manifest" if view.kind == "manifest" else "output"
        asset = Asset(view.name, ref, kind, _text(view.stage))
        if asset.kind == "manifest":
            self._runs = stage_runs(await content_of(self._blobs, ref.digest))
        new = asset.name not in {known.name for known in self._live.assets}
        if asset.kind == "output" and new and not self._live.ended:
            self._live.assets.append(asset)
            self._book.gained(self._live, [asset])
        return asset

    async def _keep(self, ref: FileRef) -> None:
        """Fetch a file straight into the store."""
        with self._blobs.writer() as writer:
            try:
                file = Arriving(writer, ref.size, ref.digest)
                await self._endpoint.client.fetch(f"/blobs/{ref.digest}", file)
            except ApiError as error:
                raise ValueError(f"It does not give {ref.filename}: {error.message}") from error
            metrics.relayed_in(ref.size)
            commit = partial(writer.commit, ref.media_type, ref.filename)
            await patiently(commit, math.inf, self._wait_for_storage)

    async def _keep_small(self, ref: FileRef, content: str) -> None:
        """It has come with its event."""
        data = b64decode(content)
        if (hashlib.sha256(data).hexdigest(), len(data)) != (ref.digest, ref.size):
            raise ValueError(f"{ref.filename} came with other bytes than announced.")
        metrics.relayed_in(ref.size)
        put = partial(self._blobs.put_bytes, data, ref.media_type, ref.filename)
        await patiently(put, math.inf, self._wait_for_storage)

    async def _gather(self, gathering: asyncio.Event) -> None:
        """Whenever told to: bring home what finished stages have left, for another pod."""
        while await gathering.wait():
            gathering.clear()
            try:
                answer = await self._endpoint.http.get(f"/job/{self._live.job.id}/stages")
                if answer.status_code == 200:
                    for given in document(answer)["stages"]:
                        await self._keep_stage(FinishedStage.from_json(given))
            except Exception as error:  # the job itself goes on without that
                log.info("stages of %s: %r", self._live.job.id, error)

    async def _keep_stage(self, stage: FinishedStage) -> None:
        live = self._live
        wanted = {planned.name for planned in live.plan[:-1]}
        if stage.stage not in wanted - live.finished.keys():
            return
        for ref in stage.files.values():
            if not await renew_all(self._blobs, [ref.digest]):
                await self._keep(ref)
        live.finished[stage.stage] = stage

    def _wait_for_storage(self, problem: Unavailable) -> None:
        """The pod keeps the files until then."""
        self._live.message = problem.message
        self._book.moved(self._live)

    async def _bring_home(self, view: JobView) -> None:
        """All files of the completed job, in the pod's order, and how its stages went."""
        for asset in view.assets:
            self._fetch(asset)
        brought = [await task for task in self._fetching.values()]
        by_name = {asset.name: asset for asset in brought}
        inputs = [a for a in self._live.assets if a.kind == "input"]
        order = [by_name[a.name] for a in view.assets if a.name in by_name]
        missing = self._wanted() - {asset.name for asset in order}
        if missing:
            raise ValueError(f"It says that the job is done, without {', '.join(sorted(missing))}.")
        self._live.assets = [*inputs, *order]
        self._live.runs = self._runs
        for run in self._live.runs:
            metrics.stage_ended(self._live.model.name, run)

    def _wanted(self) -> set[str]:
        """What a completed job cannot be without."""
        job, model = self._live.job, self._live.model
        return {MANIFEST} if job.until else {MANIFEST, model.result_name(job.params)}


def checked(view: JobView, live: RoutedLive) -> JobView:
    """Raises ValueError where it is not a state of the job."""
    if view.id != live.job.id or view.status not in STATUSES or not _is_eta(view.eta_seconds):
        raise ValueError("What it answers is not the state of the job.")
    if len(view.assets) > MOST_ASSETS:
        raise ValueError("It tells of more files than a job has.")
    return view


def _is_eta(told: object) -> bool:
    return told is None or (isinstance(told, int | float) and 0 <= told < MOST_ETA_S)


def _text(told: object) -> str:
    """As it can be kept and told on, and no longer than a pod's own words are."""
    return storable(str(told)[:MOST_TEXT])


def _began_at(view: JobView, live: RoutedLive) -> float:
    """By this machine's clock, which the pod's may not agree with."""
    now = time.time()
    return max(live.job.created_at, min(view.started_at or now, now))


def stage_runs(manifest: bytes) -> list[StageRun]:
    """The stages as the pod's manifest tells them."""
    memory = {"peak_memory": "peak_memory_bytes", "peak_gpu_memory": "peak_gpu_memory_bytes"}
    stages = read_json(manifest)["stages"]
    if len(stages) > MOST_STAGES:  # each would be a series of metrics for ever
        raise ValueError("Its manifest tells of more stages than a model has.")
    return [run_of(s | {ours: s.get(theirs, 0) for ours, theirs in memory.items()}) for s in stages]
