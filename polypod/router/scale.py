"""How many endpoints of a model are to run: a pure function of how things are, and the time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

from polypod.router.choose import PLACES


@dataclass(frozen=True)
class Pod:
    """`idle_since`: when it last had a job, or when it was started if it never had one."""

    id: str
    running: bool
    jobs: int = 0
    idle_since: float = 0.0


@dataclass(frozen=True)
class Scale:
    """A model of the fleet. `waiting`: its jobs that are on no endpoint."""

    min: int
    max: int
    idle_s: float
    """Without work for so long, what runs beyond `min` is stopped; 0: never."""
    waiting: int
    pods: tuple[Pod, ...]


@dataclass(frozen=True)
class Start:
    pod: str


@dataclass(frozen=True)
class Stop:
    pod: str


Action: TypeAlias = Start | Stop


def decide(scales: Iterable[Scale], now: float) -> list[Action]:
    """What to start and stop now. The models do not depend on each other."""
    return [action for scale in scales for action in _for_one(scale, now)]


def _for_one(scale: Scale, now: float) -> list[Action]:
    """As many as the work fills, within `min` and `max`; what is idle stays for a while."""
    running = [pod for pod in scale.pods if pod.running]
    stopped = [pod for pod in scale.pods if not pod.running]
    work = scale.waiting + sum(pod.jobs for pod in running)
    wanted = min(max(scale.min, -(-work // PLACES)), scale.max)
    if len(running) < wanted:
        return [Start(pod.id) for pod in stopped[: wanted - len(running)]]
    idle = [pod for pod in running if not pod.jobs and now - pod.idle_since >= scale.idle_s > 0]
    return [Stop(pod.id) for pod in idle[::-1][: len(running) - wanted]]
