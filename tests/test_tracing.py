"""What is kept of a trace with a job, and that nothing of it is there when nobody asks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polypod import tracing
from polypod.settings import Settings
from polypod.tracing import Trace
from tests.api.serving import Server, make_picture, until
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
