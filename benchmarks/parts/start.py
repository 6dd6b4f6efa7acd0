"""From the start of a server to its first good /health, and its memory when idle."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks.contestants import bare, polypod
from benchmarks.figures import Row, median

ROUNDS = 5
SETTLE_S = 1.0


def run(folder: Path, share: float) -> list[Row]:
    """Healthy is for us: the model is loaded too. Both have run before, as pods mostly have."""
    starts: dict[str, list[float]] = {"polypod": [], "bare": []}
    memory: dict[str, list[float]] = {"polypod": [], "bare": [], "worker": []}
    for number in range(max(int(ROUNDS * share), 2) + 1):
        for name, serve in (("polypod", polypod), ("bare", bare)):
            with serve(folder / name) as each:
                time.sleep(SETTLE_S)
                own, worker = each.server.memory_mib()
                if number == 0:  # the first ones write bytecode and the store's schema
                    continue
                starts[name].append(each.server.started_in_s)
                memory[name].append(own)
                if name == "polypod":
                    memory["worker"].append(worker)
    bare_memory = median(memory["bare"])
    return [
        Row("start to the first good /health", "s", median(starts["polypod"]),
            median(starts["bare"]), "bare BentoML", most_ratio=1.3),
        Row("memory of the server processes, idle", "MiB", median(memory["polypod"]), bare_memory,
            "bare BentoML", most_ratio=1.3),
        Row("memory of the worker and its guard", "MiB", median(memory["worker"]), bare_memory,
            "bare BentoML with its model"),
    ]  # fmt: skip
