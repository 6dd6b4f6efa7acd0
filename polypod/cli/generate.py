"""`polypod generate` and `download`: pictures in, files saved, however many at once."""

from __future__ import annotations

import asyncio
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.markup import escape

from polypod.cli.batch import Item, Order, items_of, make
from polypod.cli.given import check_source
from polypod.cli.output import (
    FAILED,
    INTERRUPTED,
    at,
    complain,
    guarded,
    print_json,
    result_console,
    signals_end_us,
    talk_console,
)
from polypod.cli.summary import as_document, tell_saved
from polypod.client import ApiError, Client, JobView
from polypod.command import typed


def run_order(order: Order, url: str, api_key: str) -> int:
    """Exit status of `polypod generate`."""
    for photo in order.photos:
        check_source(photo)
    return guarded(lambda: _run(order, items_of(order), url, api_key), as_json=order.as_json)


def run_download(order: Order, job_id: str, asset: str, url: str, api_key: str) -> int:
    """Exit status of `polypod download`."""
    item = Item(job_id, order.photos[0])

    def work() -> int:
        with Client(url, api_key=api_key, patience_s=5) as client:
            item.job = client.job(job_id).view
            if asset:
                item.files[asset] = _asset(client, item.job, asset, order.out / asset)
                return report(order, [item])
        return _run(order, [item], url, api_key)

    return guarded(work, as_json=order.as_json)


def _asset(client: Client, job: JobView, name: str, path: Path) -> Path:
    """Where it was saved, once it is there."""
    try:
        return client.download(job, path, name).path
    except ApiError as error:
        if error.status != 409 or job.done:
            raise
    client.wait(job, check=False)
    return client.download(job, path, name).path


def _run(order: Order, items: Sequence[Item], url: str, api_key: str) -> int:
    try:
        with signals_end_us():
            asyncio.run(make(order, items, url, api_key))
    except KeyboardInterrupt:
        return _interrupted(order, [item for item in items if item.unsaved], url, api_key)
    except Exception:
        _tell_left(order, [item for item in items if item.unsaved], url)
        raise
    status = report(order, items)
    if order.detach and not order.as_json:
        _tell_left(order, [item for item in items if item.unsaved], url)
    for item in items:
        if item.error and item.job and item.job.status == "completed":
            again = typed(f"download {item.job.id} --name {shlex.quote(item.name)}{at(url)}")
            talk_console().print(
                f"The result of {item.name} is kept. Get it with:\n  {again}", markup=False
            )
    return status


def report(order: Order, items: Sequence[Item]) -> int:
    """Says what became of the items; the exit status."""
    if order.as_json:
        print_json({"jobs": [as_document(item) for item in items]})
    for item in items:
        if item.error:
            complain(*item.error, about=item.name)
        elif not order.as_json:
            if order.detach and item.job:
                result_console().print(f"{escape(item.name)}  {item.job.id}")
            else:
                tell_saved(item)
    return FAILED if any(item.error for item in items) else 0


def _interrupted(order: Order, left: Sequence[Item], url: str, api_key: str) -> int:
    running = [item for item in left if item.open]
    if running and _wants_cancel(len(running)):
        with Client(url, api_key=api_key, patience_s=5) as client:
            for item in running:
                if item.job:
                    client.cancel(item.job)
        talk_console().print("Cancelled.")
        left = [item for item in left if not item.open]
    _tell_left(order, left, url)
    return INTERRUPTED


def _wants_cancel(count: int) -> bool:
    """Asks, if there is someone to ask."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    jobs = "the job" if count == 1 else f"the {count} unfinished jobs"
    try:
        return typer.confirm(f"\nCancel {jobs}?", err=True)
    except (typer.Abort, KeyboardInterrupt):
        talk_console().print()
        return False


def _tell_left(order: Order, left: Sequence[Item], url: str) -> None:
    """How to come back to results that are not saved, and to jobs that go on without us."""
    if not left:
        return
    talk = talk_console()
    if any(item.open for item in left):
        talk.print("The job goes on." if len(left) == 1 else "The jobs go on.", end=" ")
    talk.print("Get the result with:")
    for item in left:
        assert item.job
        again = f"download {item.job.id} --name {shlex.quote(item.name)}"
        if order.out != Path("out"):
            again += f" -o {shlex.quote(str(order.out))}"
        if order.format:
            again += f" -f {order.format}"
        again += at(url)
        talk.print(f"  {escape(typed(again))}", soft_wrap=True)
