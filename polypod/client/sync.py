"""The blocking client."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from polypod.client import downloads, flows, follow
from polypod.client.calls import DEFAULT_URL, PictureSource, Server
from polypod.client.commands import (
    Context,
    Do,
    Emit,
    Flow,
    Meanwhile,
    Open,
    Read,
    Reply,
    Send,
    Sleep,
)
from polypod.client.errors import JobFailed
from polypod.client.transport import add, connected, lost, request_options
from polypod.client.views import (
    Download,
    Event,
    Health,
    JobView,
    Json,
    ModelCard,
    UploadedImage,
)

T = TypeVar("T")


class Client:
    """Talks with one service. Use it as a context manager, or call `close`. Threads may share it.

    `api_key` is POLYPOD_API_KEY if None. What may pass by itself (no connection; 502, 503, 504) is
    tried again for `patience_s`; `timeout_s` is for one answer to begin. An event
    stream that is silent for `silence_s` is given up (the service sends a comment every 15 s).
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        api_key: str | None = None,
        patience_s: float = 60,
        timeout_s: float = 30,
        silence_s: float = 25,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._context = Context(Server.of(url, api_key), patience_s, silence_s)
        self._http = connected(httpx.Client, transport, timeout_s)

    def generate(
        self,
        image: PictureSource,
        model: str | None = None,
        params: Json | None = None,
        *,
        inputs: Mapping[str, PictureSource] | None = None,
        until: str = "",
        idempotency_key: str | None = None,
    ) -> JobHandle:
        """Submits a picture; the model may be left out where only one is served.

        `inputs` are further files by name, such as a mask; `until` names the last stage to run. A
        random `idempotency_key` makes retries harmless; give your own to reach further than this
        call.
        """
        flow = flows.generate(
            self._context,
            image,
            model=model,
            params=params,
            inputs=inputs,
            until=until,
            idempotency_key=idempotency_key,
        )
        return JobHandle(self, self._run(flow))

    def job(self, job: JobId) -> JobHandle:
        """A handle of a job and its state now."""
        return JobHandle(self, self._run(flows.job(self._context, _id(job))))

    def events(self, *jobs: JobId, last_event_id: str = "") -> Iterator[Event]:
        """What happens to the jobs until all have ended, over one connection."""
        if not jobs:
            return iter(())
        flow = follow.events(self._context, [_id(job) for job in jobs], last_event_id)
        return self._iterate(flow)

    def wait(
        self,
        job: JobId,
        *,
        on_event: Callable[[Event], object] | None = None,
        check: bool = True,
    ) -> JobView:
        """The final state of the job.

        Raises:
            JobFailed: if it failed or was cancelled, unless `check` is False.
        """
        for event in self.events(job):
            if on_event:
                on_event(event)
        view = self.job(job).view
        if check and view.status != "completed":
            raise JobFailed(view)
        return view

    def download(
        self,
        job: JobId,
        path: str | os.PathLike[str],
        asset: str | None = None,
        format: str | None = None,
    ) -> Download:
        """Saves the main result (in `format` if given) or the named asset, checked, or raises.

        `path` is a file, which is only ever replaced by a whole one, or an existing folder.
        """
        flow = downloads.download(self._context, _id(job), Path(path), asset, format)
        return self._run(flow)

    def cancel(self, job: JobId) -> JobView:
        """Asks the job to stop. One that has ended stays as it is."""
        return self._run(flows.cancel(self._context, _id(job)))

    def delete(self, job: JobId) -> None:
        """Deletes a finished job; cancels one that is not finished."""
        self._run(flows.delete(self._context, _id(job)))

    def continue_(
        self,
        job: JobId,
        params: Json | None = None,
        *,
        until: str = "",
        idempotency_key: str | None = None,
    ) -> JobHandle:
        """A new job that goes on from this one's stages, with these parameters changed."""
        flow = flows.continue_(self._context, _id(job), params, until, idempotency_key)
        return JobHandle(self, self._run(flow))

    def jobs(
        self, *, model: str = "", status: str = "", limit: int | None = None
    ) -> Iterator[JobView]:
        """The history, newest first; pages are fetched as they are needed."""
        filters = flows.job_filters(model, status, limit)
        left = limit
        while True:
            page, cursor = self._run(flows.jobs_page(self._context, filters))
            yield from page[:left]
            left = None if left is None else left - len(page)
            if not (page and cursor) or (left is not None and left <= 0):
                return
            filters["cursor"] = cursor

    def models(self) -> Sequence[ModelCard]:
        return self._run(flows.models(self._context))

    def model(self, name: str) -> ModelCard:
        return self._run(flows.model(self._context, name))

    def health(self) -> Health:
        return self._run(flows.health(self._context))

    def endpoints(self) -> list[Json]:
        """Of a router: where its models are served, as `GET /endpoints` tells it."""
        return self._run(flows.endpoints(self._context))

    def add_endpoint(self, url: str, name: str = "", api_key: str = "") -> Json:
        """Lets a router send jobs to the service at `url`; `api_key` is that service's."""
        return self._run(flows.add_endpoint(self._context, url, name, api_key))

    def remove_endpoint(self, name: str) -> Json:
        """It gets no more jobs, and goes once it has done those that it has."""
        return self._run(flows.remove_endpoint(self._context, name))

    def upload_image(self, image: PictureSource) -> UploadedImage:
        """Stores a picture at the service, for several calls of `generate`."""
        return self._run(flows.upload_image(self._context, image))

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, flow: Flow[T]) -> T:
        steps = self._steps(flow)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def _iterate(self, flow: Flow[None]) -> Iterator[Event]:
        yield from self._steps(flow)

    def _steps(self, flow: Flow[T]) -> Generator[Event, None, T]:
        """Carries out what the flow asks for; yields what it emits, returns what it returns."""
        answer: Any = None
        failure: Exception | None = None
        with contextlib.closing(flow), contextlib.closing(_Connection(self._http)) as connection:
            while True:
                try:
                    command = flow.throw(failure) if failure else flow.send(answer)
                except StopIteration as end:
                    return end.value
                answer = failure = None
                if isinstance(command, Emit):
                    yield command.event
                    continue
                try:
                    answer = connection.do(command)
                except (httpx.RequestError, httpx.InvalidURL) as error:
                    failure = lost(error)
                except Exception as error:
                    failure = error


