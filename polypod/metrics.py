"""What Prometheus is told, beside BentoML's own figures on `/metrics`.

Counters and histograms are fed where things happen; gauges are read when somebody asks. Import it
only where jobs run: `prometheus_client` decides at its import whether it counts in files shared by
several processes, which BentoML's environment asks for and one API process does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from polypod import __version__
from polypod.jobs.job import Job, StageRun

REGISTRY = CollectorRegistry()

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)

_info = Gauge("polypod_info", "Always 1; the version.", ["version"], registry=REGISTRY)
_info.labels(__version__).set(1)

_jobs = Gauge("polypod_jobs", "Jobs that are not finished.", ["status"], registry=REGISTRY)
_room = Gauge("polypod_queue_capacity", "Jobs that may wait; 503 above.", registry=REGISTRY)
_places = Gauge("polypod_concurrency", "Tasks that may run at once.", registry=REGISTRY)
_ready = Gauge("polypod_ready", "Whether the last load succeeded.", registry=REGISTRY)
_loaded = Gauge("polypod_model_loaded", "Whether the model is in memory.", registry=REGISTRY)

_submitted = Counter(
    "polypod_jobs_submitted", "Jobs accepted or refused.", ["model", "outcome"], registry=REGISTRY
)
_ended = Counter(
    "polypod_jobs_ended", "Jobs that reached their end.", ["model", "status"], registry=REGISTRY
)
_wait = Histogram(
    "polypod_job_wait_seconds",
    "From submit to the start of the first stage.",
    ["model"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
_run = Histogram(
    "polypod_job_run_seconds",
    "From the start of the first stage to the end of the job.",
    ["model", "status"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
_stage = Histogram(
    "polypod_stage_seconds",
    "Time that a stage held its slot.",
    ["model", "stage", "device"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
_reused = Counter(
    "polypod_stages_reused",
    "Stages whose kept outputs were used again.",
    ["model", "stage"],
    registry=REGISTRY,
)
_loads = Histogram(
    "polypod_worker_load_seconds",
    "Time that a worker took to load.",
    ["model", "worker"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
_deaths = Counter(
    "polypod_worker_deaths",
    "Workers that ended without being asked to.",
    ["model", "worker", "reason"],
    registry=REGISTRY,
)


def job_submitted(model: str) -> None:
    _submitted.labels(model, "accepted").inc()


def job_refused(model: str, code: str) -> None:
    """`code` is the problem's: `queue_full`, `conflict`, `unavailable`."""
    _submitted.labels(model, code).inc()


def job_ended(job: Job) -> None:
    """Once per job, at its terminal transition."""
    _ended.labels(job.model, job.status).inc()
    if job.started_at is not None and job.finished_at is not None:
        _wait.labels(job.model).observe(max(0.0, job.started_at - job.created_at))
        seconds = max(0.0, job.finished_at - job.started_at)
        _run.labels(job.model, job.status).observe(seconds)


def stage_ended(model: str, run: StageRun) -> None:
    if run.kept:
        _reused.labels(model, run.stage).inc()
    else:
        _stage.labels(model, run.stage, run.device).observe(run.seconds)


def worker_loaded(model: str, worker: str, seconds: float) -> None:
    _loads.labels(model, worker).observe(seconds)


def worker_died(model: str, worker: str, oom: bool) -> None:
    """Only deaths that nobody asked for."""
    _deaths.labels(model, worker, "out_of_memory" if oom else "crashed").inc()


def exposition(queue: Mapping[str, Any], health: Mapping[str, Any], ready: bool) -> str:
    """Our part of `/metrics`; `queue` and `health` are the bodies of GET /queue and /health."""
    _jobs.labels("queued").set(queue["queued"])
    _jobs.labels("processing").set(queue["processing"])
    _room.set(queue["max_queue_size"])
    _places.set(queue["max_concurrent"])
    _ready.set(ready)
    _loaded.set(bool(health.get("model_loaded")))
    return generate_latest(REGISTRY).decode()
