"""How the figures of the router's parts are made."""

from __future__ import annotations

import pytest

from benchmarks.parts.router_busy import busy_shares


def test_only_the_time_in_which_all_had_work_counts() -> None:
    steady = [(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)]
    late = [(0.5, 1.0), (1.5, 2.5)]
    assert busy_shares([steady, late]) == pytest.approx([1.0, 0.75])
    assert busy_shares([steady]) == [1.0]
