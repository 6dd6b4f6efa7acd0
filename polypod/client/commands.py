"""How the client talks over HTTP, without input or output of its own.

A flow is a generator. It yields commands and is sent what they gave; `sync.py` and `aio.py` each
carry the commands out in their own way, so every rule is written once. A connection that breaks is
raised in the flow as `Lost`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar, cast

from polypod.client.calls import Call, Headers, Server
from polypod.client.errors import ApiError, ClientError, Unreachable
from polypod.client.views import Event, Json, read_json

PASSING = (502, 503, 504)
"""Statuses that pass by themselves; the same request is sent again."""
REDIRECTS = (301, 302, 303, 307, 308)
MAX_REDIRECTS = 5

T = TypeVar("T")


class Lost(Exception):
    """The connection could not be made, broke, or was silent for too long (`silent`)."""

    def __init__(self, reason: str, *, silent: bool = False, for_good: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.silent = silent
        self.for_good = for_good


@dataclass(frozen=True)
class Reply:
    """An answer. `headers` ignores case; `body` is empty where it is read piece by piece."""

    status: int
    headers: Headers
    body: bytes = b""
    announced: str = ""
    """The ETag that our service gave with a redirect: that of the file, wherever it is."""

    def json(self) -> Any:
        if (document := self.document()) is None:
            raise ApiError(
                self.status,
                "not_json",
                "The answer is not JSON: this is not a polypod service.",
                "Check the address.",
            )
        return document

    def document(self) -> object:
        """The JSON of the body; None where it is none."""
        try:
            return read_json(self.body)
        except ValueError:
            return None


@dataclass(frozen=True)
class Send:
    """Gives the `Reply` with its body."""

    call: Call


@dataclass(frozen=True)
class Open:
    """Gives the `Reply`; if that is a 200 or 206, its body is for `Read` to fetch."""

    call: Call


@dataclass(frozen=True)
class Read:
    """Gives the next bytes of what `Open` opened, as sent; nothing at the end."""


@dataclass(frozen=True)
class Sleep:
    seconds: float


@dataclass(frozen=True)
class Do:
    """Gives what `work` returns. It may block."""

    work: Callable[[], Any]


@dataclass(frozen=True)
class Meanwhile:
    """Begins `work`, as soon as the one before has ended, and goes on. The next `Do` waits for it.

    What it raises is raised then, or by the next one.
    """

    work: Callable[[], Any]


@dataclass(frozen=True)
class Emit:
    """Hands an event to the user."""

    event: Event


Command: TypeAlias = Send | Open | Read | Sleep | Do | Meanwhile | Emit
Flow: TypeAlias = Generator[Command, Any, T]


@dataclass
class Backoff:
    """Waits that grow with each failure in a row, until `patience_s` have passed without success.

    The jitter keeps clients that failed together from coming back together.
    """

    patience_s: float
    first_s: float = 0.25
    most_s: float = 8.0
    failures: int = 0
    _since: float = 0.0

    def succeeded(self) -> None:
        self.failures = 0

    def next_s(self, retry_after_s: float | None = None) -> float | None:
        """Seconds to wait before the next try; None when patience is over."""
        now = time.monotonic()
        if not self.failures:
            self._since = now
        wait = min(self.first_s * 2**self.failures, self.most_s) * random.uniform(0.5, 1.0)  # noqa: S311
        if retry_after_s is not None:
            wait = retry_after_s + wait * 0.1
        self.failures += 1
        return wait if now - self._since + wait <= self.patience_s else None


@dataclass(frozen=True)
class Context:
    """What every flow knows."""

    server: Server
    patience_s: float
    silence_s: float


def exchange(context: Context, call: Call, *, stream: bool = False) -> Flow[Reply]:
    """One request and its answer, redirects followed; the key stays with its own host."""
    announced = ""
    for _ in range(MAX_REDIRECTS + 1):
        signed = context.server.sign(call)
        reply = cast(Reply, (yield Open(signed) if stream else Send(signed)))
        location = reply.headers.get("location")
        if reply.status not in REDIRECTS or not location:
            return replace(reply, announced=announced) if announced else reply
        if context.server.is_ours(call.url):
            announced = reply.headers.get("etag", "")
        call = call.redirected(reply.status, location)
    raise ApiError(310, "bad_redirect", f"{call.url} redirects in circles.", "Check the address.")


def settled(
    context: Context, call: Call, fine: Callable[[Reply, Backoff], bool] | None = None
) -> Flow[Reply]:
    """A good answer, or one that is `fine` all the same, however often it takes.

    Raises:
        ApiError: for a refusal, or for a passing failure that lasted longer than our patience.
        Unreachable: when there was no answer for that long.
    """
    backoff = Backoff(context.patience_s)
    while True:
        try:
            reply = yield from exchange(context, call)
        except Lost as lost:
            yield from wait_or_raise(backoff, call, lost)
        else:
            if reply.status < 400 or (fine and fine(reply, backoff)):
                return reply
            yield from wait_or_raise(backoff, call, reply)


def wait_or_raise(backoff: Backoff, call: Call, failure: Lost | Reply) -> Flow[None]:
    """Waits where the failure may pass and patience is left; else raises it."""
    error: ClientError
    if isinstance(failure, Lost):
        error = Unreachable(call.url, failure.reason)
        passing, retry_after_s = not failure.for_good, None
    else:
        error = api_error(failure)
        passing, retry_after_s = failure.status in PASSING, error.retry_after_s
    wait_s = backoff.next_s(retry_after_s) if passing else None
    if wait_s is None:
        raise error
    yield Sleep(wait_s)


def api_error(reply: Reply) -> ApiError:
    """The error that a problem document (RFC 9457), or whatever stood there instead, tells."""
    found = reply.document()
    problem: Json = cast(Json, found) if isinstance(found, Mapping) else {}
    message = problem.get("error") or problem.get("detail") or problem.get("title")
    return ApiError(
        reply.status,
        str(problem.get("code") or f"http_{reply.status}"),
        str(message or f"The service answered with HTTP {reply.status}."),
        str(problem.get("hint") or ""),
        retry_after_s=_retry_after(reply.headers),
        extra=problem,
    )


def _retry_after(headers: Headers) -> float | None:
    text = headers.get("retry-after", "").strip()
    return float(text) if text.isdecimal() else None
