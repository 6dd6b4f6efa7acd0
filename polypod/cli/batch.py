"""Pictures on their way: submitted in order, followed over one connection, saved as they end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polypod.cli.given import is_url
from polypod.cli.output import explain
from polypod.cli.progress import Display, display
from polypod.client import ApiError, AsyncClient, AsyncJobHandle, ClientError, Event, JobView
from polypod.client.views import Json

PATIENCE_S = 600.0
"""How long the service may be out of reach while its jobs are followed."""
IN_FLIGHT = 100
"""Unfinished jobs at once; more pictures wait here (their ids go into one URL)."""
GATHER_S = 0.2
"""Jobs accepted within this time join the event connection together."""
GONE = (
    "What the earlier job kept of {stage} is gone, or was made by another version of the model.",
    "Run it without --skip-stage1.",
)
VIEWS = tuple(f"view_{number}.png" for number in range(4))
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Order:
    """What is wanted."""

    photos: tuple[str, ...]
    models: tuple[str, ...] = ("",)
    """Each photo goes to each of them; empty: the only one that is served."""
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    inputs: Mapping[str, str] = field(default_factory=dict[str, str])
    until: str = ""
    parent: str = ""
    """The job to continue, in place of a new one."""
    kept: str = ""
    """The parent's stage that must not run again: where it would, the job is cancelled."""
    format: str = ""
    out: Path = Path("out")
    detach: bool = False
    as_json: bool = False


@dataclass
class Item:
    """A picture on its way."""

    source: str
    name: str
    model: str = ""
    job: JobView | None = None
    files: dict[str, Path] = field(default_factory=dict[str, Path])
    """Paths by what they are: `result`, or the asset's name."""
    error: tuple[str, str] | None = None
    notes: list[str] = field(default_factory=list[str])
    seconds: float = 0.0
    begun: float = field(default_factory=time.monotonic)
    key: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def open(self) -> bool:
        """Whether it has a job that nobody has seen end."""
        return self.job is not None and not self.job.done

    @property
    def unsaved(self) -> bool:
        """Whether it has a job, and neither a result nor an error."""
        return self.job is not None and not self.seconds and self.error is None


async def make(
    order: Order, items: Sequence[Item], url: str, api_key: str, patience_s: float = PATIENCE_S
) -> None:
    """Submits and follows all items and saves their results; what became of each is in it."""
    async with AsyncClient(url, api_key=api_key, patience_s=0) as first:
        await first.health()  # not there at all: said at once
    async with AsyncClient(url, api_key=api_key, patience_s=patience_s) as client:
        with display(as_json=order.as_json) as shown:
            await Batch(client, order, items, shown).run()


