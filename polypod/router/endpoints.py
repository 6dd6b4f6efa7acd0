"""The router's endpoints: registered and drained, watched, woken and put to sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

from polypod.background import Background
from polypod.router.cards import CardModel
from polypod.router.endpoint import Endpoint, Known, Watch


class Pods(Protocol):
    """Pods whose life is the router's affair."""

    async def start(self, came: Callable[[Known], object]) -> None: ...
    async def stop(self) -> None: ...

    async def dismiss(self, pod: str) -> None:
        """End this one for good; harmless where it is not theirs."""
        ...

    def wake(self, pod: str) -> None: ...
    def put_to_sleep(self, pod: str) -> None: ...


class Endpoints(Mapping[str, Endpoint]):
    """By id. `came` and `went` tell of them as those of `Watch` do, `drained` of those removed."""

    def __init__(
        self,
        known: Iterable[Known],
        pods: Pods | None,
        came: Callable[[Endpoint], None],
        went: Callable[[Endpoint], None],
        drained: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._all = {each.id: Endpoint(each) for each in known}
        self._pods = pods
        self._pods_run = False
        self._came, self._went, self._drained = came, went, drained
        self._background = Background()
        self._watches: dict[str, asyncio.Task[Any]] = {}

    def __getitem__(self, name: str) -> Endpoint:
        return self._all[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def start(self) -> None:
        for endpoint in self._all.values():
            if endpoint.known.url:
                self._watch(endpoint)

    def run_pods(self) -> None:
        """From now on pods are started, and stopped, as is asked for."""
        if self._pods and not self._pods_run:
            self._pods_run = True
            self._background.run(self._pods.start(self.register))

    async def stop(self) -> None:
        await self._background.stop()
        for endpoint in self._all.values():
            await endpoint.close()
        if self._pods:
            await self._pods.stop()

    def register(self, known: Known) -> Endpoint:
        """A new endpoint; in place of the one of its id, if that was at another address."""
        before = self._all.get(known.id)
        if before and before.known == known:
            if before.state in ("lost", "unusable"):
                self._watch_anew(before)
            return before
        if before:
            self._remove(before)
            self._went(before)
        endpoint = self._all[known.id] = Endpoint(known)
        self._watch(endpoint)
        return endpoint

    def drain(self, endpoint: Endpoint) -> None:
        """It gets no more jobs; it is removed when those that it has are done."""
        endpoint.state = "draining"
        self.remove_if_drained(endpoint)

    def remove_if_drained(self, endpoint: Endpoint) -> None:
        ours = self._all.get(endpoint.id) is endpoint
        if ours and endpoint.state == "draining" and not endpoint.jobs:
            self._remove(endpoint)
            self._drained(endpoint.id)
            if self._pods:
                self._background.run(self._pods.dismiss(endpoint.id))

    def wake(self, endpoint: Endpoint) -> None:
        """Start the pod behind a stopped endpoint."""
        if self._pods and self._pods_run and endpoint.state == "stopped":
            endpoint.set_state("starting")
            self._pods.wake(endpoint.id)

    def put_to_sleep(self, endpoint: Endpoint) -> None:
        """Stop the pod behind an endpoint without jobs, until it is woken."""
        if self._pods and not endpoint.jobs:
            self._remove(endpoint)
            models = tuple(endpoint.models) or endpoint.known.models
            known = Known(endpoint.id, "", endpoint.known.provider, models=models)
            self._all[endpoint.id] = Endpoint(known)
            self._pods.put_to_sleep(endpoint.id)

    def newest(self, names: Iterable[str]) -> list[CardModel]:
        """Of each model the newest version that is served now."""
        served = [e.models for e in self._all.values() if e.takes_jobs]
        return [
            max((models[name] for models in served if name in models), key=lambda model: model.age)
            for name in names
        ]

    def _remove(self, endpoint: Endpoint) -> None:
        self._all.pop(endpoint.id, None)
        if watch := self._watches.pop(endpoint.id, None):
            watch.cancel()
        self._background.run(endpoint.close())

    def _watch(self, endpoint: Endpoint) -> None:
        watch = Watch(endpoint, self._came, self._went)
        self._watches[endpoint.id] = self._background.run(watch.run())

    def _watch_anew(self, endpoint: Endpoint) -> None:
        """What served it has been started again: no waiting for the next look."""
        self._watches.pop(endpoint.id).cancel()
        endpoint.begin_anew()
        self._watch(endpoint)
