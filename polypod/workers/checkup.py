"""The doctor's word before the first worker is started, asked for again until it is good.

A service whose GPU, environment or weights are missing starts, says so, and takes no jobs: it never
answers with a stand-in's output.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from polypod.errors import Unavailable
from polypod.model import Model
from polypod.settings import Settings
from polypod.workers.devices import Devices

log = logging.getLogger("polypod.workers")

AGAIN_S = 5.0


class Checkup:
    def __init__(self, models: Iterable[Model], settings: Settings, devices: Devices) -> None:
        self._models = list(models)
        self._settings = settings
        self._devices = devices
        self._problems: list[tuple[str, str]] = []

    @property
    def well(self) -> bool:
        return not self._problems

    @property
    def reasons(self) -> list[str]:
        """Why no work can be done, and what to do; empty where it can."""
        return [f"{seen} {todo}" for seen, todo in self._problems]

    async def look(self) -> bool:
        """Whether all is well now. Takes milliseconds: files, sizes, and what the driver says."""
        await self._devices.look()
        if self._settings.doctor == "off":
            return True
        found = await asyncio.to_thread(self._examine)
        for seen, todo in found:
            if (seen, todo) not in self._problems:
                log.error("%s %s", seen, todo)
        self._problems = found
        return self.well

    async def wait_until_well(self) -> None:
        """Somebody may mount the weights, or finish `polypod setup`, meanwhile."""
        while not await self.look():  # noqa: ASYNC110  no event tells of files
            await asyncio.sleep(AGAIN_S)

    def check(self) -> None:
        """Raises Unavailable while no work can be done."""
        if self._problems:
            seen, todo = self._problems[0]
            raise Unavailable(seen, todo)

    def _examine(self) -> list[tuple[str, str]]:
        from polypod.build.doctor import examine

        findings = (f for m in self._models for f in examine(m, self._settings, self._devices))
        return [(finding.seen, finding.todo) for finding in findings if finding.blocks]
