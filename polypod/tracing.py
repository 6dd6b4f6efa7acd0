"""Traces: a job's way through router, pod and worker, told to an OpenTelemetry collector.

Off unless `OTEL_EXPORTER_OTLP_ENDPOINT` or `OTEL_TRACES_EXPORTER` is set; OpenTelemetry is not even
imported then. A span is made when it has ended, from what is known anyway: its ids are kept with
the job, so it survives a restart, and the model side, which has the standard library alone, has
nothing to do for it. A worker's stages are told by the process that serves, with the worker's pid.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from polypod import __version__
from polypod.jobs.job import Job

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext

log = logging.getLogger("polypod.tracing")

ROOT = "root"
FLUSH_S = 3.0
"""How long a stop waits for the collector."""
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")

Attributes = Mapping[str, str | int | float | bool | tuple[str, ...]]


@dataclass(frozen=True)
class Trace:
    """Where a job belongs. Ids are hexadecimal digits, as in W3C's `traceparent`.

    `parent_id`: the span that it came from, `root` for none; empty where `span_id` is not ours but
    the sender's, which is passed on as it came.
    """

    trace_id: str
    span_id: str
    sampled: bool
    parent_id: str = ""

    @classmethod
    def parse(cls, text: str) -> Trace | None:
        """From a job's `trace` or a `traceparent` header; None for what is neither."""
        traceparent, _, parent_id = text.strip().partition(" ")
        found = _TRACEPARENT.fullmatch(traceparent)
        if not found or (found[4] and traceparent.startswith("00")):
            return None
        trace_id, span_id, flags = found[1], found[2], int(found[3], 16)
        if not int(trace_id, 16) or not int(span_id, 16):
            return None
        return cls(trace_id, span_id, bool(flags & 1), parent_id)

    @property
    def traceparent(self) -> str:
        """The header for what is done on behalf of the job."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.sampled):02x}"

    def __str__(self) -> str:
        return f"{self.traceparent} {self.parent_id}".strip()


def begin(traceparent: str) -> str:
    """What to keep as a new job's `trace`, given what its request brought (empty: nothing)."""
    given = Trace.parse(traceparent)
    if _sink:
        return str(_sink.begin(given))
    return str(given or "")


def headers(trace: str) -> dict[str, str]:
    """For requests made on behalf of the job of this `trace`."""
    known = Trace.parse(trace)
    return {"traceparent": known.traceparent} if known else {}


def trace_id(trace: str) -> str:
    known = Trace.parse(trace)
    return known.trace_id if known else ""


def job_ended(job: Job) -> None:
    """The span of the job, under the one it came from, and that of its wait."""
    trace = Trace.parse(job.trace) if _sink else None
    if not _sink or not trace or not trace.parent_id or job.finished_at is None:
        return
    about: dict[str, Any] = {
        "polypod.job.id": job.id,
        "polypod.model": job.model,
        "polypod.job.status": job.status,
        "polypod.job.attempt": job.attempt,
    }
    if kept := tuple(run.stage for run in job.stages if run.kept):
        about["polypod.stages.kept"] = kept
    error = f"{job.error.code}: {job.error.message}" if job.error else ""
    parent = "" if trace.parent_id == ROOT else trace.parent_id
    _sink.tell(f"job {job.model}", trace, parent, job.created_at, job.finished_at, about, error)
    span(job.trace, "queue", job.created_at, job.started_at or job.finished_at, {})


def span(
    trace: str, name: str, begin: float, end: float, about: Attributes, error: str = ""
) -> None:
    """Something that was done for the job of this `trace`, from `begin` to `end` (Unix seconds)."""
    known = Trace.parse(trace) if _sink and trace else None
    if _sink and known and known.parent_id:
        own = Trace(known.trace_id, secrets.token_hex(8), known.sampled)
        _sink.tell(name, own, known.span_id, begin, end, about, error)


def start(service: str) -> None:
    """Once per process, before its first job. `service`: its name, unless OTEL_SERVICE_NAME says.

    An exporter that is not known here is told in the log; then there are no traces.
    """
    global _sink  # noqa: PLW0603  one per process, as OpenTelemetry's own
    exporter = wanted(os.environ)
    if exporter and not _sink:
        began = time.monotonic()
        _sink = _Sink(service, exporter)
        log.info("traces go to %s (%.2f s to import)", exporter, time.monotonic() - began)


def stop() -> None:
    """Send what is not sent yet. Blocking, for some seconds at most."""
    global _sink
    sink, _sink = _sink, None
    if sink:
        sink.close()


def wanted(env: Mapping[str, str]) -> str:
    """`otlp`, `console`, or empty for none: as the variables of OpenTelemetry say."""
    if env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return ""
    named = env.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    places = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    if not named:
        named = "otlp" if any(env.get(place) for place in places) else "none"
    if named not in ("otlp", "console", "none"):
        log.warning("OTEL_TRACES_EXPORTER is %r: no traces; use otlp or console.", named)
    return named if named in ("otlp", "console") else ""


class _Sink:
    """Where spans go: batched and sent by a thread of OpenTelemetry's."""

    def __init__(self, service: str, exporter: str) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        own = {"service.version": __version__, "process.pid": os.getpid()}
        if not os.environ.get("OTEL_SERVICE_NAME"):
            own["service.name"] = service
        self._provider: TracerProvider = TracerProvider(
            resource=Resource.create(own), shutdown_on_exit=False
        )
        self._processor: SpanProcessor = BatchSpanProcessor(_exporter(exporter))
        self._scope = InstrumentationScope("polypod", __version__)

    def begin(self, given: Trace | None) -> Trace:
        """A new job's own span, sampled as OTEL_TRACES_SAMPLER says (as its parent, by default)."""
        from opentelemetry.trace import NonRecordingSpan, set_span_in_context

        context = set_span_in_context(NonRecordingSpan(_context(given))) if given else None
        trace_id = given.trace_id if given else secrets.token_hex(16)
        decided = self._provider.sampler.should_sample(context, int(trace_id, 16), "job")
        parent_id = given.span_id if given else ROOT
        return Trace(trace_id, secrets.token_hex(8), decided.decision.is_sampled(), parent_id)

    def tell(
        self,
        name: str,
        own: Trace,
        parent_id: str,
        begin: float,
        end: float,
        about: Attributes,
        error: str,
    ) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import Status, StatusCode

        parent = Trace(own.trace_id, parent_id, own.sampled) if parent_id else None
        ended = ReadableSpan(
            name,
            context=_context(own),
            parent=_context(parent) if parent else None,
            resource=self._provider.resource,
            attributes=about,
            status=Status(StatusCode.ERROR, error) if error else Status(),
            start_time=int(begin * 1e9),
            end_time=int(max(begin, end) * 1e9),
            instrumentation_scope=self._scope,
        )
        self._processor.on_end(ended)

    def close(self) -> None:
        last = threading.Thread(target=self._processor.shutdown, daemon=True)
        last.start()
        last.join(FLUSH_S)


_sink: _Sink | None = None


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        from opentelemetry.sdk.trace.export import ConsoleSpanExporter

        return ConsoleSpanExporter()
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()


def _context(trace: Trace) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    flags = TraceFlags(TraceFlags.SAMPLED if trace.sampled else TraceFlags.DEFAULT)
    return SpanContext(int(trace.trace_id, 16), int(trace.span_id, 16), True, flags)
