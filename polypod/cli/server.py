"""`polypod serve`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Generator, Mapping
from pathlib import Path

import typer

from polypod.cli.settings import read_settings
from polypod.model import nearest

ROOT = Path(__file__).resolve().parents[2]
"""Where `services/` is."""


def serve_here(model: str, host: str, port: int | None, data: Path | None) -> None:
    """Becomes the service: signals reach it without anything in between."""
    command = bento_command(model)
    told = read_settings()
    host = host or told.host
    port = (told.port if port is None else port) or free_port()
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
def signals_end_us() -> Generator[None]:
    """A closed terminal or a `kill` ends us by an exception, so that the service is stopped.

    With nohup a closed terminal does not.
    """

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    numbers = (signal.SIGTERM, signal.SIGHUP)
    minded = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in minded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
