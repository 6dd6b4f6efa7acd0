"""When a webhook is sent again, and which of those that are due are sent now: pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from http import HTTPStatus

from polypod.jobs.store.deliveries import Delivery

FIRST_S = 5.0
FACTOR = 3.0
LONGEST_S = 7200.0
GIVE_UP_S = 86400.0
JITTER = 0.2
"""Each wait is longer or shorter by up to this part, so that receivers that were away together
are not met by everyone together."""

AT_ONCE = 64
PER_HOST = 4


def retry_delay_s(attempts: int, since_event_s: float, jitter: float = 0.5) -> float | None:
    """Seconds from the `attempts`-th failure to the next attempt; None: no more, it is a day old.

    `jitter` is a random number from 0 to 1.
    """
    power = min(attempts - 1, 16)  # no overflow, however often it was tried
    wait = min(FIRST_S * FACTOR**power, LONGEST_S) * (1 + JITTER * (2 * jitter - 1))
    return wait if since_event_s + wait <= GIVE_UP_S else None


def after_attempt(
    delivery: Delivery, status: int | None, words: str, now: float, jitter: float
) -> Delivery:
    """The delivery after an attempt that was answered with `status`, or that failed with `words`.

    Any 2xx is success; 410 (gone) says that nobody wants it any more.
    """
    arrived = status is not None and 200 <= status < 300
    error = "" if arrived else words or _words(status)
    wait = retry_delay_s(delivery.attempts, now - (delivery.event_at or now), jitter)
    if arrived or status == HTTPStatus.GONE or wait is None:
        return replace(delivery, next_at=None, done_at=now, last_status=status, last_error=error)
    return replace(delivery, next_at=now + wait, last_status=status, last_error=error)


def _words(status: int | None) -> str:
    redirected = status is not None and 300 <= status < 400
    return f"The receiver answered {status}" + (
        "; redirects are not followed." if redirected else "."
    )


def choose(due: Iterable[Delivery], sending: Sequence[Delivery]) -> list[Delivery]:
    """Those of `due`, in their order, that are sent now, beside those that are being sent."""
    per_host = Counter(delivery.host for delivery in sending)
    under_way = {delivery.id for delivery in sending}
    chosen: list[Delivery] = []
    for delivery in due:
        if len(sending) + len(chosen) >= AT_ONCE:
            break
        if delivery.id not in under_way and per_host[delivery.host] < PER_HOST:
            per_host[delivery.host] += 1
            chosen.append(delivery)
    return chosen


def full_hosts(sending: Collection[Delivery]) -> list[str]:
    """Hosts that get nothing more for now: a slow one holds up only itself."""
    per_host: Mapping[str, int] = Counter(delivery.host for delivery in sending)
    return [host for host, count in per_host.items() if count >= PER_HOST]
