"""What a server remembers of jobs that came by RunPod's protocol. It ends with the process."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from polypod.api.compat.protocol import TIMEOUT_CODE, Policy
from polypod.background import Background
from polypod.jobs.job import Job, JobError

if TYPE_CHECKING:
    from polypod.jobs.engine import Engine
    from polypod.jobs.live import Live

TICK_S = 0.25
REMEMBERED = 10_000

T = TypeVar("T")


class Desk:
    """Ends jobs that outlive their policy, and knows what of a stream was handed out.

    Belongs to the engine's event loop.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.retried: Counter[str] = Counter()
        """Jobs tried again, by model."""
        self._policies = _Newest[Policy]()
        self._taken = _Newest[set[str]]()
        self._watched: set[str] = set()
        self._watching: asyncio.Task[None] | None = None
        self._background = Background()

    def policy(self, job_id: str) -> Policy:
        return self._policies.get(job_id, Policy())

    def keep_to(self, job: Job, policy: Policy) -> None:
        """End the job when its policy says so."""
        if not policy.limits:
            return
        self._policies.put(job.id, policy)
        self._watched.add(job.id)
        if self._watching is None or self._watching.done():
            self._watching = self._background.run(self._watch())

    def take(self, job_id: str, assets: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of the assets that were not taken before."""
        taken = self._taken.get(job_id, set[str]())
        fresh = [asset for asset in assets if asset["name"] not in taken]
        self._taken.put(job_id, taken | {asset["name"] for asset in fresh})
        return fresh

    async def _watch(self) -> None:
        while self._watched:
            now = time.time()
            for job_id in list(self._watched):
                live, policy = self._engine.queue.lives.get(job_id), self.policy(job_id)
                if live is None:
                    self._watched.discard(job_id)
                elif policy.expired(live.job, now):
                    self._watched.discard(job_id)
                    self._background.run(self._forget(live))
                elif policy.overran(live.job, now):
                    self._watched.discard(job_id)
                    self._background.run(self._time_out(live, policy))
            await asyncio.sleep(TICK_S)

    async def _forget(self, live: Live) -> None:
        if await self._engine.finish(live, "cancelled"):  # else it ended by itself just now
            await self._engine.delete(live.job)

    async def _time_out(self, live: Live, policy: Policy) -> None:
        error = JobError(
            TIMEOUT_CODE,
            f"The job ran longer than its executionTimeout of {policy.execution_timeout_ms} ms.",
            "Retry it with a larger one, or with a lighter preset.",
        )
        await self._engine.finish(live, "failed", error)


class _Newest(OrderedDict[str, T]):
    """By job, of the newest jobs only."""

    def put(self, job_id: str, value: T) -> None:
        self[job_id] = value
        self.move_to_end(job_id)
        if len(self) > REMEMBERED:
            self.popitem(last=False)
