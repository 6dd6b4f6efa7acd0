"""What the service tells a client, as typed data. Each `raw` holds the whole answer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, cast

TERMINAL = frozenset({"completed", "failed", "cancelled"})

Json = Mapping[str, Any]


def _no_json() -> Json:
    return {}


@dataclass(frozen=True)
class AssetView:
    """A file of a job. `sha256` is empty and `size` None until the file exists."""

    name: str
    url: str
    kind: str = ""
    stage: str = ""
    media_type: str = ""
    size: int | None = None
    sha256: str = ""
    content: str = field(default="", repr=False)
    """Base64 of a small file's bytes, where they were asked for and came with the event."""


@dataclass(frozen=True)
class ErrorView:
    """Why a job failed."""

    code: str
    message: str
    hint: str = ""


@dataclass(frozen=True)
class JobView:
    """The state of a job. `progress` is 0 to 100; times are Unix seconds."""

    id: str
    status: str
    model: str = ""
    position: int = 0
    queue_length: int = 0
    progress: float = 0.0
    stage: str = ""
    message: str = ""
    eta_seconds: float | None = None
    created_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    processing_time: float | None = None
    download_url: str = ""
    assets: tuple[AssetView, ...] = ()
    seed: int | None = None
    parent: str = ""
    remaining_stages: tuple[str, ...] = ()
    error: ErrorView | None = None
    facts: Json = field(default_factory=_no_json)
    raw: Json = field(default_factory=_no_json, repr=False)

    @property
    def done(self) -> bool:
        """Whether the state is final."""
        return self.status in TERMINAL

    def asset(self, name: str) -> AssetView | None:
        return next((a for a in self.assets if a.name == name), None)

    @classmethod
    def parse(cls, raw: Json) -> JobView:
        error = raw.get("error")
        return cls(
            id=str(raw.get("job_id", "")),
            status=str(raw.get("status", "")),
            model=raw.get("model") or "",
            position=raw.get("position") or 0,
            queue_length=raw.get("queue_length") or 0,
            progress=float(raw.get("progress") or 0),
            stage=raw.get("stage") or "",
            message=raw.get("message") or "",
            eta_seconds=raw.get("eta_seconds"),
            created_at=unix_time(raw.get("created_at")),
            started_at=unix_time(raw.get("started_at")),
            finished_at=unix_time(raw.get("finished_at")),
            processing_time=raw.get("processing_time"),
            download_url=raw.get("download_url") or "",
            assets=tuple(_asset(a) for a in raw.get("assets") or ()),
            seed=raw.get("seed"),
            parent=raw.get("parent") or "",
            remaining_stages=tuple(raw.get("remaining_stages") or ()),
            error=_error(error) if error else None,
            facts=raw.get("facts") or {},
            raw=raw,
        )


@dataclass(frozen=True)
class Event:
    """Something happened to a job; `job` is its state afterwards.

    `kind`: `snapshot`, `status`, `progress`, `log` (`data["line"]`), `asset`.
    """

    kind: str
    job: JobView
    data: Json
    id: str = ""


@dataclass(frozen=True)
class ModelCard:
    """What a model is: its inputs, outputs and parameters (JSON Schema)."""

    name: str
    title: str
    summary: str
    inputs: Json
    outputs: tuple[str, ...]
    parameters: Json
    presets: Json
    licence: Json
    raw: Json = field(repr=False)

    @classmethod
    def parse(cls, raw: Json) -> ModelCard:
        return cls(
            name=str(raw["name"]),
            title=raw.get("title") or "",
            summary=raw.get("summary") or "",
            inputs=raw.get("inputs") or {},
            outputs=tuple(raw.get("outputs") or ()),
            parameters=raw.get("parameters") or {},
            presets=raw.get("presets") or {},
            licence=raw.get("licence") or {},
            raw=raw,
        )


@dataclass(frozen=True)
class Health:
    """How the service is: `healthy`, `starting` or `degraded`."""

    status: str
    model_loaded: bool
    version: str
    queue: Json
    raw: Json = field(repr=False)

    @staticmethod
    def is_in(document: object) -> bool:
        """Whether this is a health report (a problem document's `status` is a number)."""
        found = cast(Json, document).get("status") if isinstance(document, Mapping) else None
        return isinstance(found, str)

    @classmethod
    def parse(cls, raw: Json) -> Health:
        return cls(
            status=str(raw.get("status", "")),
            model_loaded=bool(raw.get("model_loaded")),
            version=raw.get("version") or "",
            queue=raw.get("queue") or {},
            raw=raw,
        )


@dataclass(frozen=True)
class UploadedImage:
    """A picture that the service keeps; give it to `generate` in place of a picture."""

    id: str
    raw: Json = field(repr=False)


@dataclass(frozen=True)
class Download:
    """A file that was saved and checked. `resumed` counts the cuts that it survived."""

    path: Path
    size: int
    sha256: str
    media_type: str
    resumed: int = 0

    def __fspath__(self) -> str:
        return str(self.path)


def unix_time(value: object) -> float | None:
    """Unix seconds of a number or of ISO 8601 text."""
    if isinstance(value, int | float):
        return float(value)
    if isinstance(value, str) and value:
        return datetime.fromisoformat(value.replace("Z", "+00:00")).timestamp()
    return None


def _asset(raw: object) -> AssetView:
    entry = cast(Json, raw)
    return AssetView(
        name=str(entry["name"]),
        url=entry.get("url") or "",
        kind=entry.get("kind") or "",
        stage=entry.get("stage") or "",
        media_type=entry.get("media_type") or "",
        size=entry.get("size"),
        sha256=entry.get("sha256") or "",
        content=entry.get("content") or "",
    )


def _error(raw: object) -> ErrorView:
    if not isinstance(raw, Mapping):
        return ErrorView("", str(raw))
    entry = cast(Json, raw)
    return ErrorView(entry.get("code") or "", entry.get("message") or "", entry.get("hint") or "")


def read_json(text: str | bytes) -> Any:
    """Raises ValueError also for numbers that JSON has not, which could not be told on."""
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite)
    except RecursionError:
        raise ValueError("It is nested too deeply.") from None


def _finite(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _no_number(text)


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no number.")
