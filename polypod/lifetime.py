"""How the API process begins and ends: never without its parent, and within seconds.

`bentoml serve` is two processes: a parent, which listens and restarts what dies, and the API
process, which serves. Here is what BentoML leaves open between them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, cast

import click
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polypod.access.kept import keys_were_made
from polypod.api.problems import problem_response
from polypod.command import typed
from polypod.errors import Forbidden, Problem, Unavailable
from polypod.settings import Settings

log = logging.getLogger("polypod.server")

PARENT = "_POLYPOD_PARENT"
LAST_WORDS = "_POLYPOD_LAST_WORDS"
GRACE_S = 3.0
"""How long requests may go on once the server is told to stop; event streams end at once."""
LIMIT_S = 30.0
"""When a stop that hangs is ended the hard way."""
AGAIN_S = 2.0
"""An API process that ends sooner than this after the last one waits for BentoML's own check."""
PR_SET_PDEATHSIG = 1


def announce_parent() -> None:
    """In the parent, before it starts the API process: say who it is, and listen for last words.

    Under `bentoml serve` a failed start then ends the command with its reason and status 1. The
    data folder is fixed here, since a built bento's API process works in the bento's own folder.
    """
    os.environ[PARENT] = str(os.getpid())
    os.environ["POLYPOD_DATA"] = str(Path(os.environ.get("POLYPOD_DATA", "data")).absolute())
    replace_at_once()
    end_on_hangup()
    context = click.get_current_context(silent=True)
    if context is None:
        return
    _refuse_taken_port(context)
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_inheritable(write, True)
    os.environ[LAST_WORDS] = str(write)

    def tell() -> None:
        try:
            words = os.read(read, 65536).decode()
        except BlockingIOError:
            return
        raise click.ClickException(words)

    context.call_on_close(tell)


def _refuse_taken_port(context: click.Context) -> None:
    from bentoml._internal.configuration.containers import BentoMLContainer

    host = context.params.get("host") or BentoMLContainer.http.host.get()
    port = context.params.get("port") or BentoMLContainer.http.port.get()
    bound_socket(host, port).close()


def bound_socket(host: str, port: int) -> socket.socket:
    """Bound, not yet listening. Raises `click.ClickException`, in words, where it cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # said to be TCP, since else asyncio leaves Nagle's algorithm on: 40 ms for an answer
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise click.ClickException(
            f"Cannot listen on {host}, port {port}: {error.strerror}. "
            "Is a server running there already? Choose another port with --port or PORT."
        ) from None
    return bound


def replace_at_once() -> None:
    """In the parent: an API process that has ended is replaced now; BentoML looks every 10 s.

    BentoML's parent is circus, which works on the main thread's loop and gives its arbiter to
    nobody. It is found behind the handler that circus sets for SIGTERM; were it not there,
    BentoML's own check would remain.
    """
    from circus.exc import ConflictError
    from tornado.ioloop import IOLoop

    if threading.current_thread() is not threading.main_thread():
        return
    last = -AGAIN_S

    async def replace() -> None:
        nonlocal last
        before, last = last, time.monotonic()
        circus = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        arbiter = getattr(getattr(circus, "controller", None), "arbiter", None)
        if arbiter is not None and last - before >= AGAIN_S:
            with contextlib.suppress(ConflictError):  # it starts, stops, or is at it already
                await arbiter.manage_watchers()

    loop = cast(Any, IOLoop.current())
    loop.asyncio_loop.add_signal_handler(signal.SIGCHLD, loop.add_callback, replace)


def end_on_hangup() -> None:
    """In the parent: a closed terminal ends it, unless it was started with nohup.

    circus would start the API process anew then, and serve on where nobody sees it.
    """
    from tornado.ioloop import IOLoop

    if threading.current_thread() is not threading.main_thread():
        return
    on_hangup: Any = signal.getsignal(signal.SIGHUP)
    if on_hangup is not signal.SIG_IGN:
        on_hangup = _end_as_asked
    loop = cast(Any, IOLoop.current()).asyncio_loop
    loop.call_soon(signal.signal, signal.SIGHUP, on_hangup)  # once circus has set its own


def _end_as_asked(_: int, __: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)


def check_address(settings: Settings) -> None:
    """Serve other machines only with keys, or when it was said that anyone may."""
    if settings.auth == "off" or settings.api_keys or _is_loopback(settings.host):
        return
    if keys_were_made(settings):
        return
    raise Forbidden(
        f"Not listening on {settings.host} without API keys: anyone who reaches it could use it.",
        _docker_lines(settings)
        or f"Make a key with `{typed('keys create NAME')}`, or set POLYPOD_API_KEYS to one or more "
        "keys, or POLYPOD_AUTH=off to serve anyone, or listen on 127.0.0.1.",
    )


def check_database(settings: Settings) -> None:
    """Two pods, or a pod and a router, on one database would do each other's jobs."""
    if settings.database_url.startswith("postgres"):
        raise Forbidden(
            "POLYPOD_DATABASE_URL names a PostgreSQL database, which is for routers; a pod would "
            "take over their jobs.",
            "Unset it here: a pod keeps its jobs in POLYPOD_DATA, and routers fetch them.",
        )


