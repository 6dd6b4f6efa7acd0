"""A router and one pod for a single errand, as `polypod run` needs them: gone when it ends.

The router is a thread of this process, so it starts at once and cannot be left over; the pod ends
with this process, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import cast

import uvicorn

from polypod.client import ClientError
from polypod.errors import Problem
from polypod.lifetime import bound_socket
from polypod.pods.local import LocalPods, PodSpec
from polypod.router.app import create_router, make_engine
from polypod.router.dispatch import Dispatcher
from polypod.settings import Settings

READY_S = 1200.0
"""Large models load for minutes; what cannot load says so long before."""
STOP_S = 30.0
POLL_S = 0.02


@contextlib.contextmanager
def running_router(model: str, settings: Settings, log: Path) -> Generator[Once]:
    """A router on a free loopback port, with a pod of `model`; what it would log goes to `log`."""
    handler = logging.FileHandler(log)
    logger = logging.getLogger("polypod")
    logger.addHandler(handler)
    logger.propagate = False
    once = Once(model, settings)
    try:
        once.start()
        yield once
    finally:
        once.stop()
        logger.removeHandler(handler)
        logger.propagate = True
        handler.close()


class Once:
    def __init__(self, model: str, settings: Settings) -> None:
        self._listening = bound_socket("127.0.0.1", 0)
        port = int(self._listening.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        # Nothing from outside may turn this into something that asks for keys or keeps files afar.
        own = {"host": "127.0.0.1", "port": port, "auth": "on", "api_keys": (), "public_url": ""}
        settings = settings.model_copy(update=own | {"database_url": "", "storage": ""})
        self._pod = f"{model}-1"
        self._pods = LocalPods([PodSpec(self._pod, model)], settings.data / "pods", bound=True)
        self._engine = make_engine((), settings, self._pods)
        self._app = create_router(self._engine, settings)
        config = uvicorn.Config(self._app, lifespan="off", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when router and pod are gone. A second Ctrl-C does not wait for that."""
        self._server.should_exit = True
        with contextlib.suppress(KeyboardInterrupt):
            self._thread.join(STOP_S)

    def wait_ready(self) -> None:
        """Until the pod takes jobs.

        Raises:
            ClientError: in the pod's or the router's words, if it cannot, or takes too long.
        """
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if self._failure or not self._thread.is_alive():
                raise self._in_words(self._failure)
            if self._pod in self._pods.ended:
                raise ClientError(f"The service {self._pods.ended[self._pod]}.")
            dispatcher = cast(Dispatcher | None, vars(self._engine).get("runner"))
            endpoint = dispatcher.endpoints.get(self._pod) if dispatcher else None
            if endpoint and endpoint.takes_jobs:
                return
            if endpoint and endpoint.health.get("status") == "degraded":
                reasons = endpoint.health.get("reasons") or ()
                raise ClientError("The model does not load.", *map(str, reasons[:1]))
            time.sleep(POLL_S)
        raise ClientError(f"The service was not ready after {READY_S:.0f} s.")

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self._failure = error

    async def _serve(self) -> None:
        async with self._app.router.lifespan_context(self._app):
            with self._listening:
                await self._server.serve([self._listening])

    @staticmethod
    def _in_words(error: Exception | None) -> ClientError:
        if isinstance(error, Problem):
            return ClientError(error.message, error.hint)
        return ClientError(f"The service ended ({error}).")
