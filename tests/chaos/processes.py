"""A server that is killed and started again on its data, and what the kernel knows of it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path

import httpx
import psutil

from tests.bento import BENTOML, ROOT, all_gone, environment, free_port, wait_until

CHAOS = "tests.chaos.service:Chaos"
HASTY = "tests.chaos.service:Hasty"
MARK = "CHAOS_RUNS"
"""In the environment of everything that a server starts, so that nothing of it can hide."""


class Server:
    """`bentoml serve` on one port and one data folder, however often it is started."""

    def __init__(self, folder: Path, target: str = CHAOS, **env: str) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.runs = folder / "runs"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=30)
        self.process: subprocess.Popen[bytes]
        self._command = [*BENTOML, "serve", target, "--port", str(self.port)]
        self._env = environment(folder, **{MARK: str(self.runs)}, **env)
        self._log = folder / f"server-{self.port}.log"

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def start(self, before: Sequence[str] = ()) -> None:
        """Without waiting for it. `before`: a program that runs the command."""
        with self._log.open("ab") as output:
            self.process = subprocess.Popen(
                [*before, *self._command],
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def start_until_healthy(self, before: Sequence[str] = (), limit_s: float = 60) -> None:
        """Starts it, again where the one before it has not let go of the port yet."""
        self.start(before)

        def healthy() -> bool:
            if self.process.poll() is not None:
                assert "Cannot listen" in self.last_words, self.log
                self.start(before)
            return self.is_healthy()

        wait_until(healthy, limit_s)

    @property
    def last_words(self) -> str:
        return (self.log.splitlines() or [""])[-1]

    def is_healthy(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            answer = self.http.get("/health", timeout=5)
            return answer.status_code == 200 and answer.json()["status"] == "healthy"
        return False

    def stop(self) -> int:
        """As Ctrl-C or an orchestrator would; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)

    def runs_of(self, seed: int) -> Counter[str]:
        """How often each stage was begun for jobs of this seed."""
        lines = self.runs.read_text().splitlines() if self.runs.exists() else []
        return Counter(line.split()[0] for line in lines if line.split()[1] == str(seed))

    def all_runs(self) -> Counter[tuple[str, int]]:
        lines = self.runs.read_text().splitlines() if self.runs.exists() else []
        return Counter((line.split()[0], int(line.split()[1])) for line in lines)

    # What runs

    def family(self) -> list[psutil.Process]:
        """Every living process that came from this server, whoever is its parent by now."""
        mark, data = f"{MARK}={self.runs}".encode(), str(self.data)
        return [
            process
            for process in psutil.process_iter()
            if mark in _environ(process.pid).split(b"\0") or data in _cmdline(process)
        ]

    def parent(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.pid)]

    def api(self) -> list[psutil.Process]:
        return [p for p in self.family() if "_bentoml_impl.worker.service" in _cmdline(p)]

    def workers(self) -> list[psutil.Process]:
        """The leaders of the workers' sessions, not their guards."""
        found = [p for p in self.family() if "harness.py" in _cmdline(p)]
        return [p for p in found if os.getsid(p.pid) == p.pid]

    def engines(self) -> list[int]:
        """Processes that have the database open; also one that is just being started by them."""
        database = str(self.data / "polypod.db")
        return [p.pid for p in self.family() if database in _open_files(p.pid)]

    def waits_for_the_data(self) -> bool:
        """Whether a process of this command is at the lock without the database."""
        lock, database = str(self.data / "lock"), str(self.data / "polypod.db")
        own = psutil.Process(self.process.pid).children(recursive=True)
        return any(lock in (files := _open_files(p.pid)) and database not in files for p in own)

    def slots(self) -> dict[str, str]:
        """The stage that each slot runs now; empty while nothing answers."""
        with contextlib.suppress(httpx.TransportError, KeyError):
            slots = self.http.get("/health", timeout=5).json()["slots"]
            return {slot["slots"][0]: slot["stage"] or "" for slot in slots}
        return {}

    def leftovers(self) -> list[str]:
        """Files that only a server at work may have."""
        folders = [self.data / name for name in ("work", "tmp", "workers", "derived")]
        return [str(p.relative_to(self.data)) for f in folders for p in f.rglob("*")]


@contextlib.contextmanager
def server(
    folder: Path,
    target: str = CHAOS,
    before: Sequence[str] = (),
    wait: bool = True,
    **env: str,
) -> Generator[Server]:
    """A server that is stopped afterwards, and leaves no process."""
    one = Server(folder, target, **env)
    try:
        if wait:
            one.start_until_healthy(before)
        else:
            one.start(before)
        yield one
        if one.process.poll() is None:
            one.stop()
        wait_until(lambda: all_gone(one.family()), 10)
    finally:
        for process in one.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        with contextlib.suppress(AttributeError):
            one.process.wait()
        one.http.close()


def kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _environ(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def _cmdline(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _open_files(pid: int) -> set[str]:
    found = set[str]()
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(link.readlink()))
    return found
