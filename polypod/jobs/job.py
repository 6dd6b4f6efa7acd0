"""What a job is: the data that the store keeps, the engine moves and the API shows."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["queued", "processing", "completed", "failed", "cancelled"]
TERMINAL: frozenset[str] = frozenset({"completed", "failed", "cancelled"})


@dataclass(frozen=True)
class FileRef:
    """A file in the blob store: its SHA-256 (hex), bytes, media type, and the name it came with."""

    digest: str
    size: int
    media_type: str
    filename: str = ""


@dataclass(frozen=True)
class Asset:
    """A named file of a job.

    `kind`: `input` (as uploaded), `output` (declared by a stage), `manifest`, or `derived` (made
    from an output: another format, a preview).
    """

    name: str
    file: FileRef
    kind: Literal["input", "output", "manifest", "derived"] = "output"
    stage: str = ""


@dataclass(frozen=True)
class JobError:
    """Why a job failed: a stable `code`, what happened, and what to do."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class StageRun:
    """One stage of a job as it was done: for the manifest and for estimates."""

    stage: str
    seconds: float
    device: str
    kept: bool
    """True when the outputs were there already and nothing ran."""
    peak_memory: int = 0
    peak_gpu_memory: int = 0


@dataclass(frozen=True)
class KeptStage:
    """The outputs of a finished stage under their key (`Model.stage_key`)."""

    key: str
    model: str
    stage: str
    owner: str
    files: Mapping[str, FileRef]
    run: StageRun
    preset: str
    created_at: float


@dataclass(frozen=True)
class Job:
    """One request for one model. Times are Unix seconds.

    `attempt` fences writes: it rises whenever a server takes the job over, and a write that names
    an older one does nothing.
    """

    id: str
    model: str
    owner: str
    """Id of the API key that submitted it; empty where there are no keys."""
    inputs: Mapping[str, FileRef]
    """What the model is given, by input name."""
    params: Mapping[str, Any]
    """All parameters as resolved, the seed drawn."""
    created_at: float
    card: str = ""
    """Digest of the card that the parameters were checked against."""
    until: str = ""
    parent: str = ""
    priority: int = 0
    idempotency_key: str = ""
    request_digest: str = ""
    trace: str = ""
    """Where it belongs among others' work: a `tracing.Trace` as text; empty: nowhere."""
    relayed: bool = False
    """A router keeps it durably and shows its result: what is written here need not be durable, no
    previews are made unless they are asked for, and the result stays until the router has it."""
    seq: int = 0
    """Place in the order of arrival; given by the store."""
    status: Status = "queued"
    attempt: int = 0
    worker_deaths: int = 0
    server_deaths: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    error: JobError | None = None
    stages: tuple[StageRun, ...] = ()
    assets: tuple[Asset, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Facts about the main result: triangles, bounds, watertight, volume."""
    log: str = ""
    """The end of what the model printed."""

    def asset(self, name: str) -> Asset | None:
        return next((a for a in self.assets if a.name == name), None)


def new_id() -> str:
    return uuid.uuid4().hex
