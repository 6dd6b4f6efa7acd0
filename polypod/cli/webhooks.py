"""`polypod webhooks`: the secret that signs them, and a sample to try a receiver with."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from rich.markup import escape

from polypod.cli.output import FAILED, complain, print_json, result_console
from polypod.cli.settings import read_settings
from polypod.errors import NotFound, Problem
from polypod.jobs.job import Job, new_id
from polypod.jobs.store.deliveries import Delivery
from polypod.settings import Settings


def show_secret(data: Path | None) -> int:
    """Exit status of `polypod webhooks secret`."""
    try:
        print(asyncio.run(_secret(_settings(data))))
    except Problem as problem:
        complain(problem.message, problem.hint)
        return FAILED
    return 0


def send_sample(url: str, data: Path | None, as_json: bool) -> int:
    """Exit status of `polypod webhooks test`: 0 when the receiver took it."""
    try:
        return asyncio.run(_send_sample(url, _settings(data), as_json))
    except Problem as problem:
        if as_json:
            print_json({"error": problem.message, "hint": problem.hint})
        complain(problem.message, problem.hint)
        return FAILED


async def _send_sample(url: str, settings: Settings, as_json: bool) -> int:
    from polypod.webhooks.post import check_url, post
    from polypod.webhooks.sender import make_body, make_headers

    check_url(url, allow_private=settings.allow_private_urls)
    secret = await _secret(settings)
    delivery, job = _sample(url)
    body = make_body(delivery, job)
    headers = make_headers(delivery, body, secret)
    began = time.monotonic()
    answer = await post(
        url,
        body,
        headers,
        timeout_s=settings.webhook_timeout_s,
        allow_private=settings.allow_private_urls,
    )
    seconds = time.monotonic() - began
    taken = 200 <= answer.status < 300
    text = answer.body.decode(errors="replace")
    if as_json:
        sent = {"headers": headers, "body": body.decode()}
        came = {"status": answer.status, "seconds": round(seconds, 3), "body": text}
        print_json({**came, "sent": sent})
        return 0 if taken else FAILED
    out = result_console()
    for name, value in headers.items():
        out.print(f"[dim]sent {escape(name)}: {escape(value)}[/dim]")
    style = "green" if taken else "red"
    out.print(f"[{style}]{answer.status}[/{style}] after {seconds * 1000:.0f} ms")
    if text:
        out.print(text, markup=False)
    if not taken:
        complain(
            f"The receiver answered {answer.status}.",
            "A webhook is delivered when the answer is 2xx; until then it is sent again.",
        )
    return 0 if taken else FAILED


def _sample(url: str) -> tuple[Delivery, dict[str, object]]:
    """A job that never was, as the service would tell its end."""
    from polypod.jobs.describe import describe_job

    now = time.time()
    job = Job(
        id=new_id(),
        model="sample",
        owner="",
        inputs={},
        params={"seed": 42},
        created_at=now - 60,
        status="completed",
        started_at=now - 50,
        finished_at=now,
    )
    shown = describe_job(job, None, None, position=0, queue_length=0, eta_s=None)
    delivery = Delivery(new_id(), job.id, url, "", "webhook.test", now, 1, None, None, None, "")
    return delivery, shown


async def _secret(settings: Settings) -> str:
    if settings.webhook_secret:
        return settings.webhook_secret
    from polypod.jobs.store.store import Store

    database = settings.data / "polypod.db"
    if not settings.database_url and not database.exists():
        raise NotFound(
            f"There is no database in {settings.data}, so there is no secret yet.",
            "Give the service's data folder with --data, or set POLYPOD_WEBHOOK_SECRET.",
        )
    store = await Store.open(settings.database_url or f"sqlite:///{database}")
    try:
        return await store.webhook_secret()
    finally:
        await store.close()


def _settings(data: Path | None) -> Settings:
    if data:
        os.environ["POLYPOD_DATA"] = str(data)
    return read_settings()
