"""RunPod's serverless protocol as data: ids, states, times, requests and answers. No I/O.

`docs/runpod-protocol.md` tells what is mapped how.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from polypod.errors import BadRequest, Problem, QueueFull
from polypod.jobs.job import Job

RUN_BYTES = 10 << 20
RUNSYNC_BYTES = 20 << 20
"""Largest bodies of `run` and `runsync`."""

WAIT_MS = 90_000
WAIT_RANGE_MS = (1_000, 300_000)
EXECUTION_TIMEOUT_RANGE_MS = (5_000, 604_800_000)
TTL_RANGE_MS = (10_000, 604_800_000)

STATES = {
    "queued": "IN_QUEUE",
    "processing": "IN_PROGRESS",
    "completed": "COMPLETED",
    "failed": "FAILED",
    "cancelled": "CANCELLED",
}
TIMED_OUT = "TIMED_OUT"
TIMEOUT_CODE = "timeout"
"""The error code of a job that ran longer than a limit."""

_RETRIES = uuid.UUID("5f0c5b9e-8f0a-4d86-9a0e-0f7f0a1c6b3d")
_SHOWN_ID = re.compile(r"(?:sync-)?([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?:-u1)?")


@dataclass(frozen=True)
class Policy:
    """What a job may take; None: no limit of its own."""

    execution_timeout_ms: int | None = None
    """From the start of its first stage."""
    ttl_ms: int | None = None
    """From its submission."""
    low_priority: bool = False

    @property
    def limits(self) -> bool:
        return self.execution_timeout_ms is not None or self.ttl_ms is not None

    def expired(self, job: Job, now: float) -> bool:
        """Whether an unfinished job has outlived its `ttl`."""
        return self.ttl_ms is not None and now - job.created_at >= self.ttl_ms / 1000

    def overran(self, job: Job, now: float) -> bool:
        """Whether an unfinished job has run longer than its `executionTimeout`."""
        limit_ms, started_at = self.execution_timeout_ms, job.started_at
        return (
            limit_ms is not None and started_at is not None and now - started_at >= limit_ms / 1000
        )


@dataclass(frozen=True)
class Order:
    """The body of `run` and `runsync`."""

    input: dict[str, Any]
    policy: Policy
    webhook: str = ""


def read_order(body: Mapping[str, Any]) -> Order:
    """What the body asks for.

    Raises:
        BadRequest: it is not as the protocol says, or asks for what is not done here.
    """
    given = body.get("input")
    if not isinstance(given, dict):
        raise BadRequest(
            "There is no `input` object.", 'Send {"input": {"image_url": "https://..."}}.'
        )
    webhook = body.get("webhook")
    if not isinstance(webhook, str | None):
        raise BadRequest("`webhook` is not text.", "Send an http(s) URL.")
    if body.get("s3Config") is not None:
        raise BadRequest(
            "`s3Config` is not used here: results stay with the server.",
            "Leave it out, and download the `url` of the output.",
        )
    fields = dict(cast(dict[str, Any], given))
    if webhook and fields.get("webhook_url"):
        raise BadRequest("`webhook` and `input.webhook_url` are both given.", "Send one of them.")
    return Order(fields, _policy(body.get("policy")), webhook or "")


def read_wait(text: str | None) -> float:
    """Seconds that `runsync` waits. BadRequest outside of its range."""
    if text is None:
        return WAIT_MS / 1000
    value = int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None
    return _in_range("wait", value, WAIT_RANGE_MS) / 1000


def shown_id(job_id: str, *, sync: bool) -> str:
    """A job's id as RunPod's look."""
    dashed = str(uuid.UUID(job_id))
    return f"sync-{dashed}" if sync else f"{dashed}-u1"


def own_id(shown: str) -> str:
    """The job's id here; ids of jobs that came another way stay as they are."""
    match = _SHOWN_ID.fullmatch(shown)
    return match[1].replace("-", "") if match else shown


