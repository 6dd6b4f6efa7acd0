"""An unfinished job as the router holds it: where it is, and what its pod tells of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from polypod.jobs.finished import FinishedStage
from polypod.jobs.live import Live
from polypod.router.choose import Waiting

LOSSES = 3
LOSSES_IN_ALL = 10


@dataclass(eq=False)
class RoutedLive(Live):
    endpoint: str = ""
    """Id of the endpoint that has it; empty while it waits here."""
    errand: asyncio.Task[Any] | None = None
    told_progress: float = 0.0
    told_eta_s: float | None = None
    runs_there: bool = False
    """Its endpoint has begun with it."""
    stays: bool = False
    """It is not to be moved: its endpoint works on it, or is being asked."""
    home: bool = False
    """All that it made is here: it only has to be told so."""
    gone: int = 0
    """How often in a row a pod did not have it any more."""
    finished: dict[str, FinishedStage] = field(default_factory=dict[str, FinishedStage])
    """Stages whose outputs are here: another pod goes on after them."""
    lost_with: set[str] = field(default_factory=set[str])
    """The pods (`Endpoint.life`) that were lost while they ran it."""
    lost_at: set[str] = field(default_factory=set[str])
    """Ids of their endpoints."""
    losses: int = 0

    @property
    def group(self) -> tuple[str, ...]:
        return (self.model.name, self.job.owner, str(sorted(self.vram_gb.items())))

    @cached_property
    def vram_gb(self) -> dict[str, float]:
        """What it needs, by slot. Part of its group: small jobs do not wait behind a large one."""
        return self.model.vram_gb(self.job.params, self.job.until)

    @property
    def progress(self) -> float:
        return self.told_progress

    @property
    def is_poison(self) -> bool:
        """It seems to be the job that ends them: three pods, or the same ones again and again."""
        return len(self.lost_with) >= LOSSES or self.losses >= LOSSES_IN_ALL

    def waiting(self) -> Waiting:
        job = self.job
        return Waiting(
            job.id,
            self.model.name,
            job.owner,
            self.order,
            job.card,
            frozenset(self.lost_at),
            self.vram_gb,
        )

    def note_loss(self, endpoint: str, life: str) -> None:
        """Its endpoint is lost with it. It counts only if the job was running there."""
        if self.runs_there:
            self.losses += 1
            self.lost_with.add(life)
            self.lost_at.add(endpoint)

    def back_in_line(self) -> None:
        """Forget what the lost pod told."""
        self.endpoint, self.errand, self.handed = "", None, False
        self.at, self.message, self.runs_there, self.stays = "", "", False, False
        self.told_progress, self.told_eta_s = 0.0, None
        self.assets = [a for a in self.assets if a.kind == "input"]
