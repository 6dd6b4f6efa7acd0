"""Sends the webhooks that are due, each until it has arrived or a day has passed.

What is to be sent is in the store alone. Several servers on one database may all send: an attempt
is claimed there before it is made, and one whose server died is due again a moment later.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timezone
from typing import Any

from polypod import logs
from polypod.background import Background
from polypod.errors import NotFound, Problem, Unavailable
from polypod.jobs.store.deliveries import Delivery
from polypod.jobs.store.store import Store
from polypod.settings import Settings
from polypod.webhooks.schedule import AT_ONCE, after_attempt, choose, full_hosts
from polypod.webhooks.signature import HEADER, sign

log = logging.getLogger("polypod.webhooks")

POLL_S = 5.0
"""How often the store is asked without a reason: other servers' jobs end too."""
MARGIN_S = 2.0
"""How much longer than its time limit an attempt may take before it counts as lost."""
MOST = 100

Show = Callable[[str], Awaitable[dict[str, Any]]]
"""The body of `GET /job/{id}`; NotFound where the job is no more."""


class Sender:
    """`start` before use; after `stop` nothing is sent any more, and nothing is lost."""

    def __init__(self, store: Store, settings: Settings, show: Show) -> None:
        self._store = store
        self._settings = settings
        self._show = show
        self._secret = settings.webhook_secret
        self._sending: dict[str, Delivery] = {}
        self._woken = asyncio.Event()
        self._background = Background()

    async def start(self) -> None:
        self._secret = self._secret or await self._store.webhook_secret()
        self._background.run(self._run())

    async def stop(self) -> None:
        await self._background.stop()

    def wake(self) -> None:
        """Something may be due now."""
        self._woken.set()

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            try:
                wait = await self._send_due()
            except Unavailable as problem:
                log.warning("no webhooks can be sent now: %s", problem)
                wait = POLL_S
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._woken.wait(), wait)

    async def _send_due(self) -> float:
        """Begin what may begin; returns after how many seconds to look again."""
        now = time.time()
        until = now + self._settings.webhook_timeout_s + MARGIN_S
        while len(self._sending) < AT_ONCE:
            sending = self._sending.values()
            due = await self._store.due_deliveries(now, full_hosts(sending), MOST)
            chosen = choose(due, list(sending))
            if not chosen:
                break
            for delivery in await self._store.claim_deliveries(chosen, until):
                self._sending[delivery.id] = delivery
                self._background.run(self._send(delivery))
        next_at = await self._store.next_delivery_at()
        if next_at is None or next_at <= now:  # held up by a limit: woken when one has been sent
            return POLL_S
        return min(max(next_at - time.time(), 0), POLL_S)

    async def _send(self, delivery: Delivery) -> None:
        try:
            with logs.about(delivery.job_id):
                await self._attempt(delivery)
        finally:
            del self._sending[delivery.id]
            self.wake()

    async def _attempt(self, delivery: Delivery) -> None:
        from polypod.webhooks.post import post  # brings httpx, which few servers need

        status: int | None = None
        words = ""
        try:
            body = make_body(delivery, await self._show(delivery.job_id))
            answer = await post(
                delivery.url,
                body,
                make_headers(delivery, body, self._secret),
                timeout_s=self._settings.webhook_timeout_s,
                allow_private=self._settings.allow_private_urls,
            )
            status = answer.status
        except NotFound:
            return  # deleted, and its webhook with it
        except Problem as problem:
            words = problem.message
        except Exception:  # not noted, it would be sent again at once, and for ever
            log.exception("webhook %s cannot be sent", delivery.id)
            words = "The server failed to send it: its log says why."
        ended = after_attempt(delivery, status, words, time.time(), random.random())  # noqa: S311
        _tell(ended)
        await self._note(ended)

    async def _note(self, delivery: Delivery) -> None:
        try:
            await self._store.note_delivery(delivery)
        except Unavailable as problem:
            log.warning("webhook %s will be sent again: %s", delivery.id, problem)


def make_body(delivery: Delivery, job: dict[str, Any]) -> bytes:
    """The JSON that is sent."""
    at = datetime.fromtimestamp(delivery.event_at or 0, timezone.utc)
    document = {
        "event": delivery.event,
        "delivery_id": delivery.id,
        "created_at": at.isoformat().replace("+00:00", "Z"),
        "job": job,
    }
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def make_headers(delivery: Delivery, body: bytes, secret: str) -> dict[str, str]:
    return {
        "X-Polypod-Event": delivery.event,
        "X-Polypod-Delivery": delivery.id,
        "X-Polypod-Attempt": str(delivery.attempts),
        HEADER: sign(body, secret, time.time()),
    }


def _tell(delivery: Delivery) -> None:
    what = f"webhook {delivery.id} of job {delivery.job_id} to {delivery.host}"
    if delivery.next_at is not None:
        log.info("%s failed, attempt %s: %s", what, delivery.attempts, delivery.last_error)
    elif delivery.last_error:
        log.warning("%s is given up: %s", what, delivery.last_error)
    else:
        log.info("%s has arrived", what)
