"""Who runs next: one row for each case."""

from __future__ import annotations

import pytest

from polypod.jobs.schedule import Place, Ready, Reserve, Revoke, Start, next_action

SHAPE, PAINT, CPU = ("m", "shape"), ("m", "paint"), ("m", "cpu")
LOAD = {SHAPE: 10.0, PAINT: 10.0, CPU: 0.1}
NEEDS = {SHAPE: 20.0, PAINT: 20.0}
NOW = 1000.0


def ready(job, worker=SHAPE, slot="gpu", since=NOW, order=None, begins=False):
    return Ready(
        job, (0, order if order is not None else int(job[1:])), slot, worker, since, begins
    )


def place(name="cuda:0/0", slots=("gpu",), **kwargs):
    return Place(name, frozenset(slots), **kwargs)


def busy(worker=SHAPE, resident=None, **kwargs):
    return place(running="j0", running_worker=worker, resident=resident or (worker,), **kwargs)


CASES = {
    "nothing waits": ([], [place()], None),
    "no place": ([ready("j1")], [], None),
    "the oldest goes first": (
        [ready("j2"), ready("j1")],
        [place(resident=(SHAPE,))],
        Start("j1", "cuda:0/0", SHAPE),
    ),
    "priority goes before age": (
        [ready("j1"), Ready("j9", (-5, 9), "gpu", SHAPE, NOW)],
        [place(resident=(SHAPE,))],
        Start("j9", "cuda:0/0", SHAPE),
    ),
    "a worker that is not there is loaded": (
        [ready("j1")],
        [place()],
        Start("j1", "cuda:0/0", SHAPE),
    ),
    "another slot's work stays where it is": ([ready("j1", slot="texture")], [place()], None),
    "the next task is handed over before this one ends": (
        [ready("j1")],
        [busy()],
        Reserve("j1", "cuda:0/0", SHAPE),
    ),
    "only one is reserved": ([ready("j2")], [busy(reserved="j1")], None),
    "a reservation never causes a load": ([ready("j1", PAINT)], [busy()], None),
    "a reservation is for the running worker only, even if the other is resident": (
        [ready("j1", PAINT)],
        [busy(resident=(PAINT, SHAPE))],
        None,
    ),
    "a free place is filled before one is reserved": (
        [ready("j1")],
        [busy(), place("cuda:0/1")],
        Start("j1", "cuda:0/1", SHAPE),
    ),
    "what is reserved moves to a place that became free": (
        [],
        [busy(reserved="j1"), place("cuda:0/1")],
        Revoke("cuda:0/0"),
    ),
    "it is taken back once": ([], [busy(reserved="j1", revoking=True), place("cuda:0/1")], None),
    "a place of another slot takes nothing back": (
        [],
        [busy(reserved="j1"), place("cpu/0", slots=("cpu",))],
        None,
    ),
    "a closed place waits for its time": (
        [ready("j1")],
        [place(closed_until=NOW + 1)],
        None,
    ),
    "a closed place opens": (
        [ready("j1")],
        [place(closed_until=NOW)],
        Start("j1", "cuda:0/0", SHAPE),
    ),
    "workers that fit together stay together": (
        [ready("j1", PAINT)],
        [place(resident=(SHAPE,), capacity_gb=48)],
        Start("j1", "cuda:0/0", PAINT),
    ),
    "the least recently used makes room": (
        [ready("j1", PAINT, since=NOW - 60)],
        [place(resident=(("m", "old"), SHAPE), capacity_gb=24)],
        Start("j1", "cuda:0/0", PAINT, evict=(("m", "old"), SHAPE)),
    ),
    "work for a resident worker goes before a swap": (
        [ready("j1", PAINT), ready("j2", SHAPE)],
        [place(resident=(SHAPE,), capacity_gb=24)],
        Start("j2", "cuda:0/0", SHAPE),
    ),
    "until the oldest has waited two load times": (
        [ready("j1", PAINT, since=NOW - 20), ready("j2", SHAPE)],
        [place(resident=(SHAPE,), capacity_gb=24)],
        Start("j1", "cuda:0/0", PAINT, evict=(SHAPE,)),
    ),
    "and the worker that was loaded for its work has done a batch of it": (
        [ready("j1", PAINT, since=NOW - 20), ready("j2", SHAPE)],
        [place(resident=(SHAPE,), capacity_gb=24, row_left=1)],
        Start("j2", "cuda:0/0", SHAPE),
    ),
    "a batch that nothing is left of is done": (
        [ready("j1", PAINT)],
        [place(resident=(SHAPE,), capacity_gb=24, row_left=9)],
        Start("j1", "cuda:0/0", PAINT, evict=(SHAPE,)),
    ),
    "no swap is put off for nothing": (
        [ready("j1", PAINT)],
        [place(resident=(SHAPE,), capacity_gb=24)],
        Start("j1", "cuda:0/0", PAINT, evict=(SHAPE,)),
    ),
    "preparing ahead has a bound": (
        [ready("j1", CPU, "cpu", begins=True)],
        [place("cpu/0", slots=("cpu",))],
        None,
    ),
    "what has begun goes on beyond the bound": (
        [ready("j1", CPU, "cpu", begins=True), ready("j2", CPU, "cpu")],
        [place("cpu/0", slots=("cpu",))],
        Start("j2", "cpu/0", CPU),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_next_action(case):
    waiting, places, expected = CASES[case]
    action = next_action(waiting, places, NOW, may_begin=0, load_seconds=LOAD, needs_gb=NEEDS)
    assert action == expected


def test_preparing_ahead_within_the_bound():
    waiting = [ready("j1", CPU, "cpu", begins=True)]
    places = [place("cpu/0", slots=("cpu",))]
    action = next_action(waiting, places, NOW, may_begin=1, load_seconds=LOAD, needs_gb=NEEDS)
    assert action == Start("j1", "cpu/0", CPU)
