"""A small HTTP service that speaks the API of DESIGN section 4 and breaks as it is told.

It runs on a real socket in a thread, so clients meet real faults: answers cut in the middle, event
streams that end or are buffered, refusals that pass. Jobs only wait; what they do is in their
parameters: `seconds`, `fail`, `hold` (until `release`), `size` of the result in bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polypod.jobs.events import EventHub

ENDED = ("completed", "failed", "cancelled")


@dataclass
class Fault:
    """What happens, `times` times, to requests whose path holds `path`.

    `status`: this answer instead. `cut`: the connection breaks after so many bytes of the body.
    `lost`: the request is carried out, its answer is lost. `mute`: the headers come, then nothing.
    """

    path: str
    times: int = 1
    method: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut: int | None = None
    lost: bool = False
    mute: bool = False
    change: Callable[[bytes], bytes] | None = None


class Faults:
    """ASGI middleware that carries the faults out."""

    def __init__(self, app: ASGIApp, service: SmallService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        query = scope["query_string"].decode()
        self._service.seen.append(Seen(scope["method"], scope["path"], query, headers))
        fault = self._service.next_fault(scope["method"], scope["path"])
        if fault is None:
            return await self._app(scope, receive, send)
        if fault.status:
            response = Response(fault.body, fault.status, fault.headers)
            return await response(scope, receive, send)
        await self._broken(fault, scope, receive, send)
        return None

    async def _broken(self, fault: Fault, scope: Scope, receive: Receive, send: Send) -> None:
        sent = 0

        async def breaking(message: Message) -> None:
            nonlocal sent
            body = message.get("body", b"")
            if message["type"] == "http.response.start" and fault.headers:
                names = {name.encode() for name in fault.headers}
                kept = [(k, v) for k, v in message["headers"] if k not in names]
                extra = [(k.encode(), v.encode()) for k, v in fault.headers.items()]
                message = message | {"headers": kept + extra}
            if message["type"] == "http.response.body":
                if fault.change and body:
                    message = message | {"body": fault.change(body)}
                if fault.mute:
                    await asyncio.sleep(3600)
                if fault.lost or (fault.cut is not None and sent + len(body) > fault.cut):
                    part = b"" if fault.lost else body[: (fault.cut or 0) - sent]
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                    raise ConnectionAbortedError("cut on purpose")
            sent += len(body)
            await send(message)

        await self._app(scope, receive, breaking)


@dataclass(frozen=True)
class Seen:
    method: str
    path: str
    query: str
    headers: dict[str, str]


@dataclass
class Job:
    id: str
    seq: int
    params: dict[str, Any]
    inputs: dict[str, bytes]
    status: str = "queued"
    progress: float = 0
    stage: str | None = None
    error: dict[str, str] | None = None
    parent: str | None = None
    until: str = ""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)

    def result(self) -> bytes:
        return random.Random(self.id).randbytes(int(self.params.get("size", 1000)))

    def assets(self) -> dict[str, bytes]:
        done = self.status == "completed" and not self.until
        views = {f"view_{i}.png": f"view {i} of {self.id}".encode() for i in range(4)}
        manifest = {"manifest.json": json.dumps({"job_id": self.id}).encode()}
        first = {"prepared.json": b"{}"} if self.progress >= 20 else {}
        return first | ({"model.glb": self.result()} | views | manifest if done else {})


class SmallService:
    """Use it as a context manager; `url` is where it listens."""

    def __init__(self, *, prefix: str = "", key: str = "", max_queue_size: int = 100) -> None:
        self.prefix = prefix
        self.key = key
        self.max_queue_size = max_queue_size
        self.page_size = 2
        self.public_url = ""
        self.redirect_downloads_to = ""
        self.seen: list[Seen] = []
        self.jobs: dict[str, Job] = {}
        self.by_key: dict[str, str] = {}
        self.images: dict[str, bytes] = {}
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0

    # What tests say

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}{self.prefix}"

    def breaks(self, path: str, **fault: Any) -> Fault:
        with self._lock:
            self._faults.append(Fault(path, **fault))
            return self._faults[-1]

    def heals(self) -> None:
        with self._lock:
            self._faults.clear()

    def release(self) -> None:
        """Lets held jobs go on."""
        for job in list(self.jobs.values()):
            self._loop.call_soon_threadsafe(job.go_on.set)

    def requests(self, method: str, path: str) -> list[Seen]:
        return [s for s in self.seen if s.method == method and path in s.path]

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if fault.path in path and fault.times > 0 and fault.method in ("", method):
                    fault.times -= 1
                    return fault
        return None

    def __enter__(self) -> SmallService:
        listener = socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        app = Starlette(
            routes=[Mount(self.prefix, routes=self._routes())] if self.prefix else self._routes(),
            middleware=[Middleware(Faults, service=self)],
        )
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        started = threading.Event()

        async def serve() -> None:
            self._loop = asyncio.get_running_loop()
            self.hub = EventHub()
            started.set()
            await self._server.serve([listener])
            for task in self._tasks:
                task.cancel()

        self._thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        assert not self._thread.is_alive()

    # What it answers

    def _routes(self) -> list[Route]:
        def route(path: str, handler: Any, *methods: str) -> Route:
            return Route(path, self._guarded(handler), methods=list(methods or ("GET",)))

        return [
            route("/health", self._health),
            route("/models", self._models),
            route("/models/{model}", self._model),
            route("/generate", self._generate, "POST"),
            route("/models/{model}/generate", self._generate, "POST"),
            route("/images", self._image, "POST"),
            route("/job/{id}", self._job),
            route("/job/{id}", self._delete, "DELETE"),
            route("/job/{id}/events", self._events),
            route("/events", self._events),
            route("/job/{id}/download", self._download),
            route("/job/{id}/result/{asset}", self._download),
            route("/job/{id}/cancel", self._cancel, "POST"),
            route("/job/{id}/continue", self._continue, "POST"),
            route("/jobs", self._jobs),
        ]

    def _guarded(self, handler: Any) -> Any:
        async def guarded(request: Request) -> Response:
            if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
                return _problem(401, "unauthorized", "An API key is needed.")
            if "id" in request.path_params and request.path_params["id"] not in self.jobs:
                return _problem(404, "not_found", "There is no such job.", "GET /jobs lists them.")
            return await handler(request)

        return guarded

    async def _health(self, request: Request) -> Response:
        queued = sum(job.status == "queued" for job in self.jobs.values())
        queue = {"queued": queued, "processing": 0, "max_queue_size": self.max_queue_size}
        return JSONResponse(
            {"status": "healthy", "model_loaded": True, "version": "1.2.3", "queue": queue}
        )

    async def _models(self, request: Request) -> Response:
        return JSONResponse({"models": [_CARD]})

    async def _model(self, request: Request) -> Response:
        if request.path_params["model"] != "inflate":
            return _problem(404, "not_found", "There is no such model here.", "GET /models.")
        return JSONResponse(_CARD)

    async def _generate(self, request: Request) -> Response:
        key = request.headers["idempotency-key"]
        fields, files = await _fields(request)
        if (stored := fields.pop("image_id", None)) is not None:
            files["image"] = self.images[stored]
        if "colour" in fields:
            return _problem(422, "bad_input", "Unknown parameter 'colour'.", "Use: seconds.")
        if key in self.by_key:
            return self._accepted(self.jobs[self.by_key[key]])
        queued = sum(job.status not in ENDED for job in self.jobs.values())
        if queued >= self.max_queue_size:
            answer = _problem(503, "queue_full", "The queue is full.", queue_length=queued)
            answer.headers["retry-after"] = "1"
            return answer
        job = self._begin(fields, files)
        self.by_key[key] = job.id
        return self._accepted(job)

    def _begin(self, fields: dict[str, Any], files: dict[str, bytes], parent: str = "") -> Job:
        until = fields.pop("until", "")
        job = Job(uuid.uuid4().hex, len(self.jobs) + 1, fields, files)
        job.parent, job.until = parent or None, until
        self.jobs[job.id] = job
        task = asyncio.create_task(self._work(job))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return job

    def _accepted(self, job: Job) -> Response:
        return JSONResponse(
            {
                "job_id": job.id,
                "status": job.status,
                "position": 1,
                "status_url": f"{self.public_url}{self.prefix}/job/{job.id}",
                "message": "Job queued at position 1. Poll status_url for updates.",
            },
            202,
        )

    async def _work(self, job: Job) -> None:
        self._tell(job, "status", status="processing", progress=0, stage="prepare")
        for step in range(5):
            await asyncio.sleep(float(job.params.get("seconds", 0.05)) / 5)
            if job.params.get("hold") and step == 2:
                await job.go_on.wait()
            if job.status in ENDED:
                return
            if step == 2 and job.params.get("fail"):
                job.error = {"code": "bad_input", "message": "It is empty.", "hint": "Try another."}
                self._tell(job, "status", status="failed")
                return
            stage = "prepare" if step == 0 else "work"
            self._tell(job, "progress", progress=20.0 * (step + 1), stage=stage)
            self.hub.publish(job.id, "log", {"line": f"step {step}"})
        self._tell(job, "status", status="completed")

    def _tell(self, job: Job, kind: str, **news: Any) -> None:
        for name, value in news.items():
            setattr(job, name, value)
        self.hub.publish(job.id, kind, self._describe(job) if kind == "status" else news)

    def _describe(self, job: Job) -> dict[str, Any]:
        base = f"{self.public_url}{self.prefix}/job/{job.id}"
        assets = [
            {"name": n, "kind": "output", "size": len(data), "url": f"{base}/result/{n}"}
            for n, data in job.assets().items()
        ]
        done = job.status == "completed"
        return {
            "job_id": job.id,
            "model": "inflate",
            "status": job.status,
            "position": int(job.status == "queued"),
            "queue_length": 0,
            "progress": 100.0 if done else job.progress,
            "stage": job.stage if job.status == "processing" else None,
            "message": job.status.capitalize(),
            "eta_seconds": 1.5 if job.status == "processing" else None,
            "created_at": "2026-01-02T03:04:05Z",
            "processing_time": 0.25 if done else None,
            "download_url": f"{base}/download" if done and not job.until else None,
            "assets": assets,
            "facts": {"triangles": 12, "watertight": True} if done else {},
            "params": job.params,
            "parent": job.parent,
            "error": job.error,
        }

    async def _job(self, request: Request) -> Response:
        return JSONResponse(self._describe(self.jobs[request.path_params["id"]]))

    async def _events(self, request: Request) -> Response:
        ids = request.query_params.get("jobs", request.path_params.get("id", "")).split(",")
        if not all(job in self.jobs for job in ids):
            return _problem(404, "not_found", "There is no such job.", "GET /jobs lists them.")
        return StreamingResponse(
            self._event_text(ids, request.headers.get("last-event-id", "")),
            media_type="text/event-stream",
        )

    async def _event_text(self, ids: list[str], last: str) -> AsyncIterator[str]:
        async def snapshot(job: str) -> dict[str, Any]:
            return self._describe(self.jobs[job])

        yield ": hello\n\n"
        async for event in self.hub.stream(ids, snapshot, last):
            data = json.dumps({"job_id": event.job_id, **event.data})
            yield f"id: {event.id}\nevent: {event.kind}\ndata: {data}\n\n"

    async def _download(self, request: Request) -> Response:
        job = self.jobs[request.path_params["id"]]
        name = request.path_params.get("asset", "model.glb")
        if self.redirect_downloads_to:
            return RedirectResponse(self.redirect_downloads_to + request.url.path, 302)
        data = job.assets().get(name)
        if data is None:
            known = name == "model.glb" and job.status not in ENDED
            status, code = (409, "conflict") if known else (404, "not_found")
            return _problem(status, code, f"There is no {name!r} yet.", "Wait for the job.")
        format_ = request.query_params.get("format", "glb")
        if format_ != "glb":
            name, data = f"model.{format_}", format_.encode() + data
        return _ranged(request, name, data)

    async def _cancel(self, request: Request) -> Response:
        job = self.jobs[request.path_params["id"]]
        if job.status not in ENDED:
            self._tell(job, "status", status="cancelled")
            job.go_on.set()
        return JSONResponse(self._describe(job))

    async def _delete(self, request: Request) -> Response:
        job = self.jobs[request.path_params["id"]]
        if job.status not in ENDED:
            return await self._cancel(request)
        del self.jobs[job.id]
        return Response(status_code=204)

    async def _continue(self, request: Request) -> Response:
        parent = self.jobs[request.path_params["id"]]
        fields = json.loads(await request.body())
        return self._accepted(self._begin(parent.params | fields, parent.inputs, parent.id))

    async def _image(self, request: Request) -> Response:
        _, files = await _fields(request)
        self.images[f"img{len(self.images)}"] = files["image"]
        return JSONResponse({"image_id": f"img{len(self.images) - 1}"}, 201)

    async def _jobs(self, request: Request) -> Response:
        before = int(request.query_params.get("cursor", len(self.jobs) + 1))
        status = request.query_params.get("status", "")
        found = [j for j in self.jobs.values() if j.seq < before and status in ("", j.status)]
        page = sorted(found, key=lambda j: -j.seq)[: self.page_size]
        more = str(page[-1].seq) if len(found) > len(page) else None
        return JSONResponse({"jobs": [self._describe(j) for j in page], "next": more})


async def _fields(request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
    if request.headers["content-type"].startswith("application/json"):
        fields = json.loads(await request.body())
        return fields, {}
    form = await request.form()
    files = {k: await v.read() for k, v in form.items() if isinstance(v, UploadFile)}
    return {k: v for k, v in form.items() if isinstance(v, str)}, files


def _problem(status: int, code: str, message: str, hint: str = "", **extra: Any) -> Response:
    document = {**extra, "status": status, "code": code, "error": message, "hint": hint}
    return JSONResponse(document, status, media_type="application/problem+json")


def _ranged(request: Request, name: str, data: bytes) -> Response:
    etag = f'"{hashlib.sha256(data).hexdigest()}"'
    start = 0
    wanted = request.headers.get("range", "")
    if wanted and request.headers.get("if-range", etag) == etag:
        start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    headers = {
        "etag": etag,
        "content-length": str(len(data) - start),
        "content-disposition": f'attachment; filename="{name}"',
    }
    if start:
        headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(start, len(data), 65536):
            yield data[at : at + 65536]

    return StreamingResponse(
        pieces(), 206 if start else 200, headers, media_type="model/gltf-binary"
    )


_CARD = {
    "name": "inflate",
    "title": "Inflate",
    "summary": "Blows a silhouette up.",
    "licence": {"code": "MIT"},
    "inputs": {"image": {"kind": "image", "required": True}, "mask": {"kind": "image"}},
    "outputs": ["glb"],
    "parameters": {
        "properties": {
            "seconds": {
                "type": "number",
                "minimum": 0,
                "default": 0.05,
                "description": "Time that it takes.",
            },
            "preset": {"type": "string", "enum": ["draft", "high"], "default": "draft"},
        }
    },
    "presets": {"draft": {}, "high": {"seconds": 1}},
}
