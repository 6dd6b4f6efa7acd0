"""A real router with its pod and worker: one trace, logs that name it, and all figures shown."""

from __future__ import annotations

import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.bento import ROOT, wait_until
from tests.collector import Collector
from tests.router.test_up import LIMIT_S, PHOTO, Up

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
DASHBOARD = ROOT / "deploy/grafana/polypod.json"
SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "gauge": ("",),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Generator[tuple[Up, Collector, str]]:
    """`polypod up` that tells a collector, and the id of a job that it has done."""
    collector = Collector()
    env = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
        "POLYPOD_LOG": "json",
    }
    up = Up(tmp_path_factory.mktemp("observed"), **env)
    try:
        up.wait_ready()
        with PHOTO.open("rb") as photo:
            answer = httpx.post(
                f"{up.url}/generate",
                files={"image": photo},
                data={"webhook_url": "http://nowhere.invalid/"},
                headers={"traceparent": f"00-{TRACE}-{SPAN}-01"},
            )
        job_id = answer.json()["job_id"]
        wait_until(lambda: up.status(job_id) == "completed", LIMIT_S)
        yield up, collector, job_id
    finally:
        up.process.terminate()
        up.process.wait(60)
        collector.server.shutdown()


def test_one_trace_from_the_client_to_the_worker(run: tuple[Up, Collector, str]) -> None:
    _, collector, job_id = run
    wait_until(lambda: collector.of("polypod-pod", "job inflate"), LIMIT_S)
    wait_until(lambda: collector.of("polypod-router", "errand"), LIMIT_S)
    assert {span["trace"] for span in collector.spans} == {TRACE}

    (routed,) = collector.of("polypod-router", "job inflate")
    assert (routed["parent"], routed["polypod.job.id"]) == (SPAN, job_id)
    (errand,) = collector.of("polypod-router", "errand")
    (waited,) = collector.of("polypod-router", "queue")
    (on_pod,) = collector.of("polypod-pod", "job inflate")
    assert {span["parent"] for span in (errand, waited, on_pod)} == {routed["id"]}
    assert errand["polypod.endpoint"] == "inflate-1"

    stages = [s for s in collector.spans if s["name"].startswith("stage ")]
    assert [s["name"] for s in sorted(stages, key=lambda s: s["times"])] == [
        f"stage {name}" for name in ("cutout", "inflate", "texture", "export")
    ]
    assert {s["parent"] for s in stages} == {on_pod["id"]}
    assert {s["polypod.device"] for s in stages} == {"cpu"}
    (worker,) = {s["polypod.worker.pid"] for s in stages}
    command = Path(f"/proc/{worker}/cmdline")
    assert not command.exists() or b"harness.py" in command.read_bytes()
    assert all(s["times"][0] <= s["times"][1] for s in collector.spans)
    assert not [s["error"] for s in collector.spans if s["error"]]


def test_logs_name_job_and_trace(run: tuple[Up, Collector, str]) -> None:
    up, _, job_id = run
    wait_until(lambda: "nowhere.invalid" in up.log, LIMIT_S)
    lines = [json.loads(line) for line in up.log.splitlines() if line.startswith("{")]
    told = [line for line in lines if line.get("job_id") == job_id]
    assert {line["trace_id"] for line in told} == {TRACE}


def test_the_dashboard_asks_for_what_is_exported(run: tuple[Up, Collector, str]) -> None:
    up, _, _ = run
    router = httpx.get(f"{up.url}/metrics").text
    pod = up.pod()
    key = {"X-API-Key": pod["key"]}
    of_pod = httpx.get(f"http://127.0.0.1:{pod['port']}/metrics", headers=key).text
    exported: set[str] = set()
    labels: dict[str, set[str]] = {}
    for family in (f for text in (router, of_pod) for f in text_string_to_metric_families(text)):
        exported |= {family.name + suffix for suffix in SUFFIXES.get(family.type, ("",))}
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    queries = list(_queries(json.loads(DASHBOARD.read_text())))
    asked = set(re.findall(r"polypod_\w+", " ".join(queries)))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in asked} >= _families(router)
    for query in queries:
        names = set(re.findall(r"polypod_\w+", query))
        if not names:  # the kind of a data source, the choice of a role
            continue
        assert names and names <= exported, query
        known = set().union(*(labels.get(name, set()) for name in names)) | {"instance", "le"}
        seen = all(name in labels for name in names)
        assert not seen or _labels(query) <= known, query


def _queries(node: Any) -> Generator[str]:
    """Every PromQL expression, those of variables too."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name in ("expr", "query") and isinstance(value, str):
                yield value
            else:
                yield from _queries(value)
    elif isinstance(node, list):
        for value in node:
            yield from _queries(value)


def _labels(query: str) -> set[str]:
    grouped = re.findall(r"by \(([^)]*)\)", query)
    matched = re.findall(r"(\w+)(?==~?\"|!=)", query)
    return {label.strip() for part in grouped for label in part.split(",")} | set(matched)


def _families(text: str) -> set[str]:
    """What a router tells, but for what never changes there, or the library adds."""
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(text)
        if not family.name.endswith(("_created", "polypod_concurrency"))
    }
