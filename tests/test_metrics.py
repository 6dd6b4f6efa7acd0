"""What Prometheus reads."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, get_args

from prometheus_client.parser import text_string_to_metric_families

from polypod import __version__, metrics
from polypod.jobs.job import Job, StageRun
from polypod.router.endpoint import State

QUEUE = {"queued": 2, "processing": 1, "max_queue_size": 10, "max_concurrent": 1}


HEALTH = {"model_loaded": True, "models": ["stub"]}
NO_JOBS: dict[tuple[str, str], int] = {}
BASE_UNITS = ("_seconds", "_bytes", "_usd")
"""What a measured quantity may be in. Other gauges and counters count things."""


def read(
    jobs: dict[tuple[str, str], int] = NO_JOBS,
    endpoints: list[dict[str, Any]] | None = None,
    **health: Any,
) -> dict[tuple[str, ...], float]:
    """Every sample: its name and its label values in order of their names, and its value."""
    text = metrics.exposition(QUEUE, HEALTH | health, True, jobs, endpoints)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_gauges_are_as_they_are_when_asked() -> None:
    jobs = {("stub", "queued"): 2, ("stub", "processing"): 1}
    assert read(jobs)["polypod_jobs", "stub", "queued"] == 2
    assert read(jobs)["polypod_jobs", "stub", "processing"] == 1
    assert read()["polypod_jobs", "stub", "queued"] == 0
    assert ("polypod_jobs", "stub", "queued") not in read(models=[])
    assert read()["polypod_queue_capacity",] == 10
    assert read(model_loaded=False)["polypod_model_loaded",] == 0


def test_a_router_shows_its_endpoints() -> None:
    endpoint = {
        "id": "stub-1",
        "provider": "local",
        "models": ["stub"],
        "state": "busy",
        "jobs": ["a", "b"],
        "since": 1000.0,
        "uptime_s": 12.5,
        "cost_usd": 0.25,
    }
    seen = read(endpoints=[endpoint, endpoint | {"id": "far", "uptime_s": None, "cost_usd": None}])
    assert seen["polypod_info", "router", __version__] == 1
    assert seen["polypod_endpoint_state", "stub-1", "stub", "local", "busy"] == 1
    assert seen["polypod_endpoint_state", "stub-1", "stub", "local", "ready"] == 0
    assert seen["polypod_endpoint_jobs", "stub-1"] == 2
    assert seen["polypod_endpoint_state_start_time_seconds", "stub-1"] == 1000
    assert seen["polypod_endpoint_uptime_seconds", "stub-1"] == 12.5
    assert seen["polypod_endpoint_cost_usd", "stub-1", "local"] == 0.25
    assert not [key for key in seen if key[0].endswith(("uptime_seconds", "usd")) and "far" in key]
    gone = read(endpoints=[])
    assert not [key for key in gone if key[0].startswith("polypod_endpoint")]
    assert read()["polypod_info", "pod", __version__] == 1


def test_every_state_of_an_endpoint_is_known() -> None:
    assert set(metrics.STATES) == {*get_args(State), "busy"}


def test_names_are_as_prometheus_wants_them() -> None:
    text = metrics.exposition(QUEUE, HEALTH, True, {}, [])
    for family in text_string_to_metric_families(text):
        assert re.fullmatch(r"polypod_[a-z]+(_[a-z]+)*", family.name)
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_gauge"))
        if family.type == "histogram" or "time" in family.name:
            assert family.name.endswith(BASE_UNITS), family.name


def test_errands_and_what_they_carried_are_counted() -> None:
    before = read().get(("polypod_relayed_bytes_total", "in"), 0)
    metrics.errand_ended("carried", "pod", "gone")
    metrics.relayed_in(1000)
    metrics.relayed_out(10)
    seen = read()
    assert seen["polypod_errands_total", "pod", "carried", "gone"] == 1
    assert seen["polypod_relayed_bytes_total", "in"] == before + 1000


def test_a_job_is_counted_with_its_wait_and_its_run() -> None:
    job = Job(id="a", model="counted", owner="", inputs={}, params={}, created_at=100.0)
    metrics.job_submitted("counted")
    metrics.job_refused("counted", "queue_full")
    metrics.job_ended(replace(job, status="completed", started_at=103.0, finished_at=110.0))
    metrics.job_ended(replace(job, status="cancelled", finished_at=110.0))
    seen = read()
    assert seen["polypod_jobs_submitted_total", "counted", "accepted"] == 1
    assert seen["polypod_jobs_submitted_total", "counted", "queue_full"] == 1
    assert seen["polypod_jobs_ended_total", "counted", "completed"] == 1
    assert seen["polypod_jobs_ended_total", "counted", "cancelled"] == 1
    assert seen["polypod_job_wait_seconds_sum", "counted"] == 3
    assert seen["polypod_job_run_seconds_sum", "counted", "completed"] == 7
    assert ("polypod_job_run_seconds_sum", "counted", "cancelled") not in seen


def test_a_stage_is_timed_or_counted_as_reused() -> None:
    metrics.stage_ended("staged", StageRun("work", 2.0, "cuda:0", kept=False))
    metrics.stage_ended("staged", StageRun("work", 0.0, "", kept=True))
    seen = read()
    assert seen["polypod_stage_seconds_sum", "cuda:0", "staged", "work"] == 2
    assert seen["polypod_stage_seconds_count", "cuda:0", "staged", "work"] == 1
    assert seen["polypod_stages_reused_total", "staged", "work"] == 1


def test_loads_and_deaths_of_workers() -> None:
    metrics.worker_loaded("worked", "gpu", 12.5)
    metrics.worker_died("worked", "gpu", oom=True)
    metrics.worker_died("worked", "gpu", oom=False)
    seen = read()
    assert seen["polypod_worker_load_seconds_sum", "worked", "gpu"] == 12.5
    assert seen["polypod_worker_deaths_total", "worked", "out_of_memory", "gpu"] == 1
    assert seen["polypod_worker_deaths_total", "worked", "crashed", "gpu"] == 1
