"""The router before pods of the stub model, each a server process of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.contestants import Contestant, polypod
from benchmarks.servers import serve, until


@contextlib.contextmanager
def router(folder: Path, pods: Sequence[Contestant], **env: str) -> Generator[Contestant]:
    """`polypod up` whose endpoints are `pods`; all of them are ready."""
    folder.mkdir(parents=True, exist_ok=True)
    fleet = folder / "fleet.yaml"
    urls = [f"http://127.0.0.1:{pod.server.port}" for pod in pods]
    fleet.write_text(yaml.safe_dump({"models": {"stub": {"provider": "fixed", "url": urls}}}))
    command = ("-m", "polypod.cli", "up", "--port", "{port}", "--fleet", str(fleet))
    env = {"POLYPOD_DATA": str(folder / "data")} | env
    with serve(command, folder, **env) as server:
        made = Contestant("router", server, "/generate", "/job/{}", "/job/{}/download")
        until(lambda: _all_ready(made, len(pods)), 60, 0.05)
        yield made


@contextlib.contextmanager
def fleet(folder: Path, count: int, **env: str) -> Generator[tuple[Contestant, list[Contestant]]]:
    """A router, and `count` pods."""
    with contextlib.ExitStack() as stack:
        pods = [stack.enter_context(polypod(folder / f"pod{n}")) for n in range(count)]
        yield stack.enter_context(router(folder / "router", pods, **env)), pods


def endpoints(each: Contestant) -> list[dict[str, Any]]:
    with each.wire() as wire:
        return wire.json("GET", "/endpoints")["endpoints"]


def _all_ready(each: Contestant, count: int) -> bool:
    ready = [e for e in endpoints(each) if e["state"] in ("ready", "busy")]
    return len(ready) == count
