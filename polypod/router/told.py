"""What the router that leads tells the others of a job under way, and how they take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from polypod.jobs.describe import describe_asset
from polypod.jobs.job import Asset, FileRef
from polypod.router.routed import RoutedLive

STATE = "state"
"""How the job is, with all that came before: for those who have not heard it."""


def state(live: RoutedLive) -> dict[str, Any]:
    """How far it is."""
    return {
        "status": live.job.status,
        "started_at": live.job.started_at,
        "endpoint": live.endpoint,
        "stage": live.at,
        "message": live.message,
        "progress": live.told_progress,
        "eta_seconds": live.told_eta_s,
    }


def whole_state(live: RoutedLive) -> dict[str, Any]:
    outputs = [describe_asset(live.job, a) for a in live.assets if a.kind == "output"]
    return state(live) | {"log": list(live.log), "assets": outputs}


def take(live: RoutedLive, kind: str, data: Mapping[str, Any]) -> None:
    """Brings the mirrored job to what was told; status and endpoint are its queue's affair."""
    if kind == "log":
        live.log.append(data["line"])
    elif kind == "asset":
        _add_asset(live, data)
    else:
        live.at, live.message = data["stage"], data["message"]
        live.told_progress, live.told_eta_s = data["progress"], data["eta_seconds"]
    if kind == STATE:
        live.log.clear()
        live.log.extend(data["log"])
        for asset in data["assets"]:
            _add_asset(live, asset)
    if kind in ("status", STATE) and data["status"] == "processing":
        live.job = replace(live.job, status="processing", started_at=data["started_at"])


def _add_asset(live: RoutedLive, data: Mapping[str, Any]) -> None:
    name = data["name"]
    file = FileRef(data["sha256"], data["size"], data["media_type"], name)
    live.assets = [a for a in live.assets if a.kind == "input" or a.name != name]
    live.assets.append(Asset(name, file, "output", data["stage"] or ""))
