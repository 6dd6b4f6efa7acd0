"""What Prometheus reads."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from polypod import metrics
from polypod.jobs.job import Job, StageRun

QUEUE = {"queued": 2, "processing": 1, "max_queue_size": 10, "max_concurrent": 1}


def read(queue: dict[str, int] = QUEUE, loaded: bool = True) -> dict[tuple[str, ...], float]:
    """Every sample: its name and its label values in order of their names, and its value."""
    text = metrics.exposition(queue, {"model_loaded": loaded}, ready=True)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_gauges_are_as_they_are_when_asked() -> None:
    assert read()["polypod_jobs", "queued"] == 2
    assert read()["polypod_jobs", "processing"] == 1
    assert read({**QUEUE, "queued": 0})["polypod_jobs", "queued"] == 0
    assert read(loaded=False)["polypod_model_loaded",] == 0


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
