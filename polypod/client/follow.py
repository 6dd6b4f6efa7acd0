"""Following jobs to their end: events, resumed after each cut, or polling where there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast
from urllib.parse import urlencode

from polypod.client.calls import Call
from polypod.client.commands import (
    Backoff,
    Context,
    Emit,
    Flow,
    Lost,
    Read,
    Sleep,
    exchange,
    wait_or_raise,
)
from polypod.client.flows import job
from polypod.client.sse import EventParser, Message
from polypod.client.views import Event, JobView, Json, read_json

NO_EVENTS = (204, 404, 405, 406, 501)
"""There is no event stream here, or (204) nothing more to tell after the last event."""
POLL_S = (0.5, 3.0)


class States:
    """The jobs as the events tell of them so far."""

    def __init__(self, jobs: Sequence[str]) -> None:
        self._raw: dict[str, dict[str, Any]] = {job: {"job_id": job} for job in jobs}
        self.ended: set[str] = set()

    @property
    def running(self) -> list[str]:
        return [job for job in self._raw if job not in self.ended]

    def event(self, message: Message) -> Event | None:
        """The event that a message of the stream tells; None for what is not ours."""
        try:
            data: object = read_json(message.data)
        except ValueError:
            return None
        if not isinstance(data, Mapping):
            return None
        news = dict(cast(Json, data))
        only = next(iter(self._raw)) if len(self._raw) == 1 else ""
        return self.update(message.kind, str(news.get("job_id") or only), news, message.id)

    def update(self, kind: str, job_id: str, news: Json, event_id: str = "") -> Event | None:
        raw = self._raw.get(job_id)
        if raw is None:
            return None
        if kind == "snapshot":
            raw = {"job_id": job_id, **news}
        elif kind == "asset":
            others = [a for a in raw.get("assets") or () if a.get("name") != news.get("name")]
            raw = raw | {"assets": [*others, news]}
        elif kind != "log":
            raw = raw | dict(news)
        self._raw[job_id] = raw
        view = JobView.parse(raw)
        if view.done:
            self.ended.add(job_id)
        return Event(kind, view, news, event_id)


def events(
    context: Context, jobs: Sequence[str], last_event_id: str = "", files: int = 0
) -> Flow[None]:
    """Emits what happens to the jobs until all have ended.

    Files of up to `files` bytes come with the events that tell of them.

    A cut connection is resumed after the last event. Where connections open but give nothing (a
    proxy that buffers or cuts them), the jobs are polled instead.
    """
    states = States(jobs)
    backoff = Backoff(context.patience_s)
    fruitless = 0
    while states.running and fruitless < 2:
        call = _call(context, states.running, last_event_id, files)
        try:
            if not (yield from _open(context, call)):
                break
            fruitless += 1
            parser = EventParser(last_event_id)
            while states.running and (chunk := cast(bytes, (yield Read()))):
                for message in parser.feed(chunk):
                    if event := states.event(message):
                        fruitless = 0
                        backoff.succeeded()
                        yield Emit(event)
                last_event_id = parser.last_id
            if states.running:
                yield Sleep(backoff.next_s() or backoff.most_s)
        except Lost as lost:
            if lost.silent and fruitless:
                break
            yield from wait_or_raise(backoff, call, lost)
    yield from poll(context, states)


def poll(context: Context, states: States) -> Flow[None]:
    """Asks for each job again and again; emits what changed."""
    seen: dict[str, Json] = {}
    wait_s = POLL_S[0]
    while states.running:
        for job_id in states.running:
            view = yield from job(context, job_id)
            if view.raw == seen.get(job_id):
                continue
            wait_s = POLL_S[0]
            seen[job_id] = view.raw
            if event := states.update("snapshot", job_id, view.raw):
                yield Emit(event)
        if states.running:
            yield Sleep(wait_s)
            wait_s = min(wait_s * 1.3, POLL_S[1])


def _open(context: Context, call: Call) -> Flow[bool]:
    """Whether there is an event stream to be had; it is then open."""
    backoff = Backoff(context.patience_s)
    while True:
        reply = yield from exchange(context, call, stream=True)
        if reply.status == 200:
            return reply.headers.get("content-type", "").startswith("text/event-stream")
        if reply.status in NO_EVENTS:
            return False
        yield from wait_or_raise(backoff, call, reply)


def _call(context: Context, jobs: Sequence[str], last_event_id: str, files: int) -> Call:
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
    if last_event_id:
        headers["Last-Event-ID"] = last_event_id
    query = {"files": str(files)} if files else {}
    if len(jobs) == 1:
        url = context.server.path("job", jobs[0], "events")
    else:
        url = context.server.path("events")
        query["jobs"] = ",".join(jobs)
    url += f"?{urlencode(query, safe=',')}" if query else ""
    return Call("GET", url, headers, read_timeout_s=context.silence_s)