def retry_id(job_id: str) -> str:
    """The id of the job that tries again what this one did. One job has one retry."""
    return uuid.uuid5(_RETRIES, job_id).hex


def state_of(job: Job) -> str:
    if job.status == "failed" and job.error and job.error.code == TIMEOUT_CODE:
        return TIMED_OUT
    return STATES[job.status]


def stream_state(job: Job, *, drained: bool) -> str:
    """RunPod's clients read on for ever at CANCELLED, so an emptied stream says FAILED."""
    return "FAILED" if drained and job.status == "cancelled" else state_of(job)


def times(job: Job) -> dict[str, int]:
    """Milliseconds in the queue and at work, as far as they are known."""
    began = job.started_at if job.started_at is not None else job.finished_at
    if began is None:
        return {}
    told = {"delayTime": _ms(began - job.created_at)}
    if job.finished_at is not None:
        told["executionTime"] = _ms(job.finished_at - began)
    return told


def answer(shown: str, job: Job, output: Mapping[str, Any] | None) -> dict[str, Any]:
    """The body of `status`, and of `runsync`."""
    told: dict[str, Any] = {"id": shown, "status": state_of(job), **times(job)}
    if output is not None:
        told["output"] = output
    if job.status == "failed" and job.error:
        told["error"] = f"{job.error.message} {job.error.hint}".strip()
    return told


def output_of(described: Mapping[str, Any], result: str, data: str | None) -> dict[str, Any]:
    """The `output` of a completed job.

    `described` is the body of GET /job/{id}, `result` the name of the main asset, `data` its bytes
    in base64 where it is small.
    """
    files = [asset for asset in described["assets"] if asset["kind"] != "input"]
    main = next((asset for asset in files if asset["name"] == result), None)
    output = {
        "job_id": described["job_id"],
        "url": described["download_url"],
        "name": main and main["name"],
        "size": main and main["size"],
        "media_type": main and main["media_type"],
        "sha256": main and main["sha256"],
        "seed": described["seed"],
        "params": described["params"],
        "facts": described["facts"],
        "assets": files,
    }
    return output if data is None else {**output, "data": data}


def error_status(problem: Problem) -> int:
    """One of the statuses that the protocol knows: 400, 401, 404, 429, 500."""
    if isinstance(problem, QueueFull) or problem.status == 429:
        return 429
    if problem.status >= 500:
        return 500
    return {401: 401, 403: 401, 404: 404, 410: 404}.get(problem.status, 400)


def workers(capacity: int, processing: int) -> dict[str, int]:
    running = min(capacity, processing)
    return {"idle": capacity - running, "running": running}


def _policy(given: Any) -> Policy:
    if given is None:
        return Policy()
    if not isinstance(given, dict):
        raise BadRequest("`policy` is not an object.", 'Send {"executionTimeout": 600000}.')
    fields = cast(dict[str, Any], given)
    unknown = fields.keys() - {"executionTimeout", "ttl", "lowPriority"}
    if unknown:
        name = sorted(unknown)[0][:64]
        raise BadRequest(
            f"There is no policy {name!r}.", "There are executionTimeout, ttl and lowPriority."
        )
    low = fields.get("lowPriority")
    if not isinstance(low, bool | None):
        raise BadRequest("`policy.lowPriority` is neither true nor false.")
    return Policy(
        _limit(fields, "executionTimeout", EXECUTION_TIMEOUT_RANGE_MS),
        _limit(fields, "ttl", TTL_RANGE_MS),
        bool(low),
    )


def _limit(fields: Mapping[str, Any], name: str, between: tuple[int, int]) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    whole = isinstance(value, int) and not isinstance(value, bool)
    return _in_range(f"policy.{name}", value if whole else None, between)


def _in_range(name: str, value: int | None, between: tuple[int, int]) -> int:
    least, most = between
    if value is None or not least <= value <= most:
        raise BadRequest(f"`{name}` is not a number of milliseconds from {least} to {most}.")
    return value


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
