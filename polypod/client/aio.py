"""The client for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx

from polypod.client import downloads, flows, follow
from polypod.client.calls import DEFAULT_URL, Call, PictureSource, Server
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
from polypod.client.fetch import Arriving, fetch
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


class AsyncClient:
    """Talks with one service. Use it as an async context manager, or call `aclose`.

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
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._context = Context(Server.of(url, api_key), patience_s, silence_s)
        self._http = connected(httpx.AsyncClient, transport, timeout_s)

    async def generate(
        self,
        image: PictureSource,
        model: str | None = None,
        params: Json | None = None,
        *,
        inputs: Mapping[str, PictureSource] | None = None,
        until: str = "",
        idempotency_key: str | None = None,
    ) -> AsyncJobHandle:
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
        return AsyncJobHandle(self, await self._run(flow))

    async def job(self, job: JobId) -> AsyncJobHandle:
        """A handle of a job and its state now."""
        return AsyncJobHandle(self, await self._run(flows.job(self._context, _id(job))))

    async def events(
        self, *jobs: JobId, last_event_id: str = "", files: int = 0
    ) -> AsyncGenerator[Event]:
        """What happens to the jobs until all have ended, over one connection.

        Files of up to `files` bytes (64 KiB at most) come with the events that tell of them.

        Whoever leaves early closes it with `contextlib.aclosing`.
        """
        flow = follow.events(self._context, [_id(job) for job in jobs], last_event_id, files)
        async with contextlib.aclosing(self._steps(flow, _Outcome())) as steps:
            async for event in steps:
                yield event

    async def wait(
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
        async with contextlib.aclosing(self.events(job)) as events:
            async for event in events:
                if on_event:
                    on_event(event)
        view = (await self.job(job)).view
        if check and view.status != "completed":
            raise JobFailed(view)
        return view

    async def download(
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
        return await self._run(flow)

    async def fetch(self, path: str, file: Arriving) -> None:
        """Any file of the service, as `download` fetches a result; raises as that does."""
        call = Call("GET", self._context.server.url + path)
        await self._run(fetch(self._context, call, file))

    async def cancel(self, job: JobId) -> JobView:
        """Asks the job to stop. One that has ended stays as it is."""
        return await self._run(flows.cancel(self._context, _id(job)))

    async def delete(self, job: JobId) -> None:
        """Deletes a finished job; cancels one that is not finished."""
        await self._run(flows.delete(self._context, _id(job)))

    async def continue_(
        self,
        job: JobId,
        params: Json | None = None,
        *,
        until: str = "",
        idempotency_key: str | None = None,
    ) -> AsyncJobHandle:
        """A new job that goes on from this one's stages, with these parameters changed."""
        flow = flows.continue_(self._context, _id(job), params, until, idempotency_key)
        return AsyncJobHandle(self, await self._run(flow))

    async def jobs(
        self, *, model: str = "", status: str = "", limit: int | None = None
    ) -> AsyncIterator[JobView]:
        """The history, newest first; pages are fetched as they are needed."""
        filters = flows.job_filters(model, status, limit)
        left = limit
        while True:
            page, cursor = await self._run(flows.jobs_page(self._context, filters))
            for job in page[:left]:
                yield job
            left = None if left is None else left - len(page)
            if not (page and cursor) or (left is not None and left <= 0):
                return
            filters["cursor"] = cursor

    async def models(self) -> Sequence[ModelCard]:
        return await self._run(flows.models(self._context))

    async def model(self, name: str) -> ModelCard:
        return await self._run(flows.model(self._context, name))

    async def health(self) -> Health:
        return await self._run(flows.health(self._context))

    async def endpoints(self) -> list[Json]:
        """Of a router: where its models are served, as `GET /endpoints` tells it."""
        return await self._run(flows.endpoints(self._context))

    async def add_endpoint(self, url: str, name: str = "", api_key: str = "") -> Json:
        """Lets a router send jobs to the service at `url`; `api_key` is that service's."""
        return await self._run(flows.add_endpoint(self._context, url, name, api_key))

    async def remove_endpoint(self, name: str) -> Json:
        """It gets no more jobs, and goes once it has done those that it has."""
        return await self._run(flows.remove_endpoint(self._context, name))

    async def upload_image(self, image: PictureSource) -> UploadedImage:
        """Stores a picture at the service, for several calls of `generate`."""
        return await self._run(flows.upload_image(self._context, image))

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _run(self, flow: Flow[T]) -> T:
        outcome = _Outcome()
        async with contextlib.aclosing(self._steps(flow, outcome)) as steps:
            async for _ in steps:
                pass
        return outcome.value

    async def _steps(self, flow: Flow[Any], outcome: _Outcome) -> AsyncGenerator[Event]:
        """Carries out what the flow asks for; yields what it emits, keeps what it returns."""
        answer: Any = None
        failure: Exception | None = None
        connection = _Connection(self._http)
        with contextlib.closing(flow):
            async with contextlib.aclosing(connection):
                while True:
                    try:
                        command = flow.throw(failure) if failure else flow.send(answer)
                    except StopIteration as end:
                        outcome.value = end.value
                        return
                    answer = failure = None
                    if isinstance(command, Emit):
                        yield command.event
                        continue
                    try:
                        answer = await connection.do(command)
                    except (httpx.RequestError, httpx.InvalidURL) as error:
                        failure = lost(error)
                    except Exception as error:
                        failure = error


@dataclass
class _Outcome:
    """What a flow returned (an async generator cannot return it)."""

    value: Any = None


class _Connection:
    """Carries out commands; holds at most one open answer."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self._open: httpx.Response | None = None
        self._work: asyncio.Future[Any] | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def do(self, command: Send | Open | Read | Sleep | Do | Meanwhile) -> Any:
        if isinstance(command, Read):
            return await anext(self._chunks, b"") if self._chunks else b""
        if isinstance(command, Do | Meanwhile):
            await self._settle()
            self._work = asyncio.ensure_future(asyncio.to_thread(command.work))
            return await self._settle() if isinstance(command, Do) else None
        await self._close()
        if isinstance(command, Sleep):
            return await asyncio.sleep(command.seconds)
        return await self._request(command)

    async def _settle(self) -> Any:
        """What the work under way gave, or raises what it raised."""
        if self._work:
            await asyncio.wait([self._work])
            work, self._work = self._work, None
            return work.result()

    async def _request(self, command: Send | Open) -> Reply:
        request = self._http.build_request(**request_options(self._http.timeout, command.call))
        response = await self._http.send(request, stream=True)
        if isinstance(command, Open) and response.status_code in (200, 206):
            self._open, self._chunks = response, response.aiter_raw()
            return Reply(response.status_code, response.headers)
        async with contextlib.aclosing(response):
            body = bytearray()
            async for chunk in response.aiter_bytes():
                add(body, chunk)
            return Reply(response.status_code, response.headers, bytes(body))

    async def aclose(self) -> None:
        """No thread works for it any more when it returns."""
        await self._close()
        with contextlib.suppress(Exception):
            await self._settle()

    async def _close(self) -> None:
        if self._open:
            await self._open.aclose()
            self._open = self._chunks = None


@dataclass(frozen=True)
class AsyncJobHandle:
    """A job at the service; `view` is its state when the handle was made."""

    client: AsyncClient
    view: JobView

    @property
    def id(self) -> str:
        return self.view.id

    async def refresh(self) -> AsyncJobHandle:
        return await self.client.job(self)

    def events(self) -> AsyncGenerator[Event]:
        return self.client.events(self)

    async def wait(
        self, *, on_event: Callable[[Event], object] | None = None, check: bool = True
    ) -> JobView:
        return await self.client.wait(self, on_event=on_event, check=check)

    async def download(
        self, path: str | os.PathLike[str], asset: str | None = None, format: str | None = None
    ) -> Download:
        return await self.client.download(self, path, asset, format)

    async def cancel(self) -> JobView:
        return await self.client.cancel(self)

    async def delete(self) -> None:
        await self.client.delete(self)

    async def continue_(self, params: Json | None = None, *, until: str = "") -> AsyncJobHandle:
        return await self.client.continue_(self, params, until=until)


JobId = str | JobView | AsyncJobHandle


def _id(job: JobId) -> str:
    return job if isinstance(job, str) else job.id
