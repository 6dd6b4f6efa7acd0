"""Whether a worker still does anything: words, progress, or CPU time in its processes."""

from __future__ import annotations

import asyncio

from polypod.workers.process import session_cpu_s

LEAST_SHARE = 0.005
"""Less of a core than this is not work: the harness's own heartbeat takes a tenth of it."""
LEAST_CPU_S = 0.02
LOOKS = 10
"""CPU time is read this many times in the time after which a worker counts as hung."""


class Silence:
    """How long a process has been silent. Times are those of the event loop."""

    def __init__(self, pid: int, now: float) -> None:
        self._pid = pid
        self.broken(now)

    def broken(self, now: float) -> None:
        """It said something."""
        self._since = self._looked = now
        self._cpu_s: float | None = None

    async def lasts(self, limit_s: float, now: float) -> bool:
        """Whether there was no word and no work for `limit_s`; to be asked every now and then."""
        if now - self._looked < limit_s / LOOKS:
            return False
        since, self._looked = self._since, now
        cpu_s = await asyncio.to_thread(session_cpu_s, self._pid)
        if self._since != since:
            return False
        if self._cpu_s is None:
            self._cpu_s = cpu_s
        quiet_s = now - since
        if abs(cpu_s - self._cpu_s) >= max(LEAST_CPU_S, LEAST_SHARE * quiet_s):
            self._since, self._cpu_s = now, cpu_s
            return False
        return quiet_s >= limit_s
