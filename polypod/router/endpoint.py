"""An endpoint: a URL that serves models, watched by asking for its health."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import httpx

from polypod.client import ApiError, AsyncClient, ClientError
from polypod.router.cards import CardModel, model_of

log = logging.getLogger("polypod.router")

API_MAJOR = 1
EVERY_S = 1.0
STARTING_S = 0.2
REFUSED_FOR_S = 3.0
SILENT_FOR_S = 10.0
MOST_BACKOFF_S = 30.0
NOWHERE = "http://stopped.invalid"

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


@dataclass(eq=False)
class Endpoint:
    known: Known
    state: State = "starting"
    reason: str = ""
    health: dict[str, Any] = field(default_factory=dict[str, Any])
    models: dict[str, CardModel] = field(default_factory=dict[str, CardModel])
    jobs: set[str] = field(default_factory=set[str])
    """The router's jobs that are there."""
    since: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        url = self.known.url
        if not url:
            self.state, url = "stopped", NOWHERE
        key = self.known.api_key
        self.client = AsyncClient(url, api_key=key, patience_s=SILENT_FOR_S, timeout_s=10)
        headers = {"X-API-Key": key} if key else {}
        self.http = httpx.AsyncClient(base_url=url, headers=headers, timeout=30, trust_env=False)

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
    def shown_state(self) -> str:
        """`busy`: ready, and it has a job to run."""
        return "busy" if self.state == "ready" and self.jobs else self.state

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
            "reason": self.reason or None,
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
        self._pause = EVERY_S

    async def run(self) -> None:
        while True:
            try:
                await self._ask()
            except Exception:
                log.exception("watching %s failed", self._endpoint.id)
            await asyncio.sleep(self._pause)

    async def _ask(self) -> None:
        endpoint = self._endpoint
        try:
            answer = await endpoint.http.get("/health", timeout=5)
            health = document(answer)
        except (httpx.HTTPError, ValueError) as error:
            self._failed(error)
            return
        self._failing_since, self._pause = None, EVERY_S
        if health.get("api") != API_MAJOR:
            self._lose("unusable", f"It speaks protocol {health.get('api')}, not {API_MAJOR}.")
            return
        before, endpoint.health = endpoint.store_id, health
        if before and endpoint.store_id and before != endpoint.store_id:
            self._lose("lost", "It came back with an empty store.")
        if health.get("status") != "healthy":
            if not endpoint.takes_jobs:
                self._set("starting", "; ".join(health.get("reasons") or ()))
            return
        if not endpoint.takes_jobs and endpoint.state != "draining":
            await self._learn()

    async def _learn(self) -> None:
        """Read its cards; then it takes jobs."""
        endpoint = self._endpoint
        try:
            cards = await endpoint.client.models()
            endpoint.models = {card.name: model_of(card.raw) for card in cards}
        except (ClientError, ApiError, KeyError, TypeError, ValueError) as error:
            self._set("unusable", f"Its cards cannot be read: {error}")
            return
        self._set("ready", "")
        self._came(endpoint)

    def _failed(self, error: Exception) -> None:
        if self._endpoint.state == "starting" and self._endpoint.known.provider == "local":
            self._pause = STARTING_S  # its own process tells if that ends
            return
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        refused = isinstance(error, httpx.ConnectError)
        if now - self._failing_since >= (REFUSED_FOR_S if refused else SILENT_FOR_S):
            self._lose("lost", "It does not answer.")
            self._pause = min(self._pause * 1.5, MOST_BACKOFF_S)

    def _lose(self, state: State, reason: str) -> None:
        had_jobs = self._endpoint.state in ("ready", "draining")
        self._set(state, reason)
        if had_jobs:
            self._went(self._endpoint)

    def _set(self, state: State, reason: str) -> None:
        endpoint = self._endpoint
        if endpoint.state != state:
            log.info("endpoint %s: %s %s", endpoint.id, state, reason)
            endpoint.since = time.time()
        endpoint.state, endpoint.reason = state, reason


def document(answer: httpx.Response) -> dict[str, Any]:
    """The JSON object in an answer. Raises ValueError where there is none."""
    found = answer.json()
    if not isinstance(found, dict):
        raise ValueError("the answer is no JSON object")
    return cast(dict[str, Any], found)
