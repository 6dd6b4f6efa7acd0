"""A server of hunyuan21 with stand-ins for upstream: all its stages, in real worker processes."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from polypod.settings import Settings
from services.hunyuan21.model import MODEL
from tests.api.serving import Server, until
from tests.services.test_hunyuan21 import prepare

ORIGIN = "http://studio.example:5173"


@contextlib.contextmanager
def hunyuan_server(folder: Path, **env: str) -> Iterator[Server]:
    """`env` is for the workers."""
    told = prepare(folder / "home" / "hunyuan21") | env
    python = folder / "python"
    words = " ".join(shlex.quote(f"{name}={value}") for name, value in told.items())
    python.write_text(f'#!/bin/sh\nexec env {words} {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    settings = Settings(
        data=folder / "data",
        home=folder / "home",
        model_python=str(python),
        doctor="off",
        needs="off",
        max_queue_size=100,
        cors_origins=(ORIGIN,),
    )
    server = Server(settings, MODEL)
    try:
        until(lambda: server.engine.ready)
        yield server
    finally:
        server.stop()
