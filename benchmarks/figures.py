"""What comes out: figures beside their counterparts, and the share of time a device was busy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One measured thing. `ours` and `theirs` are in `unit`, taken in the same run.

    Met when no `most`, `least` or ratio limit is broken; a row without any limit is for
    information. `ratio` is ours / theirs.
    """

    what: str
    unit: str
    ours: float
    theirs: float | None = None
    peer: str = ""
    most: float | None = None
    least: float | None = None
    most_ratio: float | None = None
    least_ratio: float | None = None

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.theirs else None

    @property
    def met(self) -> bool | None:
        """None: there is no goal."""
        limits = [
            _holds(self.ours, self.most, self.least),
            _holds(self.ratio, self.most_ratio, self.least_ratio),
        ]
        known = [limit for limit in limits if limit is not None]
        return all(known) if known else None

    @property
    def goal(self) -> str:
        parts = [
            (self.most, f"≤ {_short(self.most, self.unit)} {self.unit}"),
            (self.least, f"≥ {_short(self.least, self.unit)} {self.unit}"),
            (self.most_ratio, f"≤ {_short(self.most_ratio)} x"),
            (self.least_ratio, f"≥ {_short(self.least_ratio)} x"),
        ]
        return ", ".join(text.replace(" share", "") for limit, text in parts if limit is not None)


def _holds(value: float | None, most: float | None, least: float | None) -> bool | None:
    if value is None or (most is None and least is None):
        return None
    return (most is None or value <= most) and (least is None or value >= least)


COLUMNS = ("what", "ours", "theirs", "ratio", "peer", "goal", "met?")


def show(rows: Iterable[Row], console: Console, title: str = "") -> None:
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in COLUMNS[1:4] else "left")
    for row in rows:
        colour = {True: "green", False: "red", None: "default"}[row.met]
        *cells, verdict = _cells(row)
        table.add_row(*cells, f"[{colour}]{verdict}[/]")
    console.print(table)


def markdown(rows: Iterable[Row]) -> str:
    """The table for a document."""
    lines = [COLUMNS, ("---", "--:", "--:", "--:", "---", "---", "---"), *map(_cells, rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        f"{row.what}, {row.unit}",
        _short(row.ours, row.unit),
        _short(row.theirs, row.unit),
        f"{row.ratio:.2f}" if row.ratio is not None else "",
        row.peer,
        row.goal,
        {True: "yes", False: "no", None: ""}[row.met],
    )


def _short(value: float | None, unit: str = "") -> str:
    """The digits that matter: for shares those that tell them from one."""
    if value is None:
        return ""
    if math.isinf(value):
        return "never"
    if unit == "share":
        return f"{value:.4f}".rstrip("0").rstrip(".")
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def at(share: float, values: Sequence[float]) -> float:
    """The value below which `share` of the values lie (the next higher one)."""
    ordered = sorted(values)
    return ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1]


def median(values: Sequence[float]) -> float:
    return at(0.5, values)


def runs(stub_log: Path, after: int = 0) -> list[tuple[float, float]]:
    """Begin and end of every run that the stub has noted, but for the first `after` ones."""
    begins: dict[str, list[float]] = {}
    found: list[tuple[float, float]] = []
    for line in stub_log.read_text().splitlines():
        what, moment, seed = line.split()
        if what == "begin":
            begins.setdefault(seed, []).append(float(moment))
        else:
            found.append((begins[seed].pop(), float(moment)))
    return sorted(found)[after:]


def busy_share(found: Sequence[tuple[float, float]]) -> float:
    """How much of the time from the first begin to the last end something ran; one at a time."""
    span = max(end for _, end in found) - min(begin for begin, _ in found)
    return sum(end - begin for begin, end in found) / span
