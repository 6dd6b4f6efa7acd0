from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.figures import Row, at, busy_share, markdown, median, runs, show


def test_a_row_is_met_only_when_every_limit_holds() -> None:
    row = Row("submit", "ms", 3.0, 2.0, "task", most=5, most_ratio=1)
    assert row.ratio == 1.5
    assert row.met is False
    assert Row("submit", "ms", 2.0, 2.0, "task", most=5, most_ratio=1).met is True
    assert Row("busy", "share", 0.995, least=0.99).met is True
    assert Row("memory", "MiB", 20.0, 10.0).met is None


def test_a_limit_on_a_ratio_that_is_not_known_is_not_counted() -> None:
    assert Row("submit", "ms", 3.0, None, most_ratio=1).met is None


def test_a_missed_goal_is_said() -> None:
    out = StringIO()
    rows = [
        Row("submit", "ms", 7.25, 2.5, "task", most=5),
        Row("noticed", "s", 0.01, float("inf"), "task", most=1),
        Row("busy", "share", 0.9912, 0.53, "task", least=0.99),
    ]
    show(rows, Console(file=out, width=120))
    missed, met, busy = (line for line in out.getvalue().splitlines() if "task" in line)
    assert "7.25" in missed and "2.90" in missed and "no" in missed
    assert "never" in met and "yes" in met
    assert "0.9912" in busy and "≥ 0.99" in busy


def test_the_same_table_for_a_document() -> None:
    row = Row("submit", "ms", 7.25, 2.5, "task", most=5)
    assert markdown([row]).splitlines()[2] == (
        "| submit, ms | 7.25 | 2.5 | 2.90 | task | ≤ 5 ms | no |"
    )


@pytest.mark.parametrize(("share", "value"), [(0.5, 5), (0.9, 9), (0.99, 10), (1.0, 10)])
def test_percentiles_are_values_that_were_measured(share: float, value: int) -> None:
    assert at(share, [*range(10, 0, -1)]) == value
    assert median([3, 1, 2]) == 2


def test_the_busy_share_counts_what_lies_between_runs_as_idle(tmp_path: Path) -> None:
    log = tmp_path / "stub.log"
    log.write_text("begin 1.0 7\nbegin 2.0 8\nend 1.9 7\nend 3.0 8\nbegin 3.5 9\n")
    assert runs(log) == [(1.0, 1.9), (2.0, 3.0)]
    assert busy_share(runs(log)) == pytest.approx(0.95)
