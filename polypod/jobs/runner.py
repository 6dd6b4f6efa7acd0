"""The seam between the engine and what does the work: a pod's stages, or a router's endpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from polypod.assets.storage import BlobStore
from polypod.jobs.estimates import Estimates
from polypod.jobs.job import Asset, Job, JobError, Status
from polypod.jobs.live import Live
from polypod.jobs.queue import Queue
from polypod.jobs.store.store import Store
from polypod.model import Model
from polypod.settings import Settings


class Runner(Protocol):
    """Does the work of jobs between their submit and their end."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...

    def live(self, job: Job, model: Model) -> Live:
        """How it holds an unfinished job."""
        ...

    def lead(self) -> None:
        """Every unfinished job has been added."""
        ...

    def add(self, live: Live) -> None:
        """A job that is new, or taken over from a server that ended."""
        ...

    def drop(self, live: Live) -> None:
        """The job has ended: what still works on it must stop."""
        ...

    def remember(self, keys: list[str]) -> None:
        """These stages are kept now, too."""
        ...

    def forgot(self, keys: list[str]) -> None:
        """These stages are kept no longer."""
        ...

    def check(self, model: Model, params: Mapping[str, Any], until: str) -> None:
        """Raises BadInput for a job that nothing here could do, Unavailable if none can be now."""
        ...

    def works_on(self, live: Live) -> bool:
        """Whether anything has begun with what comes next for it, or keeps what was made."""
        ...

    def eta(self, live: Live, ahead: int) -> float | None:
        """Seconds until the job is done, with `ahead` queued jobs before it; None: not known."""
        ...

    @property
    def ready(self) -> bool: ...

    def describe(self) -> dict[str, Any]:
        """Its part of `GET /health`; `reasons` say why it cannot work."""
        ...


class Book(Protocol):
    """Where a runner reads what there is, and writes what happens to jobs: the engine."""

    models: dict[str, Model]
    settings: Settings
    queue: Queue
    store: Store
    blobs: BlobStore
    estimates: Estimates

    @property
    def leads(self) -> bool:
        """Whether the unfinished jobs are this server's to do."""
        ...

    def learn(self, models: Iterable[Model]) -> None: ...
    def began(self, live: Live, at: float) -> None: ...
    def moved(self, live: Live) -> None: ...
    def progressed(self, live: Live) -> None: ...
    def logged(self, live: Live, line: str) -> None: ...
    def gained(self, live: Live, assets: list[Asset]) -> None: ...
    async def finish(self, live: Live, status: Status, error: JobError | None = None) -> bool: ...
