"""Server processes on loopback: started, measured and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import psutil

from benchmarks.wire import Wire

ROOT = Path(__file__).parents[1]
START_LIMIT_S = 60.0
MIB = 1 << 20


class Server:
    """A server process and what it started."""

    def __init__(
        self, process: subprocess.Popen[bytes], port: int, folder: Path, began: float
    ) -> None:
        self.process = process
        self.port = port
        self.folder = folder
        self._began = began
        self.stub_log = folder / "stub.log"
        self.started_in_s = 0.0

    def family(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """polypod's model processes with their guards; the others compute in their server."""
        return [member for member in self.family() if _is_worker(member)]

    def memory_mib(self) -> tuple[float, float]:
        """Proportional set size of the server processes, and of the workers."""
        sizes = [(_is_worker(member), _pss(member.pid)) for member in self.family()]
        worker = sum(size for is_worker, size in sizes if is_worker)
        return sum(size for _, size in sizes) - worker, worker

    def api(self) -> psutil.Process:
        """The process that answers requests: the largest of the server's."""
        others = [member for member in self.family() if not _is_worker(member)]
        return max(others, key=lambda member: member.memory_info().rss)

    def wait_healthy(self, path: str = "/health") -> None:
        """Asks until the answer is good; notes how long that took since the start."""
        while not self._healthy(path):
            if self.process.poll() is not None or self._age() > START_LIMIT_S:
                log = (self.folder / "server.log").read_text(errors="replace")
                raise RuntimeError(f"the server did not start:\n{log[-3000:]}")
            time.sleep(0.005)
        self.started_in_s = self._age()

    def _age(self) -> float:
        return time.monotonic() - self._began

    def _healthy(self, path: str) -> bool:
        with contextlib.suppress(OSError), Wire(self.port) as wire:
            status, body = wire.ask("GET", path)
            return status == 200 and (path != "/health" or b'"healthy"' in body)
        return False


@contextlib.contextmanager
def serve(
    command: Sequence[str], folder: Path, health: str = "/health", **env: str
) -> Generator[Server]:
    """Runs `command` with `{port}` filled in, until the block ends; nothing is left running."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    began = time.monotonic()
    with (folder / "server.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *(part.format(port=port) for part in command)],
            cwd=ROOT,
            env=_environment(folder, env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = Server(process, port, folder, began)
    try:
        server.wait_healthy(health)
        yield server
    finally:
        _end(server)


def _end(server: Server) -> None:
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = server.family()
    server.process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(10)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    server.process.wait()


def _environment(folder: Path, env: dict[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("POLYPOD_", "BENTOML_")) and name != "PORT"
    }
    own = {
        "PYTHONPATH": str(ROOT),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "STUB_LOG": str(folder / "stub.log"),
        "STUB_FOLDER": str(folder),
    }
    return kept | own | env


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def until(true: Callable[[], Any], limit_s: float, every_s: float = 0.005) -> Any:
    """What `true` returns once it is true; TimeoutError."""
    end = time.monotonic() + limit_s
    while not (value := true()):
        if time.monotonic() > end:
            raise TimeoutError(f"not so after {limit_s:g} s")
        time.sleep(every_s)
    return value


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(part.endswith("harness.py") for part in process.cmdline())
    return False


def _pss(pid: int) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / MIB
    return 0.0
