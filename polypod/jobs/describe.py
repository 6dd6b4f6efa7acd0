"""How a job is shown: the body of `GET /job/{id}` and of status events."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from polypod.jobs.job import Asset, Job, JobError
from polypod.jobs.live import Live
from polypod.model import Model


def describe_job(
    job: Job,
    model: Model | None,
    live: Live | None,
    *,
    position: int,
    queue_length: int,
    eta_s: float | None,
) -> dict[str, Any]:
    """DESIGN section 4; `live` is None once the job has ended."""
    result = model.result_name(job.params) if model else ""
    has_result = any(a.name == result for a in job.assets)
    return {
        "job_id": job.id,
        "model": job.model,
        "status": job.status,
        "position": position,
        "queue_length": queue_length,
        "progress": 100.0 if job.status == "completed" else live.progress if live else 0.0,
        "stage": (live.at or None) if live else None,
        "message": _message(job, live, position),
        "eta_seconds": round(eta_s, 1) if eta_s is not None else None,
        "created_at": _iso(job.created_at),
        "started_at": _iso(job.started_at),
        "finished_at": _iso(job.finished_at),
        "processing_time": _processing_time(job),
        "download_url": f"/job/{job.id}/download"
        if has_result and job.status == "completed"
        else None,
        "assets": [describe_asset(job, asset) for asset in job.assets],
        "facts": dict(job.facts),
        "params": dict(job.params),
        "seed": job.params.get("seed"),
        "until": job.until or None,
        "parent": job.parent or None,
        "remaining_stages": _remaining(job, model, live),
        "error": _error(job.error),
        "log": job.log,
    }


def describe_asset(job: Job, asset: Asset) -> dict[str, Any]:
    return {
        "name": asset.name,
        "kind": asset.kind,
        "stage": asset.stage or None,
        "size": asset.file.size,
        "media_type": asset.file.media_type,
        "sha256": asset.file.digest,
        "url": f"/job/{job.id}/result/{asset.name}",
    }


def with_urls(shown: dict[str, Any], public_url: str) -> dict[str, Any]:
    """With the public prefix before its addresses, where there is one."""
    if not public_url:
        return shown
    prefix = public_url.rstrip("/")
    shown = {**shown}
    if shown.get("download_url"):
        shown["download_url"] = prefix + shown["download_url"]
    if shown.get("assets"):
        shown["assets"] = [{**a, "url": prefix + a["url"]} for a in shown["assets"]]
    return shown


def _message(job: Job, live: Live | None, position: int) -> str:
    if live and live.waits_for:
        return live.waits_for
    if job.status == "queued":
        return f"Waiting in queue, position {position}"
    if job.status == "processing":
        return (live.message if live else "") or f"Running {live.at if live else 'a stage'}"
    if job.status == "failed" and job.error:
        return job.error.message
    return {"completed": "Completed", "cancelled": "Cancelled"}.get(job.status, job.status)


def _processing_time(job: Job) -> float | None:
    if job.finished_at is None:
        return None
    return round(job.finished_at - (job.started_at or job.finished_at), 3)


def _remaining(job: Job, model: Model | None, live: Live | None) -> list[str]:
    """Stages of the model that this job has not done: to run still, or to `continue` with."""
    if model is None:
        return []
    done = {run.stage for run in job.stages}
    planned = model.plan(job.params, inputs=job.inputs)
    return [s.name for s in planned if s.name not in done]


def _error(error: JobError | None) -> dict[str, str] | None:
    if error is None:
        return None
    return {"code": error.code, "message": error.message, "hint": error.hint}


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat().replace("+00:00", "Z")
