"""`make bench`, or `python -m benchmarks [PART ...]`: prints our figures, theirs and the ratios.

All contestants run on this machine in this run, and every operation is measured on each in turn,
so that what else the machine does meets all alike. Figures of different runs do not compare.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from rich.console import Console

from benchmarks.figures import Row, markdown, show

PARTS = (
    *("submit", "overhead", "busy", "pipeline", "history", "status", "download", "start", "cancel"),
    *("router", "router_busy", "router_queue", "router_relay"),
)
WIDTH = 120


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument(
        "--folder", type=Path, help="where servers keep their files; on the disk to be measured"
    )
    parser.add_argument("--markdown", action="store_true", help="tables for docs/benchmarks.md")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds, to try it out")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="polypod-bench-", dir=arguments.folder) as folder:
        for name in arguments.parts or PARTS:
            began = time.monotonic()
            module = import_module(f"benchmarks.parts.{name}")
            made = module.run(Path(folder) / name, 0.1 if arguments.quick else 1.0)
            rows += made
            if arguments.markdown:
                print(f"### {name}\n\n{module.__doc__.strip()}\n\n{markdown(made)}", flush=True)
                continue
            title = f"{name}: {module.__doc__.strip().splitlines()[0]}"
            show(made, console, f"{title} ({time.monotonic() - began:.0f} s)")
    goals = [row.met for row in rows if row.met is not None]
    console.print(f"{sum(goals)} of {len(goals)} goals are met.")


if __name__ == "__main__":
    main()
