"""`polypod run`: a router, a pod, one photograph, one 3D model; then nothing is left running."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from polypod.build.declared import declaration
from polypod.cli import earlier
from polypod.cli.batch import Item, Order, items_of, make
from polypod.cli.generate import report
from polypod.cli.given import check_source
from polypod.cli.output import (
    guarded,
    is_terminal,
    result_console,
    signals_end_us,
    talk_console,
)
from polypod.cli.server import bento_command
from polypod.cli.settings import read_settings
from polypod.client import Client
from polypod.command import typed
from polypod.router.once import running_router

PATIENCE_S = 10.0
"""The router is in this process: if it ends, it does not come back."""


def try_out(
    photo: str,
    model: str,
    out: Path,
    params: Mapping[str, Any],
    data: Path | None,
    skip_stage1: bool = False,
) -> int:
    """Exit status of `polypod run`."""
    check_source(photo)
    if skip_stage1:
        earlier.check_possible(photo, data)
    bento_command(model)
    order = Order(photos=(photo,), models=(model,), params=params, out=out)
    return guarded(lambda: _run(order, items_of(order)[0], data, skip_stage1))


def _run(order: Order, item: Item, data: Path | None, skip_stage1: bool) -> int:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="polypod-") as temporary:
        folder = (data or Path(temporary, "data")).absolute()
        settings = read_settings().model_copy(update={"data": folder})
        log = Path(temporary, "router.log")
        with signals_end_us(), running_router(item.model, settings, log) as router:
            _say_waiting(item.model, router.wait_ready)
            if skip_stage1:
                order = _going_on(order, router.url)
            asyncio.run(make(order, [item], router.url, "", PATIENCE_S))
    status = report(order, [item])
    if status == 0:
        _tell_next(item, order, list(declaration(item.model).presets), time.monotonic() - begun)
    return status


def _going_on(order: Order, url: str) -> Order:
    """The same, from where an earlier job with this picture was after its first part."""
    with Client(url, patience_s=0) as client:
        found = earlier.find(client, declaration(order.models[0]), order.photos[0], order.params)
    talk_console().print(f"Going on from {found.stage} of job {found.job}.")
    return replace(order, parent=found.job, params=found.params, kept=found.stage)


def _say_waiting(model: str, wait: Any) -> None:
    text = f"Starting the service of {model} …"
    if is_terminal():
        with Console(stderr=True).status(text):
            wait()
    else:
        talk_console().print(text)
        wait()


def _tell_next(item: Item, order: Order, presets: list[str], seconds: float) -> None:
    out = result_console()
    result = item.files.get("result")
    out.print(f"\nDone in {seconds:.1f} s; the service is stopped. What to try next:")
    image = os.environ.get("POLYPOD_IMAGE")
    if image:
        keep = f"docker run -p 127.0.0.1:8000:8000 -e POLYPOD_AUTH=off {image}"
    else:  # the fleet as it comes has no other model
        keep = "make serve" if item.model == "inflate" else typed(f"serve {item.model}")
    again = f"run {shlex.quote(str(item.source))} -m {item.model}"
    finer = next((p for p in reversed(presets) if p not in ("", order.params.get("preset"))), "")
    steps = (
        (f"open {shlex.quote(str(result))}", "look at it, in any viewer of 3D models"),
        *([(typed(f"{again} --preset {finer}"), "another preset")] if finer else []),
        (keep, "keep the service at http://127.0.0.1:8000, then:"),
        (typed("generate YOUR_PHOTO.jpg"), "your own pictures, many at once"),
        (typed(f"models {item.model}"), "what it can be told"),
    )
    width = max(len(command) for command, _ in steps)
    for command, meaning in steps:
        out.print(f"  [bold]{escape(f'{command:{width}}')}[/bold]   {escape(meaning)}")
