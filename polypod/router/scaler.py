"""Does what `scale` decides: wakes the pods of this machine, and stops them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass

from polypod.router.dispatch import Dispatcher
from polypod.router.endpoint import Endpoint
from polypod.router.scale import Pod, Scale, Start, decide

EVERY_S = 0.5


@dataclass(frozen=True)
class Scaled:
    """An entry of the fleet whose pods may be woken and stopped. `pods` are ids of endpoints."""

    model: str
    min: int
    max: int
    idle_s: float
    pods: tuple[str, ...]


class Scaler:
    def __init__(self, scaled: tuple[Scaled, ...], dispatcher: Dispatcher) -> None:
        self._scaled = scaled
        self._dispatcher = dispatcher
        self._worked: dict[str, float] = {}
        """When each pod was last seen with a job, or begun (monotonic seconds)."""

    async def run(self) -> None:
        while True:
            self.step(time.monotonic())
            await asyncio.sleep(EVERY_S)

    def step(self, now: float) -> None:
        """One look. Where another router leads, it sees what there is, and does nothing."""
        endpoints, backlog = self._dispatcher.endpoints, self._dispatcher.backlog()
        scales = [self._scale(scaled, endpoints, backlog, now) for scaled in self._scaled]
        for action in decide(scales, now) if self._dispatcher.acts else ():
            endpoint = endpoints[action.pod]
            if isinstance(action, Start):
                endpoints.wake(endpoint)
            else:
                endpoints.put_to_sleep(endpoint)

    def _scale(
        self,
        scaled: Scaled,
        endpoints: Mapping[str, Endpoint],
        backlog: Mapping[str, int],
        now: float,
    ) -> Scale:
        there = [endpoints[pod] for pod in scaled.pods if pod in endpoints]
        pods = tuple(self._pod(e, now) for e in there if e.state != "draining")
        waiting = backlog.get(scaled.model, 0)
        return Scale(scaled.min, scaled.max, scaled.idle_s, waiting, pods)

    def _pod(self, endpoint: Endpoint, now: float) -> Pod:
        running, jobs = endpoint.state != "stopped", len(endpoint.jobs)
        if jobs or not running:
            self._worked[endpoint.id] = now
        return Pod(endpoint.id, running, jobs, self._worked.setdefault(endpoint.id, now))
