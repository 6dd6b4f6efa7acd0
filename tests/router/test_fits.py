"""A job goes to a pod whose GPU it fits, and waits for one while others pass it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from polypod.errors import BadInput
from polypod.router.cards import model_of
from polypod.router.choose import Dispatch, Offer, Served, Waiting, next_dispatch
from polypod.router.dispatch import Dispatcher
from polypod.router.endpoint import Known
from polypod.settings import Settings
from tests.build.painter import PAINTER

MODELS = {"sam": Served("card")}
BIG = Waiting("big", "sam", "ann", (0, 1), "card", vram_gb={"gpu": 40})
SMALL = Waiting("small", "sam", "ann", (0, 2), "card", vram_gb={"gpu": 14})


def offer(name: str, gb: float | None, jobs: int = 0) -> Offer:
    return Offer(name, MODELS, jobs, 0.0, {"gpu": gb} if gb else {})


@pytest.mark.parametrize(
    ("offers", "expected"),
    [
        ([offer("a", 22.5), offer("b", 80)], Dispatch("big", "b")),
        ([offer("a", 22.5), offer("b", 80, jobs=1)], Dispatch("big", "b")),
        ([offer("a", 22.5)], Dispatch("small", "a")),
        ([offer("a", None)], Dispatch("big", "a")),
        ([offer("a", 38.5)], Dispatch("big", "a")),
        ([offer("a", 8)], None),
    ],
    ids=["fits one", "busy but large", "only small", "unknown", "of its class", "none"],
)
def test_jobs_go_where_they_fit(offers: list[Offer], expected: Dispatch | None) -> None:
    assert next_dispatch([BIG, SMALL], offers, {}) == expected


def dispatcher(tmp_path: Path, *memory_gb: float | None, needs: str = "on") -> Dispatcher:
    """A router with one endpoint of the painter for each memory; None: it does not tell."""
    settings = Settings(data=tmp_path, needs=needs)  # type: ignore[call-arg]
    book = SimpleNamespace(settings=settings, blobs=None)
    known = [Known(f"painter-{number}", "") for number in range(len(memory_gb))]
    made = Dispatcher(book, known)  # type: ignore[arg-type]
    for endpoint, gb in zip(made.endpoints.values(), memory_gb, strict=True):
        endpoint.models = {PAINTER.name: model_of(PAINTER.card)}
        endpoint.health = {"slots": [{"slots": ["gpu"], "vram_gb": gb}]}
    return made


@pytest.mark.parametrize("memory_gb", [(), (22.5, 80.0), (22.5, None)], ids=str)
def test_a_job_that_some_pod_may_hold_is_taken(
    tmp_path: Path, memory_gb: tuple[float | None, ...]
) -> None:
    dispatcher(tmp_path, *memory_gb).check(PAINTER, PAINTER.resolve({}), "")


def test_a_job_that_no_pod_can_hold_is_refused_unless_that_is_off(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="there are 24 GB"):
        dispatcher(tmp_path, 22.5, 24.0).check(PAINTER, PAINTER.resolve({}), "")
    dispatcher(tmp_path, 22.5, needs="off").check(PAINTER, PAINTER.resolve({}), "")