class Batch:
    """Items on their way: submitted in order, followed over one connection, saved as they end."""

    def __init__(
        self, client: AsyncClient, order: Order, items: Sequence[Item], shown: Display
    ) -> None:
        self._client = client
        self._order = order
        self._items = items
        self._shown = shown
        self._running = {item.job.id: item for item in items if item.job and item.open}
        self._news = asyncio.Event()
        self._room = asyncio.Semaphore(IN_FLIGHT)
        self._saving: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        submitting = asyncio.create_task(self._submit_all())
        try:
            if not self._order.detach:
                await self._follow_all(submitting)
            await submitting
            await asyncio.gather(*self._saving)
        finally:
            left = [submitting, *self._saving]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _submit_all(self) -> None:
        loop = asyncio.get_running_loop()
        joining: asyncio.TimerHandle | None = None
        for item in self._items:
            if item.job:
                self._took(item, item.job)
                continue
            await self._room.acquire()
            item.begun = time.monotonic()
            self._shown.say(item.name, "submitting")
            try:
                item.job = await self._submit(item)
            except (ApiError, OSError, ValueError) as error:
                self._room.release()
                self._failed(item, explain(error))
                continue
            self._took(item, item.job)
            if joining:
                joining.cancel()
            joining = loop.call_later(GATHER_S, self._news.set)
        if joining:
            joining.cancel()
        self._news.set()

    async def _submit(self, item: Item) -> JobView:
        """Waits for as long as the queue is full."""
        while True:
            try:
                handle = await self._send(item)
            except ApiError as error:
                if error.code != "queue_full":
                    raise
                await asyncio.sleep(error.retry_after_s or 2)
            else:
                return handle.view

    async def _send(self, item: Item) -> AsyncJobHandle:
        order = self._order
        if order.parent:
            return await self._client.continue_(
                order.parent, order.params, until=order.until, idempotency_key=item.key
            )
        return await self._client.generate(
            item.source,
            item.model or None,
            order.params,
            inputs=order.inputs,
            until=order.until,
            idempotency_key=item.key,
        )

    def _took(self, item: Item, job: JobView) -> None:
        self._shown.show(item.name, job)
        if job.done:
            self._ended(item)
        elif self._order.detach:
            self._room.release()
        else:
            self._running[job.id] = item

    async def _follow_all(self, submitting: asyncio.Task[None]) -> None:
        while self._running or not submitting.done():
            news = asyncio.ensure_future(self._news.wait())
            await asyncio.wait({submitting, news}, return_when=asyncio.FIRST_COMPLETED)
            news.cancel()
            self._news.clear()
            while self._running and not self._news.is_set():
                await self._follow(list(self._running))

    async def _follow(self, jobs: Sequence[str]) -> None:
        """Until all have ended or others have joined."""
        listening = asyncio.create_task(self._listen(jobs))
        news = asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait({listening, news}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            listening.cancel()
            await asyncio.gather(news, listening, return_exceptions=True)
        if not listening.cancelled():
            listening.result()

    async def _listen(self, jobs: Sequence[str]) -> None:
        try:
            async with aclosing(self._client.events(*jobs)) as events:
                async for event in events:
                    self._heard(event)
        except ApiError as error:
            if error.status != 404 or not await self._give_up_deleted(jobs):
                raise

    async def _give_up_deleted(self, jobs: Sequence[str]) -> bool:
        """Whether there are any; the others go on."""
        before = len(self._running)
        for job_id in jobs:
            try:
                await self._client.job(job_id)
            except ApiError as error:
                if error.status != 404:
                    raise
                if item := self._running.pop(job_id, None):
                    self._room.release()
                    self._failed(item, explain(error))
        return len(self._running) < before

    def _heard(self, event: Event) -> None:
        item = self._running.get(event.job.id)
        if item is None:
            return
        item.job = event.job
        self._shown.show(item.name, event.job)
        if self._order.kept and event.job.stage == self._order.kept and item.error is None:
            item.error = _gone(self._order.kept)
            self._saving.add(asyncio.create_task(self._cancel(event.job)))
        if event.job.done:
            del self._running[event.job.id]
            self._ended(item)

    def _ended(self, item: Item) -> None:
        self._room.release()
        task = asyncio.create_task(self._save(item))
        self._saving.add(task)

    async def _cancel(self, job: JobView) -> None:
        with contextlib.suppress(ClientError):
            await self._client.cancel(job)

    async def _save(self, item: Item) -> None:
        assert item.job
        if item.error or item.job.status != "completed":
            error = item.job.error
            what = error.message if error else f"The job was {item.job.status}."
            self._failed(item, item.error or (what, error.hint if error else ""))
            return
        self._shown.say(item.name, "saving")
        try:
            item.job = (await self._client.job(item.job.id)).view
            await self._save_files(item, item.job)
            item.job = (await self._client.job(item.job.id)).view
        except (ClientError, OSError) as error:
            self._failed(item, explain(error))
        else:
            item.seconds = time.monotonic() - item.begun
            self._shown.say(item.name, "saved")

    async def _save_files(self, item: Item, job: JobView) -> None:
        if not job.download_url:  # stopped by `until`
            names = [a.name for a in job.assets if a.kind in ("output", "manifest")]
            await asyncio.gather(*(self._save_asset(item, job, name) for name in names))
            return
        kind = self._order.format or _ending(job)
        path = self._order.out / f"{item.name}.{kind}"
        saved = await self._client.download(job, path, format=self._order.format or None)
        item.files["result"] = saved.path
        extras = (*VIEWS, MANIFEST)
        done = await asyncio.gather(
            *(self._save_asset(item, job, name) for name in extras), return_exceptions=True
        )
        for name, problem in zip(extras, done, strict=True):
            if isinstance(problem, Exception):
                item.notes.append(f"no {name}: {' '.join(explain(problem))}")
        if self._order.kept and not _was_kept(item.files.get(MANIFEST), self._order.kept):
            item.notes.append(f"{self._order.kept} ran again: {_gone(self._order.kept)[0]}")

    async def _save_asset(self, item: Item, job: JobView, name: str) -> None:
        path = self._order.out / f"{item.name}_{Path(name).name}"  # `name` leads to no other folder
        item.files[name] = (await self._client.download(job, path, name)).path

    def _failed(self, item: Item, error: tuple[str, str]) -> None:
        item.error = error
        self._shown.say(item.name, "failed")


def items_of(order: Order) -> list[Item]:
    """One for each photo and model; with several models their names are in the files'."""
    several = len(order.models) > 1
    return [
        Item(photo, f"{name}_{model}" if several else name, model)
        for photo, name in unique_names(order.photos)
        for model in order.models
    ]


def unique_names(photos: Iterable[str]) -> list[tuple[str, str]]:
    """Each with the name of its files: the photo's stem, numbered where it comes again."""
    named: list[tuple[str, str]] = []
    taken: set[str] = set()
    for photo in photos:
        path = urlsplit(photo).path if is_url(photo) else photo
        stem = Path(path).stem or "photo"
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name.casefold())
        named.append((photo, name))
    return named


def _gone(stage: str) -> tuple[str, str]:
    return GONE[0].format(stage=stage), GONE[1]


def _was_kept(manifest: Path | None, stage: str) -> bool:
    told: Json = json.loads(manifest.read_text()) if manifest else {}
    return all(run["kept"] for run in told.get("stages", ()) if run["stage"] == stage)


def _ending(job: JobView) -> str:
    """Ending of the main result: `output_format` of the job's parameters."""
    params: Json = job.raw.get("params") or {}
    ending = str(params.get("output_format") or "glb")
    return ending if ending.isalnum() else "glb"
