"""What Prometheus is told, beside BentoML's own figures on `/metrics`.

Counters and histograms are fed where things happen; gauges are read when somebody asks. Import it
only where jobs run: `prometheus_client` decides at its import whether it counts in files shared by
several processes, which BentoML's environment asks for and one API process does not need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from polypod import __version__
from polypod.jobs.job import Job, StageRun

REGISTRY = CollectorRegistry()
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)

_info = Gauge(
    "polypod_info", "Always 1; version, and router or pod.", ["version", "role"], registry=REGISTRY
)

_jobs = Gauge("polypod_jobs", "Jobs that are not finished.", ["model", "status"], registry=REGISTRY)
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

_endpoint_state = Gauge(
    "polypod_endpoint_state",
    "1 for the state that the endpoint is in, 0 for the others.",
    ["endpoint", "model", "provider", "state"],
    registry=REGISTRY,
)
_endpoint_jobs = Gauge(
    "polypod_endpoint_jobs", "The router's jobs there.", ["endpoint"], registry=REGISTRY
)
_endpoint_since = Gauge(
    "polypod_endpoint_state_start_time_seconds",
    "Unix time at which the endpoint came into its state.",
    ["endpoint"],
    registry=REGISTRY,
)
_endpoint_uptime = Gauge(
    "polypod_endpoint_uptime_seconds",
    "How long the server of the endpoint has run.",
    ["endpoint"],
    registry=REGISTRY,
)
_endpoint_cost = Gauge(
    "polypod_endpoint_cost_usd",
    "What the endpoint has cost so far, in US dollars, where that is known.",
    ["endpoint", "provider"],
    registry=REGISTRY,
)
_errands = Counter(
    "polypod_errands",
    "Jobs taken to an endpoint, by how that went: ended (as jobs may), cancelled, or the error.",
    ["model", "endpoint", "outcome"],
    registry=REGISTRY,
)
_relayed = Counter(
    "polypod_relayed_bytes",
    "Bytes of files that went to endpoints (out) and came from them (in).",
    ["direction"],
    registry=REGISTRY,
)
_PRESENT = (
    *(_info, _jobs, _endpoint_state, _endpoint_jobs),
    *(_endpoint_since, _endpoint_uptime, _endpoint_cost),
)
"""Gauges whose label values come and go: made anew each time they are read."""
STATES = ("stopped", "starting", "ready", "busy", "draining", "lost", "unusable")


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


def errand_ended(model: str, endpoint: str, outcome: str) -> None:
    """`outcome`: ended (as jobs may), cancelled, or what went wrong: gone, refused, broken."""
    _errands.labels(model, endpoint, outcome).inc()


def relayed_out(count: int) -> None:
    """Bytes that went to an endpoint."""
    _relayed.labels("out").inc(count)


def relayed_in(count: int) -> None:
    """Bytes that came from an endpoint."""
    _relayed.labels("in").inc(count)


def exposition(
    queue: Mapping[str, Any],
    health: Mapping[str, Any],
    ready: bool,
    jobs: Mapping[tuple[str, str], int],
    endpoints: Iterable[Mapping[str, Any]] | None = None,
) -> str:
    """Our part of `/metrics`.

    `queue`, `health` and `endpoints` (None: this is a pod) are what GET /queue, /health and
    /endpoints show; `jobs` counts the unfinished ones by model and status.
    """
    for gauge in _PRESENT:
        gauge.clear()
    _info.labels(__version__, "pod" if endpoints is None else "router").set(1)
    for model in health.get("models", ()):
        for status in ("queued", "processing"):
            _jobs.labels(model, status).set(jobs.get((model, status), 0))
    _room.set(queue["max_queue_size"])
    _places.set(queue["max_concurrent"])
    _ready.set(ready)
    _loaded.set(bool(health.get("model_loaded")))
    for endpoint in endpoints or ():
        _show(endpoint)
    return generate_latest(REGISTRY).decode()


def _show(endpoint: Mapping[str, Any]) -> None:
    name, provider = endpoint["id"], endpoint["provider"]
    for model in endpoint["models"]:
        for state in STATES:
            gauge = _endpoint_state.labels(name, model, provider, state)
            gauge.set(state == endpoint["state"])
    _endpoint_jobs.labels(name).set(len(endpoint["jobs"]))
    _endpoint_since.labels(name).set(endpoint["since"])
    if endpoint["uptime_s"] is not None:
        _endpoint_uptime.labels(name).set(endpoint["uptime_s"])
    if endpoint["cost_usd"] is not None:
        _endpoint_cost.labels(name, provider).set(endpoint["cost_usd"])
