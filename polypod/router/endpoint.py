"""An endpoint: a URL that serves models, watched by asking for its health."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import httpx
from pydantic import BaseModel, FiniteFloat, StrictInt

from polypod.client import AsyncClient, ClientError
from polypod.client.views import read_json
from polypod.router.cards import CardModel, model_of
from polypod.router.guard import Guarded

log = logging.getLogger("polypod.router")

API_MAJOR = 1
EVERY_S = 1.0
STARTING_S = 0.2
REFUSED_FOR_S = 3.0
SILENT_FOR_S = 10.0
UNWELL_FOR_S = 30.0
"""So long may one that was ready say itself that it is not, such as while its model loads again."""
HEALTH_S = 5.0
LEARN_S = 30.0
FIRST_BACKOFF_S = 2.0
MOST_BACKOFF_S = 30.0
STEADY_S = 60.0
"""What was ready for so long begins with a short pause again."""
MOST_REASON = 500
NOWHERE = "http://stopped.invalid"

_URL = re.compile(
    r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?(/[\w.~%/-]*)?", re.A
)

State = Literal["stopped", "starting", "ready", "draining", "lost", "unusable"]


@dataclass(frozen=True)
class Known:
    """What makes an endpoint. `id` is its name in the fleet; without `url` it is stopped."""

    id: str
    url: str
    provider: str = "fixed"
    api_key: str = field(default="", repr=False)
    models: tuple[str, ...] = ()
    """What it is to serve; what it serves is told by its cards."""
    draining: bool = False
    """It is to be removed as soon as the jobs that it has are done."""

    @property
    def fault(self) -> str:
        """Why there can be no service at its address, or none for its key; else ""."""
        try:
            fits = _URL.fullmatch(self.url) and (httpx.URL(self.url).port or 0) < 1 << 16
        except (httpx.InvalidURL, ValueError):
            fits = False
        if self.url and not fits:
            return "the url is not the plain address of a service, such as http://10.0.0.5:8000"
        if not (self.api_key.isascii() and self.api_key.isprintable()):
            return "the api_key holds characters that no key has"
        return ""


@dataclass(eq=False)
class Endpoint:
    known: Known
    state: State = "starting"
    reason: str = ""
    health: dict[str, Any] = field(default_factory=dict[str, Any])
    models: dict[str, CardModel] = field(default_factory=dict[str, CardModel])
    jobs: set[str] = field(default_factory=set[str])
    """The router's jobs that are there."""
    untidy: bool = False
    """Jobs may be there that are not to be any more."""
    since: float = field(default_factory=time.time)
    life: str = ""
    """The process that serves it (`instance_id`): another one after each restart."""
    out_until: float = 0.0
    """It has failed though it seems well, and is left alone until then (monotonic seconds)."""
    failures: int = 0
    """How often it was taken out since it last did a job."""

    def __post_init__(self) -> None:
        url = self.known.url
        if not url:
            self.state, url = "stopped", NOWHERE
        elif self.known.draining:
            self.state = "draining"
        key, wire = self.known.api_key, Guarded(url)
        self.client = AsyncClient(
            url, api_key=key, patience_s=SILENT_FOR_S, timeout_s=10, transport=wire
        )
        headers = {"X-API-Key": key} if key else {}
        self.http = httpx.AsyncClient(base_url=url, headers=headers, timeout=30, transport=wire)

    @property
    def id(self) -> str:
        return self.known.id

    @property
    def store_id(self) -> str:
        return str(self.health.get("store_id") or "")

    @property
    def vram_gb(self) -> dict[str, float]:
        """GPU memory by slot, as far as it tells."""
        found: dict[str, float] = {}
        for lane in self.health.get("slots") or ():
            if gb := lane.get("vram_gb"):
                found |= {slot: max(gb, found.get(slot, 0.0)) for slot in lane.get("slots", ())}
        return found

    @property
    def takes_jobs(self) -> bool:
        return self.state == "ready"

    @property
    def takes_new_jobs(self) -> bool:
        """Those that it has go on where it does not."""
        return self.takes_jobs and not self.health.get("refuses")

    @property
    def has_jobs_to_end(self) -> bool:
        """Whether jobs that are there are followed to their end."""
        return self.state in ("ready", "draining")

    @property
    def shown_state(self) -> str:
        """`busy`: ready, and it has a job to run."""
        return "busy" if self.state == "ready" and self.jobs else self.state

    def take_out(self, state: State, reason: str) -> None:
        """It gets no jobs for a while, longer each time it happens without a job done between."""
        self.out_until = time.monotonic() + backoff_s(self.failures)
        self.failures += 1
        if self.state != "draining":
            self.set_state(state, reason)

    def set_state(self, state: State, reason: str = "") -> None:
        reason = _shown(reason)
        if self.state != state:
            log.info("endpoint %s: %s %s", self.id, state, reason)
            self.since = time.time()
        self.state, self.reason = state, reason

    def begin_anew(self) -> None:
        """What serves it has been started again."""
        self.set_state("starting")
        self.health, self.out_until = {}, 0.0

    async def close(self) -> None:
        await self.client.aclose()
        await self.http.aclose()

    def describe(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "url": self.known.url or None,
            "provider": self.known.provider,
            "models": sorted(self.models) or list(self.known.models),
            "state": self.shown_state,
            "reason": self.reason or _shown(self.health.get("refuses") or "") or None,
            "jobs": sorted(self.jobs),
            "queue": self.health.get("queue"),
            "slots": self.health.get("slots"),
            "gpu": self.health.get("gpu"),
            "version": self.health.get("version"),
            "store_id": self.store_id or None,
            "uptime_s": self.health.get("uptime_s") if self.takes_jobs else None,
            "cost_usd": 0.0 if self.known.provider == "local" else None,
            "since": self.since,
        }


