"""`polypod serve`."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
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