class _Connection:
    """Carries out commands; holds at most one open answer."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http
        self._open: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def do(self, command: Send | Open | Read | Sleep | Do | Meanwhile) -> Any:
        if isinstance(command, Read):
            return next(self._chunks, b"")
        if isinstance(command, Do | Meanwhile):
            return command.work()
        self.close()
        return time.sleep(command.seconds) if isinstance(command, Sleep) else self._request(command)

    def _request(self, command: Send | Open) -> Reply:
        request = self._http.build_request(**request_options(self._http.timeout, command.call))
        response = self._http.send(request, stream=True)
        if isinstance(command, Open) and response.status_code in (200, 206):
            self._open, self._chunks = response, response.iter_raw()
            return Reply(response.status_code, response.headers)
        with contextlib.closing(response):
            body = bytearray()
            for chunk in response.iter_bytes():
                add(body, chunk)
            return Reply(response.status_code, response.headers, bytes(body))

    def close(self) -> None:
        if self._open:
            self._open.close()
            self._open, self._chunks = None, iter(())


@dataclass(frozen=True)
class JobHandle:
    """A job at the service; `view` is its state when the handle was made."""

    client: Client
    view: JobView

    @property
    def id(self) -> str:
        return self.view.id

    def refresh(self) -> JobHandle:
        return self.client.job(self)

    def events(self) -> Iterator[Event]:
        return self.client.events(self)

    def wait(
        self, *, on_event: Callable[[Event], object] | None = None, check: bool = True
    ) -> JobView:
        return self.client.wait(self, on_event=on_event, check=check)

    def download(
        self, path: str | os.PathLike[str], asset: str | None = None, format: str | None = None
    ) -> Download:
        return self.client.download(self, path, asset, format)

    def cancel(self) -> JobView:
        return self.client.cancel(self)

    def delete(self) -> None:
        self.client.delete(self)

    def continue_(self, params: Json | None = None, *, until: str = "") -> JobHandle:
        return self.client.continue_(self, params, until=until)


JobId = str | JobView | JobHandle


def _id(job: JobId) -> str:
    return job if isinstance(job, str) else job.id
