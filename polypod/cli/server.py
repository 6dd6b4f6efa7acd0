"""`polypod serve`, and a service as a child process for `polypod run`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Mapping
from pathlib import Path

import typer

from polypod.cli.settings import read_settings
from polypod.client.errors import ClientError
from polypod.model import nearest

ROOT = Path(__file__).resolve().parents[2]
"""Where `services/` is."""
READY_S = 1200.0
"""Large models load for minutes; what cannot load says so long before."""
STOP_S = 15.0
"""BentoML's own way down; then the rest is killed."""
LOG_LINES = 15
LAST_WORDS = "Error: "
UNEXPECTED = "The server cannot start"
"""What BentoML's command ends with: a sentence for people, or this and no more than an exception's
name."""


def serve_here(model: str, host: str, port: int, data: Path | None) -> None:
    """Becomes the service: signals reach it without anything in between."""
    command = bento_command(model)
    told = read_settings()
    host = host or told.host
    port = told.port if port < 0 else port or free_port()
    command += ["--host", host, "--port", str(port)]
    env = environment(data)
    os.chdir(ROOT)
    typer.echo(f"Serving {model} at http://{host}:{port}. Stop it with Ctrl-C.", err=True)
    os.execve(sys.executable, command, env)  # noqa: S606


def bento_command(model: str) -> list[str]:
    """Raises `typer.BadParameter` where there is no such model."""
    known = sorted(path.parent.name for path in (ROOT / "services").glob("*/service.py"))
    if model not in known:
        raise typer.BadParameter(
            f"There is no model {model!r} in services/.{nearest(model, known)} "
            f"There are: {', '.join(known) or 'none'}."
        )
    serve = [sys.executable, "-m", "bentoml", "serve", "services.chosen:Chosen"]
    return [*serve, "--arg", f"model={model}"]


def environment(data: Path | None) -> Mapping[str, str]:
    """That of the service. Its data folder does not move with its working folder."""
    chosen = data or os.environ.get("POLYPOD_DATA") or "data"
    return os.environ | {"POLYPOD_DATA": str(Path(chosen).expanduser().absolute())}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running_service(model: str, data: Path, log: Path) -> Generator[Service]:
    """A service on a free loopback port; when the block is left it is gone, whatever happens."""
    command = bento_command(model)
    port = free_port()
    command += ["--host", "127.0.0.1", "--port", str(port)]
    # Nothing from outside may turn a try-out into something that asks for keys or listens wider.
    env = dict(environment(data)) | {"PORT": str(port), "POLYPOD_HOST": "127.0.0.1"}
    for name in ("POLYPOD_API_KEYS", "POLYPOD_PUBLIC_URL", "POLYPOD_DATABASE_URL"):
        env.pop(name, None)
    with _signals_end_us(), log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield Service(process, f"http://127.0.0.1:{port}", log)
        finally:
            stop(process)


class Service:
    """A service that was started: `wait_ready`, then use `url`."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
        self.url = url
        self._process = process
        self._log = log

    def wait_ready(self) -> None:
        """Until `/readyz` says yes.

        Raises:
            ClientError: in the service's own words, if it ends, cannot load or takes too long.
        """
        import httpx

        deadline = time.monotonic() + READY_S
        with httpx.Client(base_url=self.url, trust_env=False, timeout=5) as http:
            while time.monotonic() < deadline:
                self.check()
                with contextlib.suppress(httpx.TransportError):
                    if http.get("/readyz").status_code == 200:
                        return
                    health = http.get("/health").json()
                    if health["status"] == "degraded":
                        raise ClientError("The model does not load.", *health["reasons"][:1])
                time.sleep(0.05)
        raise self._failed(f"The service was not ready after {READY_S:.0f} s.")

    def check(self) -> None:
        """Raises ClientError if the service has ended."""
        if self._process.poll() is not None:
            raise self._failed(f"The service ended ({_ending(self._process.returncode)}).")

    def _failed(self, what: str) -> ClientError:
        """With its last words, or the end of its log where it had none."""
        lines = self._log.read_text(errors="replace").splitlines() or ["(nothing)"]
        if lines[-1].startswith(LAST_WORDS) and UNEXPECTED not in lines[-1]:
            return ClientError(what, lines[-1].removeprefix(LAST_WORDS))
        said = "\n".join(f"  | {line}" for line in lines[-LOG_LINES:])
        return ClientError(what, f"It said last:\n{said}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the service and every process that came from it; returns when all are gone."""
    import psutil

    def descendants() -> set[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return set(psutil.Process(process.pid).children(recursive=True))
        return set()

    family = descendants()
    process.terminate()
    deadline = time.monotonic() + STOP_S
    try:
        while process.poll() is None and time.monotonic() < deadline:
            family |= descendants()
            time.sleep(0.05)
        psutil.wait_procs(family, max(deadline - time.monotonic(), 0))
    except KeyboardInterrupt:
        pass  # a second Ctrl-C: no more waiting
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    left = [member for member in family if member.is_running()]
    for member in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(left, 5)


@contextlib.contextmanager
def _signals_end_us() -> Generator[None]:
    """A closed terminal or a `kill` ends us by an exception, so that the service is stopped."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