def _docker_lines(settings: Settings) -> str:
    """How the image is started: with a key, or without one for this machine alone."""
    if not settings.image:
        return ""
    gpus = "--gpus all " if "NVIDIA_VISIBLE_DEVICES" in os.environ else ""
    run, inside = f"docker run {gpus}-v polypod:/data", settings.port
    return (
        "Start it with a key, which its users then send as X-API-Key:\n"
        f"  {run} -p 8000:{inside} -e POLYPOD_API_KEYS=YOUR_KEY {settings.image}\n"
        "or without one, for this machine alone:\n"
        f"  {run} -p 127.0.0.1:8000:{inside} -e POLYPOD_AUTH=off {settings.image}"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def end_with_parent() -> None:
    """In the API process: end it when the parent is gone, whatever ended that one.

    Without this it would go on serving and hold the port after a `kill -9` of its parent.
    """
    parent = int(os.environ.get(PARENT, "0"))
    if not parent:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_outlive, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # gone before the kernel was asked
        os._exit(1)


def fail(error: Exception) -> NoReturn:
    """In the API process: end the whole server; started again it would only fail again."""
    if isinstance(error, Problem):
        words = f"{error.message} {error.hint}".strip()
        log.error("%s", words)
    else:
        words = f"The server cannot start: {type(error).__name__}: {error}"
        log.exception("The server cannot start.")
    if LAST_WORDS in os.environ:
        os.write(int(os.environ[LAST_WORDS]), words.encode())
        os.kill(os.getppid(), signal.SIGTERM)
    logging.shutdown()
    os._exit(1)


def bound_address() -> tuple[str, int] | None:
    """Host and port of the socket that BentoML handed to this process, if it did (`--fd N`)."""
    try:
        fd = int(sys.argv[sys.argv.index("--fd") + 1])
        with socket.socket(fileno=os.dup(fd)) as listening:
            name = listening.getsockname()
    except (ValueError, IndexError, OSError):
        return None
    return cast(tuple[str, int], name[:2]) if isinstance(name, tuple) else None


def freeze_memory() -> None:
    """Once the server is up: what lives as long as it does is not looked through for garbage.

    That took 40 ms and more each time, in which nothing was answered.
    """
    gc.collect()
    gc.freeze()


class OpenRequests:
    """The requests under way, so that they can be ended when the server is told to stop.

    Without this, uvicorn would wait for every open event stream before it stops.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self.streams: set[asyncio.Task[Any]] = set()

    def end_on_signal(self) -> None:
        """Call it on the event loop, in the main thread, once the server handles signals."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)

            def stop(number: int, frame: FrameType | None, before: Any = before) -> None:
                loop.call_soon_threadsafe(self.stop)
                if callable(before):
                    before(number, frame)

            signal.signal(number, stop)

    def stop(self) -> None:
        """Streams end at once, other requests within `GRACE_S`; call it on the event loop."""
        if self.stopping:
            return
        self.stopping = True
        for task in self.streams:
            task.cancel()
        asyncio.get_running_loop().call_later(GRACE_S, self._end_all)
        timer = threading.Timer(LIMIT_S, os._exit, (1,))
        timer.daemon = True
        timer.start()

    def _end_all(self) -> None:
        for task in self.tasks:
            task.cancel()


class EndOnStop:
    """The outermost layer: counts a request in, and answers for it if it is ended early."""

    def __init__(self, app: ASGIApp, requests: OpenRequests) -> None:
        self._app = app
        self._requests = requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        if scope["type"] != "http" or task is None:
            await self._app(scope, receive, send)
            return
        requests = self._requests
        started = sized = False

        async def noted(message: Message) -> None:
            nonlocal started, sized
            if message["type"] == "http.response.start":
                started = True
                headers = dict(message.get("headers", ()))
                sized = b"content-length" in headers
                if headers.get(b"content-type", b"").startswith(b"text/event-stream"):
                    requests.streams.add(task)
                    if requests.stopping:
                        task.cancel()
            await send(message)

        requests.tasks.add(task)
        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if not requests.stopping:
                raise
            if not started:
                await problem_response(_stopping())(scope, receive, send)
            elif not sized:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            requests.tasks.discard(task)
            requests.streams.discard(task)


def _stopping() -> Unavailable:
    return Unavailable(
        "The server is stopping.",
        "Accepted jobs are kept and go on when it runs again: ask for their status then.",
    )


def _outlive(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
