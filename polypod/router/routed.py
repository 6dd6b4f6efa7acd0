"""An unfinished job as the router holds it: where it is, and what its pod tells of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from polypod.jobs.live import Live
from polypod.router.choose import Waiting


@dataclass(eq=False)
class RoutedLive(Live):
    endpoint: str = ""
    """Id of the endpoint that has it; empty while it waits here."""
    errand: asyncio.Task[Any] | None = None
    told_progress: float = 0.0
    told_eta_s: float | None = None
    losses: int = 0
    """How many endpoints were lost while they ran it."""

    @property
    def group(self) -> tuple[str, ...]:
        return (self.model.name, self.job.owner)

    @property
    def progress(self) -> float:
        return self.told_progress

    def waiting(self) -> Waiting:
        return Waiting(self.job.id, self.model.name, self.job.owner, self.order)

    def back_in_line(self) -> None:
        """Forget what the lost pod told."""
        self.endpoint, self.errand, self.handed = "", None, False
        self.at, self.message = "", ""
        self.told_progress, self.told_eta_s = 0.0, None
        self.assets = [a for a in self.assets if a.kind == "input"]
