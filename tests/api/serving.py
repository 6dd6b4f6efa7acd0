"""The API on a real socket, with a real engine and a real worker process behind it."""

from __future__ import annotations

import asyncio
import inspect
import io
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import uvicorn
from PIL import Image

from polypod.api.app import create_app
from polypod.jobs.engine import Engine
from polypod.model import Model
from polypod.settings import Settings

DEADLINE_S = 30


def until(answer: Callable[[], Any], deadline_s: float = DEADLINE_S) -> Any:
    """What `answer` gives once it is true."""
    end = time.monotonic() + deadline_s
    while not (found := answer()):
        assert time.monotonic() < end, f"not in time: {answer.__qualname__}"
        time.sleep(0.02)
    return found


class Server:
    """The API on a socket of its own, in a thread; `client` talks to it."""

    def __init__(self, settings: Settings, model: Model) -> None:
        self.engine = Engine([model], settings)
        self.app = create_app(self.engine, settings, guarded=True)
        self._serve()

    def _serve(self) -> None:
        config = uvicorn.Config(self.app, port=0, log_level="warning", timeout_graceful_shutdown=1)
        self._server = _Uvicorn(config)
        self._thread = threading.Thread(target=self._server.run)
        self._thread.start()
        until(lambda: self._server.started or not self._thread.is_alive())
        self.port: int = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=self.url, timeout=DEADLINE_S)

    def submit(self, picture: bytes, **params: Any) -> dict[str, Any]:
        """A new job; a seed of its own keeps it from being a kept one."""
        form = {"seed": str(next(_SEEDS)), **{k: str(v) for k, v in params.items()}}
        answer = self.client.post("/generate", files={"image": ("a.png", picture)}, data=form)
        assert answer.status_code == 202, answer.text
        return answer.json()

    def job(self, job_id: str) -> dict[str, Any]:
        return self.client.get(f"/job/{job_id}").json()

    def history(self) -> list[str]:
        """Ids of the newest jobs."""
        return [job["job_id"] for job in self.client.get("/jobs").json()["jobs"]]

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended."""

        def state() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job["status"] in ("completed", "failed", "cancelled") else None

        return until(state)

    def done(self, picture: bytes, **params: Any) -> dict[str, Any]:
        """A job that is completed."""
        job = self.ended(self.submit(picture, **params)["job_id"])
        assert job["status"] == "completed", job
        return job

    def on_loop(self, work: Callable[[], Any]) -> Any:
        """What `work` gives when it runs on the server's event loop."""

        async def run() -> Any:
            found = work()
            return await found if inspect.isawaitable(found) else found

        return asyncio.run_coroutine_threadsafe(run(), self._server.loop).result(DEADLINE_S)

    def stop(self) -> None:
        self.client.close()
        self._server.should_exit = True
        self._thread.join(DEADLINE_S)


class _Uvicorn(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)


_SEEDS = itertools.count(1000)


def make_picture(size: tuple[int, int] = (40, 30), mode: str = "RGB", kind: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 128 if len(mode) == 1 else (200, 100, 50)).save(out, kind)
    return out.getvalue()
