"""Real servers for tests: `bentoml serve` as a child process."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[1]
BENTOML = (sys.executable, "-m", "bentoml")
INFLATE = "services.inflate.service:Inflate"


class Server:
    """A running server: BentoML's parent, and what came from it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, folder: Path) -> None:
        self.process = process
        self.port = port
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30)
        self.folder = folder
        self._log = folder / f"server-{port}.log"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The parent and all its descendants, the parent first."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def api(self) -> psutil.Process:
        """The API process."""
        children = psutil.Process(self.process.pid).children()
        return next(c for c in children if "_bentoml_impl.worker.service" in c.cmdline())

    def wait_ready(self, limit_s: float = 60) -> None:
        def ready() -> bool:
            if self.process.poll() is not None:
                return True
            with contextlib.suppress(httpx.TransportError):
                return self.http.get("/readyz", timeout=5).status_code == 200
            return False

        wait_until(ready, limit_s)
        assert self.process.poll() is None, f"the server ended:\n{self.log}"


@contextlib.contextmanager
def bentoml_serve(
    folder: Path,
    target: str = INFLATE,
    *arguments: str,
    cwd: Path = ROOT,
    ready: bool = True,
    **env: str,
) -> Generator[Server]:
    """`bentoml serve TARGET` on a free port, with its files in `folder`; all is gone afterwards."""
    port = free_port()
    with (folder / f"server-{port}.log").open("wb") as output:
        process = subprocess.Popen(
            [*BENTOML, "serve", target, "--port", str(port), *arguments],
            cwd=cwd,
            env=environment(folder, **env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, folder)
    family: list[psutil.Process] = []
    try:
        if ready:
            server.wait_ready()
        yield server
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = server.family()
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait()
        server.http.close()


def environment(folder: Path, **env: str) -> Mapping[str, str]:
    """Ours without settings of polypod's, and with BentoML's files and the data in `folder`."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("POLYPOD_", "BENTOML_")) and name != "PORT"
    }
    paths = {"BENTOML_HOME": str(folder / "bentoml"), "POLYPOD_DATA": str(folder / "data")}
    return {name: value for name, value in (kept | paths | env).items() if value}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def wait_until(true: Callable[[], Any], limit_s: float = 20) -> Any:
    """What `true` returns once it is true; fails when that takes longer than `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not (value := true()):
        assert time.monotonic() < deadline, f"not so after {limit_s} s"
        time.sleep(0.05)
    return value


def all_gone(processes: list[psutil.Process]) -> bool:
    """Ended; a zombie that nobody has collected yet has ended too."""
    return all(_ended(process) for process in processes)


def _ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
