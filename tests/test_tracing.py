"""What is kept of a trace with a job, and that nothing of it is there when nobody asks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from polypod import tracing
from polypod.settings import Settings
from polypod.tracing import Trace
from tests.api.serving import Server, make_picture, until
from tests.collector import Collector
from tests.models.stub.model import MODEL

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SENT = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "text, known",
    [
        (SENT, Trace(TRACE, SPAN, True)),
        (f"00-{TRACE}-{SPAN}-00", Trace(TRACE, SPAN, False)),
        (f"01-{TRACE}-{SPAN}-03-more", Trace(TRACE, SPAN, True)),
        (f"{SENT} root", Trace(TRACE, SPAN, True, "root")),
        (f"{SENT} {'b' * 16}", Trace(TRACE, SPAN, True, "b" * 16)),
        (f"{SENT}-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (SENT.upper(), None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_as_w3c_says(text: str, known: Trace | None) -> None:
    assert Trace.parse(text) == known


def test_what_was_read_is_written_the_same() -> None:
    for text in (SENT, f"{SENT} root", f"00-{TRACE}-{SPAN}-00 {'b' * 16}"):
        assert str(Trace.parse(text)) == text


@pytest.mark.parametrize(
    "env, exporter",
    [
        ({}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, "otlp"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://x"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, "otlp"),
        ({"OTEL_TRACES_EXPORTER": "console"}, "console"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, ""),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ""),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, ""),
    ],
)
def test_opentelemetrys_own_variables_decide(env: dict[str, str], exporter: str) -> None:
    assert tracing.wanted(env) == exporter


OFF = """
import sys
import polypod.router.up, polypod.service
from polypod import tracing
tracing.start("x")
tracing.begin("")
print([name for name in sys.modules if name.startswith(("opentelemetry.exporter", "google."))])
"""


def test_nothing_is_imported_while_it_is_off() -> None:
    done = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]


def test_a_jobs_trace_survives_a_restart_and_passes_through_while_off(tmp_path: Path) -> None:
    def trace_of(server: Server, job_id: str) -> str:
        return server.on_loop(lambda: server.engine.queue.lives[job_id].job.trace)

    server = Server(Settings(data=tmp_path), MODEL)  # pyright: ignore[reportCallIssue]
    try:
        form = {"seconds": "600", "steps": "1000"}
        picture = {"image": ("a.png", make_picture())}
        sent = {"traceparent": SENT}
        job = server.client.post("/generate", files=picture, data=form, headers=sent).json()
        assert trace_of(server, job["job_id"]) == SENT
        until(lambda: server.job(job["job_id"])["stage"] == "work")
    finally:
        server.stop()
    again = Server(Settings(data=tmp_path), MODEL)  # pyright: ignore[reportCallIssue]
    try:
        assert trace_of(again, job["job_id"]) == SENT
        assert tracing.headers(SENT) == sent
        again.client.post(f"/job/{job['job_id']}/cancel")
    finally:
        again.stop()


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[Server, Collector]]:
    """A pod in this process that tells a collector."""
    collector = Collector()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
    tracing.start("here")
    server = Server(Settings(data=tmp_path), MODEL)  # pyright: ignore[reportCallIssue]
    try:
        yield server, collector
    finally:
        server.stop()
        tracing.stop()
        collector.server.shutdown()


def test_how_stages_end_is_told(told: tuple[Server, Collector]) -> None:
    server, collector = told
    picture = make_picture()

    failed = server.ended(server.submit(picture, fail="bad_input")["job_id"])["job_id"]
    cancelled = server.submit(picture, seconds=600, steps=1000)["job_id"]
    until(lambda: server.job(cancelled)["stage"] == "work")
    server.client.post(f"/job/{cancelled}/cancel")
    again = {"seed": "7", "steps": "1"}
    server.done(picture, **again)
    reused = server.done(picture, **again)["job_id"]

    def span(job_id: str) -> dict[str, Any]:
        return next(s for s in collector.of("here", "job stub") if s["polypod.job.id"] == job_id)

    def work_of(job_id: str) -> list[str]:
        stages = collector.of("here", "stage work")
        return [s["error"] for s in stages if s["parent"] == span(job_id)["id"]]

    ids = {failed, cancelled, reused}
    until(lambda: ids <= {s["polypod.job.id"] for s in collector.of("here", "job stub")})
    until(lambda: work_of(failed) and work_of(cancelled))
    assert work_of(failed) == ["bad_input"]
    assert work_of(cancelled) == ["cancelled"]
    assert work_of(reused) == []
    assert span(failed)["error"].startswith("bad_input: ")
    kept = span(reused)["polypod.stages.kept"]
    assert [value.string_value for value in kept.values] == ["prepare", "work"]
    assert span(failed)["parent"] == "", "a request without a traceparent begins a trace"
    assert len({span(job)["trace"] for job in ids}) == 3


def test_what_the_client_does_not_sample_is_not_told(told: tuple[Server, Collector]) -> None:
    server, collector = told
    picture = {"image": ("a.png", make_picture())}
    unsampled = {"traceparent": f"00-{TRACE}-{SPAN}-00"}
    job = server.client.post("/generate", files=picture, headers=unsampled).json()
    server.ended(job["job_id"])
    seen = server.done(make_picture(), seed=5)["job_id"]
    until(lambda: [s for s in collector.spans if s.get("polypod.job.id") == seen])
    assert TRACE not in {s["trace"] for s in collector.spans}
