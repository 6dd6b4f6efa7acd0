"""Assets made from a result: other formats and previews, each made once, in a child process."""

from __future__ import annotations

import asyncio
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from polypod.assets import derive
from polypod.assets.blobs import media_type_of
from polypod.assets.storage import BlobStore, path_of
from polypod.errors import BadInput, Conflict, NotFound, Problem
from polypod.jobs.job import TERMINAL, Asset, Job
from polypod.jobs.store.store import Store
from polypod.model import Model

log = logging.getLogger("polypod.jobs")

VIEWS = tuple(f"view_{i}.png" for i in range(4))
AT_ONCE = 1


class Derived:
    """`work` is a folder of its own. `told` hears of what was made: the job, its new assets, facts
    about the mesh.
    """

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        work: Path,
        told: Callable[[Job, list[Asset], Mapping[str, Any]], None],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._work = work
        self._told = told
        self._room = asyncio.Semaphore(AT_ONCE)
        self._making: dict[tuple[str, str], asyncio.Task[list[Asset]]] = {}
        self._later: dict[str, tuple[Job, Asset]] = {}
        """By job: results whose views nobody has asked for yet."""
        self._preparing: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Removes what a server left that was killed at it."""
        await asyncio.to_thread(shutil.rmtree, self._work, ignore_errors=True)

    async def stop(self) -> None:
        self._later.clear()
        making = list(self._making.values())
        for task in making:
            task.cancel()
        preparing = [self._preparing] if self._preparing else []
        await asyncio.gather(*making, *preparing, return_exceptions=True)

    def prepare(self, job: Job, model: Model) -> None:
        """Make previews and facts in the background, where the result is a mesh.

        One after the other, so that who asks for a file waits for one of them, not for all.
        """
        result = job.asset(model.result_name(job.params))
        if result and _format(result.name) in derive.FORMATS:
            self._later[job.id] = job, result
            if self._preparing is None or self._preparing.done():
                self._preparing = asyncio.get_running_loop().create_task(self._prepare())

    async def _prepare(self) -> None:
        while self._later:
            job, result = self._later.pop(next(iter(self._later)))
            await asyncio.wait([self._make(job, result, VIEWS[0])])

    async def get(self, job: Job, model: Model | None, name: str) -> Asset:
        """The asset `name`, made now if it can be.

        Raises:
            NotFound: not a name that this job has or can have.
            Conflict: the job has no result (yet).
            BadInput, Unavailable: the result cannot be converted, or not now.
        """
        result_name = model.result_name(job.params) if model else ""
        formats = {f"model.{f}" for f in derive.FORMATS}
        if name != result_name and name not in VIEWS and name not in formats:
            if job.status not in TERMINAL and name in _declared(model):
                raise _too_early(job)
            known = ", ".join(sorted(a.name for a in job.assets)) or "none yet"
            raise NotFound(f"This job has no asset {name[:64]!r}.", f"It has: {known}.")
        result = job.asset(result_name)
        if result is None:
            raise _too_early(job)
        if _format(result.name) not in derive.FORMATS:
            raise BadInput(
                f"{result.name} is not a mesh that can be converted.", "Download it as it is."
            )
        made = await asyncio.shield(self._make(job, result, name))
        return next(a for a in made if a.name == name)

    def _make(self, job: Job, result: Asset, name: str) -> asyncio.Task[list[Asset]]:
        """One computation for each name; all views are one."""
        what = "views" if name in VIEWS else name
        if what == "views":
            self._later.pop(job.id, None)
        task = self._making.get((job.id, what))
        if task is None:
            work = self._views(job, result) if what == "views" else self._convert(job, result, name)
            task = asyncio.get_running_loop().create_task(work)
            self._making[job.id, what] = task
            task.add_done_callback(lambda done: self._made((job.id, what), done))
        return task

    def _made(self, key: tuple[str, str], task: asyncio.Task[list[Asset]]) -> None:
        del self._making[key]
        if not task.cancelled() and (error := task.exception()):
            log.warning("%s of job %s could not be made: %s", key[1], key[0], error)

    async def _views(self, job: Job, result: Asset) -> list[Asset]:
        async with self._room:
            folder = self._folder()
            try:
                source = await self._source(result)
                facts = await derive.previews(source, _format(result.name), folder)
                own = {asset.name for asset in job.assets}  # a model may have made its own
                made = [folder / name for name in VIEWS if name not in own]
                return await self._keep(job, made, facts)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    async def _convert(self, job: Job, result: Asset, name: str) -> list[Asset]:
        async with self._room:
            folder = self._folder()
            try:
                source = await self._source(result)
                target = folder / name
                await derive.convert(source, _format(result.name), target, _format(name))
                return await self._keep(job, [target], {})
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    async def _source(self, result: Asset) -> Path:
        try:
            return await path_of(self._blobs, result.file.digest)
        except KeyError:
            raise NotFound(
                f"The file of {result.name!r} is no longer kept.", "Submit the job again."
            ) from None

    def _folder(self) -> Path:
        self._work.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="derived-", dir=self._work))

    async def _keep(self, job: Job, paths: list[Path], facts: Mapping[str, Any]) -> list[Asset]:
        assets: list[Asset] = []
        for path in paths:
            ref = await asyncio.to_thread(
                self._blobs.put_file, path, media_type_of(path.name), path.name
            )
            asset = Asset(path.name, ref, "derived")
            if not await self._store.add_asset(job.id, asset):
                raise NotFound("The job has been deleted meanwhile.", "Submit it again.")
            assets.append(asset)
        if facts:
            await self._store.set_facts(job.id, facts)
        self._told(job, assets, facts)
        return assets


def _format(name: str) -> str:
    return name.rpartition(".")[2]


def _declared(model: Model | None) -> set[str]:
    return {name for stage in model.stages for name in stage.assets} if model else set()


def _too_early(job: Job) -> Problem:
    if job.status in TERMINAL:
        why = {
            "failed": "The job failed, so it has no result.",
            "cancelled": "The job was cancelled, so it has no result.",
        }.get(job.status, "The job was told to stop before its result.")
        return Conflict(why, "Submit it again, or `continue` it.", status_of_job=job.status)
    return Conflict(
        f"The job is {job.status}; this is not there yet.",
        "Follow status_url, and ask again when it is completed.",
        status_of_job=job.status,
        retry_after_s=2,
    )
