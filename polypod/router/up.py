"""`polypod up`: the router and its pods, from one terminal, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import socket
import time
from collections.abc import Generator
from typing import cast

import typer
import uvicorn

from polypod import lifetime, logs, tracing
from polypod.background import Background
from polypod.command import typed
from polypod.pods.local import LocalPods, PodSpec
from polypod.router.app import create_router, make_engine
from polypod.router.dispatch import Dispatcher
from polypod.router.endpoint import Endpoint, Known
from polypod.router.fleet import Fleet
from polypod.router.scaler import Scaled, Scaler
from polypod.settings import Settings

QUEUE = 10_000
"""How many jobs a router keeps waiting, unless it is told otherwise."""
LOOK_S = 0.1
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def up(settings: Settings, fleet: Fleet) -> None:
    """Serves until a signal; then everything is ended, and jobs are kept.

    Raises:
        Problem: the address may not be served, or another router works on the data folder.
        click.ClickException: the port is taken.
    """
    if settings.log == "json":
        logs.configure("json")
    else:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
    tracing.start("polypod-router")
    lifetime.check_address(settings)
    listening = lifetime.bound_socket(settings.host, settings.port)
    settings = settings.model_copy(update={"port": int(listening.getsockname()[1])})
    if "max_queue_size" not in settings.model_fields_set:
        settings = settings.model_copy(update={"max_queue_size": QUEUE})
    with listening:
        asyncio.run(_Up(settings, fleet).serve(listening))
    tracing.stop()


class _Up:
    def __init__(self, settings: Settings, fleet: Fleet) -> None:
        self._scaled = scaled_pods(fleet)
        pods = LocalPods(pod_specs(fleet), settings.data / "pods", _asleep(fleet))
        endpoints = [*fleet.fixed(), *_not_yet_running(fleet)]
        self._settings = settings
        self._engine = make_engine(itertools.chain(endpoints, pods.left_running()), settings, pods)
        self._app = app = create_router(self._engine, settings)
        self._requests = lifetime.OpenRequests()
        config = uvicorn.Config(
            lifetime.EndOnStop(app, self._requests),
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=int(lifetime.GRACE_S) + 1,
        )
        self._server = _Server(config)

    async def serve(self, listening: socket.socket) -> None:
        before_it_served = contextlib.suppress(asyncio.CancelledError)
        async with contextlib.AsyncExitStack() as stack:
            stack.enter_context(self._signals())
            stack.enter_context(before_it_served)
            await stack.enter_async_context(self._app.router.lifespan_context(self._app))
            dispatcher = cast(Dispatcher, self._engine.runner)
            beside = Background()
            beside.run(self._tell())
            beside.run(Scaler(self._scaled, dispatcher).run())
            lifetime.freeze_memory()
            await self._server.serve([listening])
            await beside.stop()
            _say("Stopping: jobs are kept.")
        _say("Stopped.")

    @contextlib.contextmanager
    def _signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        main = asyncio.current_task()
        assert main

        def stop() -> None:
            self._requests.stop()
            self._server.force_exit = self._server.should_exit
            self._server.should_exit = True
            if not self._server.started:
                main.cancel()

        minded = [n for n in SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]  # as by nohup
        for number in minded:
            loop.add_signal_handler(number, stop)
        yield
        for number in minded:
            loop.remove_signal_handler(number)

    async def _tell(self) -> None:
        """Tells the address, then every change of an endpoint's state."""
        await self._server.serving.wait()
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{host}:{settings.port}"
        _say(f"The router is at {url}; its data is in {settings.data}. Stop it with Ctrl-C.")
        dispatcher = cast(Dispatcher, self._engine.runner)
        told: dict[str, str] = {}
        tried = False
        while True:
            now = {e.id: _state(e) for e in dispatcher.endpoints.values()}
            for name, state in now.items():
                if told.get(name) != state:
                    _say(f"  {time.strftime('%H:%M:%S')}  {name}: {state}")
            for name in told.keys() - now.keys():
                _say(f"  {time.strftime('%H:%M:%S')}  {name}: removed")
            told = now
            if not tried and any(e.takes_jobs for e in dispatcher.endpoints.values()):
                tried = True
                again = typed(f"generate YOUR_PHOTO.jpg{_option(settings)}")
                _say(f"Try: {again}   or {url}/docs")
            await asyncio.sleep(LOOK_S)


class _Server(uvicorn.Server):
    """Leaves signals to us: they also count before it serves and after."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()


def pod_specs(fleet: Fleet) -> list[PodSpec]:
    """The pods that may run here: `inflate-1`, and so on."""
    return [
        PodSpec(f"{name}-{number}", of.model(name), {"MODEL_IDLE_TIMEOUT": str(of.idle_s)} | of.env)
        for name, of in fleet.local()
        for number in range(1, of.max + 1)
    ]


def scaled_pods(fleet: Fleet) -> tuple[Scaled, ...]:
    return tuple(
        Scaled(
            of.model(name),
            of.min,
            of.max,
            of.idle_s,
            tuple(f"{name}-{number}" for number in range(1, of.max + 1)),
        )
        for name, of in fleet.local()
    )


def _asleep(fleet: Fleet) -> set[str]:
    """The pods that run only once there is work for them."""
    return {
        f"{name}-{number}" for name, of in fleet.local() for number in range(of.min + 1, of.max + 1)
    }


def _not_yet_running(fleet: Fleet) -> list[Known]:
    """What runs here, as it is before it runs."""
    return [
        Known(f"{name}-{number}", "", "local", models=(of.model(name),))
        for name, of in fleet.local()
        for number in range(1, of.max + 1)
    ]


def _state(endpoint: Endpoint) -> str:
    return f"{endpoint.state} ({endpoint.reason})" if endpoint.reason else endpoint.state


def _option(settings: Settings) -> str:
    return "" if settings.port == 8000 else f" --url http://127.0.0.1:{settings.port}"


def _say(line: str) -> None:
    typer.echo(line, err=True)
