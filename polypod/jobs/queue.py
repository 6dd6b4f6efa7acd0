"""The unfinished jobs in order: positions, and the oldest that is ready for each worker."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator

from polypod.jobs.live import Live

_Order = tuple[int, int]


class Queue:
    """Every question is answered in about logarithmic time, with 10 000 jobs as with ten."""

    def __init__(self) -> None:
        self.lives: dict[str, Live] = {}
        self._of_model: Counter[str] = Counter()
        self._queued: list[_Order] = []
        self._processing: dict[str, Live] = {}
        self._heaps: defaultdict[Hashable, list[tuple[_Order, str]]] = defaultdict(
            list[tuple[_Order, str]]
        )

    def add(self, live: Live) -> None:
        self.lives[live.job.id] = live
        self._of_model[live.model.name] += 1
        if live.job.status == "queued":
            insort(self._queued, live.order)
        else:
            self._processing[live.job.id] = live

    def begin(self, live: Live) -> None:
        """The job is no longer queued: its first stage has started."""
        self._leave_line(live)
        self._processing[live.job.id] = live

    def remove(self, live: Live) -> None:
        if self.lives.pop(live.job.id, None):
            self._of_model[live.model.name] -= 1
            self._leave_line(live)
            self._processing.pop(live.job.id, None)

    def clear(self) -> None:
        self.lives.clear()
        self._of_model.clear()
        self._queued.clear()
        self._processing.clear()
        self._heaps.clear()

    def _leave_line(self, live: Live) -> None:
        index = bisect_left(self._queued, live.order)
        if index < len(self._queued) and self._queued[index] == live.order:
            del self._queued[index]

    @property
    def queued(self) -> int:
        return len(self._queued)

    @property
    def processing(self) -> dict[str, Live]:
        return self._processing

    def counts(self) -> Counter[tuple[str, str]]:
        """Jobs by model, and by `queued` or `processing`."""
        running = Counter(live.model.name for live in self._processing.values())
        found: Counter[tuple[str, str]] = Counter()
        for model, count in self._of_model.items():
            found[model, "processing"] = running[model]
            found[model, "queued"] = count - running[model]
        return found

    def position(self, live: Live) -> int:
        """1 is next to run; 0 is running."""
        if live.job.id in self._processing:
            return 0
        return bisect_left(self._queued, live.order) + 1

    def mark_ready(self, live: Live) -> None:
        heapq.heappush(self._heaps[live.group], (live.order, live.job.id))

    def oldest_ready(self, may_run: Callable[[Live], bool]) -> Iterator[Live]:
        """The oldest ready job of each group; what `may_run` refuses must be marked again later."""
        for group, heap in self._heaps.items():
            while heap:
                live = self.lives.get(heap[0][1])
                if live and not live.handed and live.group == group and may_run(live):
                    yield live
                    break
                heapq.heappop(heap)