class Watch:
    """Asks one endpoint for its health again and again, and says when something changed.

    `came`: it is ready, for the first time, again, or with another store. `went`: it is lost; its
    jobs are to go on elsewhere. Both are told on the event loop and must not block.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        came: Callable[[Endpoint], None],
        went: Callable[[Endpoint], None],
    ) -> None:
        self._endpoint = endpoint
        self._came = came
        self._went = went
        self._failing_since: float | None = None
        self._unwell_since: float | None = None
        self._pause = EVERY_S
        self._store_id = ""
        self._read_in = ""
        """The process whose cards were read last."""

    async def run(self) -> None:
        while True:
            self._pause = EVERY_S
            if time.monotonic() >= self._endpoint.out_until:
                try:
                    await self._ask()
                except Exception:
                    log.exception("watching %s failed", self._endpoint.id)
            await asyncio.sleep(self._pause)

    async def _ask(self) -> None:
        endpoint = self._endpoint
        try:
            answer = await asyncio.wait_for(endpoint.http.get("/health"), HEALTH_S)
            health = health_of(answer)
        except (httpx.HTTPError, asyncio.TimeoutError, ValueError) as error:
            self._failed(error)
            return
        self._failing_since = None
        if health["api"] != API_MAJOR:
            self._lose("unusable", f"It speaks protocol {health['api']}, not {API_MAJOR}.")
            return
        refused = bool(endpoint.health.get("refuses"))
        endpoint.health, endpoint.life = health, str(health.get("instance_id") or "")
        before, self._store_id = self._store_id, endpoint.store_id or self._store_id
        if before and before != self._store_id:
            if endpoint.state != "draining":
                endpoint.set_state("lost", "It came back with an empty store.")
            self._went(endpoint)
        if health["status"] != "healthy":
            self._unwell(health)
            return
        self._unwell_since = None
        if endpoint.takes_jobs and time.time() - endpoint.since > STEADY_S:
            endpoint.failures = 0
        if endpoint.state != "draining" and not (endpoint.takes_jobs and self._knows_its_cards):
            await self._learn()
        elif refused and endpoint.takes_new_jobs:
            self._came(endpoint)

    @property
    def _knows_its_cards(self) -> bool:
        """It may have restarted so quickly that nothing was missed, and be of another version."""
        return self._read_in == self._endpoint.life

    async def _learn(self) -> None:
        """Read its cards; then it takes jobs."""
        endpoint = self._endpoint
        try:
            cards = await asyncio.wait_for(endpoint.client.models(), LEARN_S)
            models = {card.name: model_of(card.raw) for card in cards}
        except Exception as error:  # whatever it is that came
            log.info("the cards of %s cannot be read: %r", endpoint.id, error)
            self._lose("unusable", f"Its cards cannot be read: {words(error)}")
            return
        endpoint.models, self._read_in = models, endpoint.life
        endpoint.set_state("ready")
        self._came(endpoint)

    def _failed(self, error: Exception) -> None:
        endpoint = self._endpoint
        if endpoint.state == "starting" and endpoint.known.provider == "local":
            self._pause = STARTING_S  # its own process tells if that ends
            return
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        refused = isinstance(error, httpx.ConnectError)
        if now - self._failing_since >= (REFUSED_FOR_S if refused else SILENT_FOR_S):
            self._lose("lost", words(error))

    def _unwell(self, health: Mapping[str, Any]) -> None:
        """It says that it cannot work. While it starts anew its jobs are left to it."""
        reason = "; ".join(map(str, health.get("reasons") or ()))
        if not self._endpoint.has_jobs_to_end:
            self._endpoint.set_state("starting", reason)
        elif health["status"] == "degraded":
            now = time.monotonic()
            self._unwell_since = self._unwell_since or now
            if now - self._unwell_since >= UNWELL_FOR_S:
                self._lose("lost", reason)

    def _lose(self, state: State, reason: str) -> None:
        self._endpoint.take_out(state, reason)
        self._went(self._endpoint)


class _Slot(BaseModel):
    slots: tuple[str, ...] = ()
    vram_gb: FiniteFloat | None = None


class _Health(BaseModel):
    """What is made of a `/health` here; whatever else it tells is shown as it came."""

    status: Literal["healthy", "starting", "degraded"]
    api: StrictInt
    reasons: tuple[str, ...] | None = None
    slots: tuple[_Slot, ...] | None = None
    uptime_s: FiniteFloat | None = None
    version: str | None = None
    store_id: str | None = None
    instance_id: str | None = None
    refuses: str | None = None


def backoff_s(failures: int) -> float:
    """How long an endpoint is left alone after it failed once more."""
    return min(FIRST_BACKOFF_S * 2.0**failures, MOST_BACKOFF_S)


def _shown(words: str) -> str:
    """What may be the pod's own words, and goes to a terminal."""
    return "".join(c if c.isprintable() else " " for c in words[:MOST_REASON])


def words(error: BaseException) -> str:
    """What is wrong with a pod, for people."""
    if isinstance(error, httpx.ConnectError):
        return "Nothing listens there."
    if isinstance(error, httpx.TimeoutException | asyncio.TimeoutError):
        return "It does not answer."
    if isinstance(error, ClientError):
        return error.message
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, httpx.HTTPError):
        return f"The connection broke: {error or type(error).__name__}."
    return f"Its answer makes no sense ({type(error).__name__}: {error})."


def health_of(answer: httpx.Response) -> dict[str, Any]:
    """The body of a `/health`. Raises ValueError where that is none."""
    try:
        health = document(answer)
        _Health.model_validate(health)
    except ValueError:
        raise ValueError(
            f"Its /health is not that of a polypod service (HTTP {answer.status_code})."
        ) from None
    return health


def document(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object in an answer. Raises ValueError where there is none."""
    try:
        found = read_json(answer.content)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"Its answer is no JSON object (HTTP {answer.status_code}).")
    return cast(dict[str, Any], found)
