"""Which job goes where: one row for each case."""

from __future__ import annotations

import pytest

from polypod.router.choose import (
    Dispatch,
    Held,
    Offer,
    Served,
    Waiting,
    next_dispatch,
    next_move,
)


def job(name, model="m", owner="a", priority=0, card="v1", avoid=()):
    return Waiting(name, model, owner, (-priority, int(name[1:])), card, frozenset(avoid))


def offer(name, jobs=0, models=("m",), free_in_s=0.0, version=1, card=""):
    served = Served(card or f"v{version}", (version,))
    return Offer(name, dict.fromkeys(models, served), jobs, free_in_s)


CASES = {
    "nothing waits": ([], [offer("e1")], {}, None),
    "no endpoint": ([job("j1")], [], {}, None),
    "no endpoint of this model": ([job("j1")], [offer("e1", models=("other",))], {}, None),
    "the oldest first": ([job("j2"), job("j1")], [offer("e1")], {}, Dispatch("j1", "e1")),
    "priority before age": (
        [job("j1"), job("j2", priority=1)],
        [offer("e1")],
        {},
        Dispatch("j2", "e1"),
    ),
    "an idle endpoint before a busy one": (
        [job("j1")],
        [offer("e1", jobs=1), offer("e2", free_in_s=99)],
        {},
        Dispatch("j1", "e2"),
    ),
    "one may wait behind the running one": (
        [job("j1")],
        [offer("e1", jobs=1)],
        {},
        Dispatch("j1", "e1"),
    ),
    "and no more": ([job("j1")], [offer("e1", jobs=2)], {}, None),
    "the one that is free first": (
        [job("j1")],
        [offer("e1", jobs=1, free_in_s=60), offer("e2", jobs=1, free_in_s=20)],
        {},
        Dispatch("j1", "e2"),
    ),
    "a model does not wait for another's": (
        [job("j1", model="busy"), job("j2", model="m")],
        [offer("e1", jobs=2, models=("busy",)), offer("e2")],
        {},
        Dispatch("j2", "e2"),
    ),
    "a key's first job before another's many": (
        [job("j1", owner="many"), job("j500", owner="few")],
        [offer("e1")],
        {"many": 2},
        Dispatch("j500", "e1"),
    ),
    "the version that it was checked for": (
        [job("j1", card="v1")],
        [offer("e1", jobs=1, version=1), offer("e2", version=2)],
        {},
        Dispatch("j1", "e1"),
    ),
    "it waits for a place there": (
        [job("j1", card="v1")],
        [offer("e1", jobs=2, version=1), offer("e2", version=2)],
        {},
        None,
    ),
    "the newest where that version is gone": (
        [job("j1", card="v1")],
        [offer("e1", version=2), offer("e2", version=3)],
        {},
        Dispatch("j1", "e2"),
    ),
    "two builds of one version are equal": (
        [job("j1", card="v1")],
        [offer("e1", jobs=1, version=1), offer("e2", version=1, card="another build")],
        {},
        Dispatch("j1", "e2"),
    ),
    "not again where it was lost": (
        [job("j1", avoid=["e1"])],
        [offer("e1"), offer("e2", jobs=1)],
        {},
        Dispatch("j1", "e2"),
    ),
    "unless there is no other": (
        [job("j1", avoid=["e1"])],
        [offer("e1"), offer("e2", jobs=2)],
        {},
        Dispatch("j1", "e1"),
    ),
    "priority before fairness": (
        [job("j1", owner="many", priority=5), job("j2", owner="few")],
        [offer("e1")],
        {"many": 2},
        Dispatch("j1", "e1"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_next_dispatch(case):
    waiting, offers, dispatched, expected = CASES[case]
    assert next_dispatch(waiting, offers, dispatched) == expected


BUSY = offer("e1", jobs=2)
MOVES = {
    "nothing waits behind another": ([], [BUSY, offer("e2")], None),
    "to the idle endpoint": (
        [Held(job("j1"), "e1", 60)],
        [BUSY, offer("e2")],
        Dispatch("j1", "e2"),
    ),
    "not to one that works": ([Held(job("j1"), "e1", 60)], [BUSY, offer("e2", jobs=1)], None),
    "not for a moment": ([Held(job("j1"), "e1", 0.5)], [BUSY, offer("e2")], None),
    "where nobody knows how long": (
        [Held(job("j1"), "e1")],
        [BUSY, offer("e2")],
        Dispatch("j1", "e2"),
    ),
    "the longest wait first": (
        [Held(job("j1"), "e1", 20), Held(job("j2"), "e3", 60)],
        [BUSY, offer("e2"), offer("e3", jobs=2)],
        Dispatch("j2", "e2"),
    ),
    "the older of equals": (
        [Held(job("j2"), "e1", 60), Held(job("j1"), "e3", 60)],
        [BUSY, offer("e2"), offer("e3", jobs=2)],
        Dispatch("j1", "e2"),
    ),
    "not to another model's": (
        [Held(job("j1"), "e1", 60)],
        [BUSY, offer("e2", models=("other",))],
        None,
    ),
    "not to another version": (
        [Held(job("j1", card="v1"), "e1", 60)],
        [BUSY, offer("e2", version=2)],
        None,
    ),
    "not where it was lost": (
        [Held(job("j1", avoid=["e2"]), "e1", 60)],
        [BUSY, offer("e2")],
        None,
    ),
}


@pytest.mark.parametrize("case", MOVES)
def test_next_move(case):
    held, offers, expected = MOVES[case]
    assert next_move(held, offers) == expected
