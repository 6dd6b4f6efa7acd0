"""The server's own log: text for people, or with POLYPOD_LOG=json one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from collections.abc import Generator
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Any, Literal

TRACES = 20_000
"""Of how many jobs, the newest, the trace is known."""

_job: ContextVar[str] = ContextVar("polypod_job", default="")
_traces: dict[str, str] = {}
_NAMED = re.compile(r"\bjob ([0-9a-f]{32})\b")


@contextlib.contextmanager
def about(job_id: str) -> Generator[None]:
    """What is logged in the block, and by tasks begun in it, is about this job."""
    token = _job.set(job_id)
    try:
        yield
    finally:
        _job.reset(token)


def belongs(job_id: str, trace_id: str) -> None:
    """What is logged about this job is of this trace; empty: of none."""
    if trace_id:
        _traces[job_id] = trace_id
        if len(_traces) > TRACES:
            del _traces[next(iter(_traces))]


def configure(how: Literal["text", "json"]) -> None:
    """Log to stdout in this form; `text` leaves what is configured, and begins where nothing is."""
    logging.getLogger("polypod").setLevel(logging.INFO)
    if how == "text":
        logging.basicConfig(
            stream=sys.stdout, format="%(asctime)s [%(levelname)s] [%(name)s] %(message)s"
        )
        return
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    for logger in list(root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger) and logger.handlers:
            logger.handlers.clear()
            logger.propagate = True
    logging.captureWarnings(True)


class JsonLines(logging.Formatter):
    """`time`, `level`, `logger`, `message`; `job_id`, `trace_id`, `traceback` where there is one.

    The job is that of `extra={"job_id": ...}`, else of `about`, else the one the message names.
    """

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        at = datetime.fromtimestamp(record.created, timezone.utc)
        line: dict[str, Any] = {
            "time": at.isoformat("T", "milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        named = _NAMED.search(message)
        job_id = getattr(record, "job_id", "") or _job.get() or (named[1] if named else "")
        if job_id:
            line["job_id"] = job_id
        if trace_id := _traces.get(job_id):
            line["trace_id"] = trace_id
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str).encode("utf-8", "replace").decode()
