"""How long a stage takes: the running median of its last runs, by model, preset and device."""

from __future__ import annotations

import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from functools import lru_cache

from polypod.jobs.live import Live

REMEMBERED = 50
_Key = tuple[str, str, str, str]


class Estimates:
    """`device_of` tells the device of a slot."""

    def __init__(self, device_of: Callable[[str], str]) -> None:
        self._device_of = device_of
        self._seconds: defaultdict[_Key, deque[float]] = defaultdict(
            lambda: deque[float](maxlen=REMEMBERED)
        )
        self._median = lru_cache(maxsize=1024)(self._compute)

    def add(self, model: str, stage: str, device: str, preset: str, seconds: float) -> None:
        self._seconds[model, stage, device, preset].append(seconds)
        self._median.cache_clear()

    def work_left(self, live: Live) -> float | None:
        """Seconds of work left in this job; None where one of its stages was never seen."""
        total = 0.0
        preset = str(live.job.params.get("preset", ""))
        for stage in live.plan[live.done :]:
            device = self._device_of(stage.slot)
            median = self._median((live.model.name, stage.name, device, preset))
            if median is None:
                return None
            total += median * (1 - live.fraction if stage.name == live.at else 1)
        return total

    def until_done(
        self, live: Live, running: Sequence[Live], ahead: int, lanes: int
    ) -> float | None:
        """Seconds until this job is done.

        `running` jobs and `ahead` queued ones, taken to be like this one, share `lanes` first.
        """
        own = self.work_left(live)
        if own is None:
            return None
        if live.job.status != "queued":
            return own
        before = sum(self.work_left(other) or 0.0 for other in running) + ahead * own
        return before / max(lanes, 1) + own

    def _compute(self, key: _Key) -> float | None:
        seconds = self._seconds.get(key)
        return statistics.median(seconds) if seconds else None
