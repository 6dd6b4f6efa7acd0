"""How many endpoints run: one row for each case."""

from __future__ import annotations

import pytest

from polypod.router.scale import Pod, Scale, Start, Stop, decide

NOW = 1000.0


def on(name, jobs=0, idle_s=0.0):
    return Pod(name, running=True, jobs=jobs, idle_since=NOW - idle_s)


def off(name):
    return Pod(name, running=False)


def scale(*pods, waiting=0, least=0, most=None, idle_s=60.0):
    return Scale(least, len(pods) if most is None else most, idle_s, waiting, pods)


CASES = {
    "nothing to do": (scale(off("a")), []),
    "a job wakes it": (scale(off("a"), waiting=1), [Start("a")]),
    "it is starting already": (scale(on("a"), waiting=1), []),
    "two jobs are one endpoint's": (scale(off("a"), off("b"), waiting=2), [Start("a")]),
    "a backlog wakes more": (
        scale(on("a", jobs=2), off("b"), off("c"), waiting=3),
        [Start("b"), Start("c")],
    ),
    "up to max": (scale(on("a", jobs=2), off("b"), off("c"), waiting=9, most=2), [Start("b")]),
    "not below min": (scale(on("a", idle_s=99), off("b"), least=1), []),
    "min runs without work": (scale(off("a"), off("b"), least=1), [Start("a")]),
    "idle for long enough": (scale(on("a", idle_s=60)), [Stop("a")]),
    "idle, but not for long": (scale(on("a", idle_s=59)), []),
    "the last one first": (
        scale(on("a", idle_s=99), on("b", idle_s=99), least=1),
        [Stop("b")],
    ),
    "it has a job": (scale(on("a", jobs=1, idle_s=99)), []),
    "work for it is waiting": (scale(on("a", idle_s=99), waiting=1), []),
    "idle_s 0 is never": (scale(on("a", idle_s=9999), idle_s=0), []),
    "one is busy, the other idle": (
        scale(on("a", jobs=1), on("b", idle_s=99)),
        [Stop("b")],
    ),
    "a full one and an idle one, and a job comes": (
        scale(on("a", jobs=2), on("b", idle_s=99), waiting=1),
        [],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_decide(case):
    given, expected = CASES[case]
    assert decide([given], NOW) == expected


def test_models_do_not_depend_on_each_other():
    assert decide([CASES["a job wakes it"][0], CASES["idle for long enough"][0]], NOW) == [
        Start("a"),
        Stop("a"),
    ]
