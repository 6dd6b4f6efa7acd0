"""What a worker tells its owner. `task` is the task's id, `at` a Unix time, memory is in bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from polypod.jobs.job import JobError


@dataclass(frozen=True)
class Loaded:
    """The model is in memory; `seconds` from the start of the process."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class LoadFailed:
    """It will not be: code `out_of_memory`, `load_failed` or `timeout`. `Died` follows."""

    error: JobError


@dataclass(frozen=True)
class Started:
    task: str
    at: float


@dataclass(frozen=True)
class Progress:
    """`fraction` of the stage, 0 to 1; it never falls."""

    task: str
    fraction: float
    message: str


@dataclass(frozen=True)
class Log:
    """A line that the model printed; `task` is None while it loads and between tasks."""

    task: str | None
    line: str


@dataclass(frozen=True)
class Finished:
    """Peak memory is that of this task alone."""

    task: str
    at: float
    seconds: float
    peak_memory: int
    peak_gpu_memory: int


@dataclass(frozen=True)
class Failed:
    """Code `bad_input`, `out_of_memory`, `disk_full`, `upstream_failure`; before `Died` `timeout`,
    `hung`.
    """

    task: str
    error: JobError


@dataclass(frozen=True)
class Cancelled:
    task: str


@dataclass(frozen=True)
class Revoked:
    """Never started: taken back, or an earlier task of its chain failed or was cancelled."""

    task: str


@dataclass(frozen=True)
class Heartbeat:
    """Each second, unless a native call holds the interpreter."""

    memory: int
    gpu_memory: int
    cpu_seconds: float


@dataclass(frozen=True)
class Died:
    """The last event. Tasks that were handed to the worker and have not ended will not.

    `expected`: the owner's wish (stop, kill, cancel) or a planned restart (after out of memory);
    such a death is nobody's fault. `oom`: the kernel killed it for want of memory.
    """

    reason: str
    last_words: str
    oom: bool
    expected: bool


@dataclass(frozen=True)
class Leaving:
    """From the harness to the supervisor only: its end, which comes next, is planned."""

    reason: str


TaskEvent = Started | Progress | Log | Finished | Failed | Cancelled | Revoked
Event = Loaded | LoadFailed | TaskEvent | Heartbeat | Died

_KINDS: dict[str, type[Any]] = {
    "loaded": Loaded,
    "load_failed": LoadFailed,
    "started": Started,
    "progress": Progress,
    "finished": Finished,
    "failed": Failed,
    "cancelled": Cancelled,
    "revoked": Revoked,
    "heartbeat": Heartbeat,
    "leaving": Leaving,
}


def parse(line: bytes) -> Event | Leaving:
    """An event from the harness. Raises ValueError, KeyError or TypeError for anything else."""
    fields: dict[str, Any] = json.loads(line)
    kind = _KINDS[fields.pop("kind")]
    if "error" in fields:
        fields["error"] = JobError(**fields["error"])
    return kind(**fields)
