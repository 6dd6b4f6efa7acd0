"""Where the time of one `inflate` job goes: warm, one thread, medians.

    .venv/bin/python benchmarks/inflate.py [--photo FILE] [--runs 15]

Stages run as the worker runs them, from files to files. Below each stage are its parts: the
model side's functions and the calls into OpenCV and SciPy that cost the most, timed by wrapping
them. The budgets are those of issue 3, for a photograph of 1024 pixels with preset `balanced`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

from services.inflate import worker
from services.inflate.model import MODEL

PARTS = {
    "cutout": ["read_picture", "compare_with_border", "grabCut", "refine_edge", "drop_specks",
               "write_picture"],
    "inflate": ["read_picture", "lay_grid", "find_rim", "solve_poisson", "build_surface",
                "vertex_normals"],
    "texture": ["read_picture", "write_picture"],
    "export": ["write_glb"],
}  # fmt: skip
PLACES = [worker.cv2, *(m for n, m in sys.modules.items() if n.startswith("services.inflate."))]
BUDGETS_MS = {"whole job": 400, "solve_poisson": 150}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--photo", type=Path, default=Path(__file__).parents[1] / "examples/duck.jpg"
    )
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})

    started = time.perf_counter()
    state = worker.load("cpu", {})
    print(f"load: {1000 * (time.perf_counter() - started):.0f} ms after the imports")
    spent = wrap_parts()
    for preset in MODEL.presets:
        rounds = []
        for number in range(arguments.runs + 2):
            with tempfile.TemporaryDirectory() as folder:
                times = run_job(state, arguments.photo, Path(folder), preset, spent)
            if number >= 2:  # the first two warm up
                rounds.append(times)
        report(preset, rounds)


def wrap_parts() -> dict[str, float]:
    """Makes every named function add its seconds to the returned table (outermost calls only)."""
    spent: dict[str, float] = defaultdict(float)
    depth: dict[str, int] = defaultdict(int)

    def timed(name: str, function):
        def call(*args, **kwargs):
            depth[name] += 1
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                depth[name] -= 1
                if not depth[name]:
                    spent[name] += time.perf_counter() - start

        return call

    for name in {part for parts in PARTS.values() for part in parts}:
        places = [place for place in PLACES if hasattr(place, name)]
        function = timed(name, getattr(places[0], name))
        for place in places:
            setattr(place, name, function)
    return spent


def run_job(
    state: dict, photo: Path, folder: Path, preset: str, spent: dict[str, float]
) -> dict[tuple[str, str], float]:
    """Milliseconds by (stage, part); part is empty for the stage itself."""
    params = MODEL.resolve({"preset": preset})
    files, times = {"image": photo}, {}
    for stage in MODEL.plan(params):
        job = SimpleNamespace(
            inputs={name: files[name] for name in stage.inputs if name in files},
            outputs=folder,
            params=SimpleNamespace(**{name: params[name] for name in stage.params}),
            progress=lambda fraction, message="": None,
        )
        spent.clear()
        start, cpu = time.perf_counter(), time.process_time()
        worker.run(stage.name, state, job)
        times[stage.name, ""] = 1000 * (time.perf_counter() - start)
        times[stage.name, "cpu"] = 1000 * (time.process_time() - cpu)
        for part in PARTS[stage.name]:
            times[stage.name, part] = 1000 * spent[part]
        files |= {path.name: path for path in folder.iterdir()}
    return times


def report(preset: str, rounds: list[dict[tuple[str, str], float]]) -> None:
    """Prints medians over the rounds; `cpu` is processor time, free of the machine's other work."""
    median = {key: statistics.median(times[key] for times in rounds) for key in rounds[0]}
    wall, cpu = (
        statistics.median(
            sum(v for (_, part), v in times.items() if part == kind) for times in rounds
        )
        for kind in ("", "cpu")
    )
    print(
        f"\n{preset}: {len(rounds)} runs, milliseconds\n{'':24}{'wall':>8}{'cpu':>8}{'budget':>8}"
    )
    budgets = BUDGETS_MS if preset == MODEL.default_preset else {}
    print(f"{'whole job':24}{wall:8.1f}{cpu:8.1f}{budgets.get('whole job', ''):>8}")
    for stage, parts in PARTS.items():
        print(f"  {stage:22}{median[stage, '']:8.1f}{median[stage, 'cpu']:8.1f}")
        for part in parts:
            print(f"    {part:20}{median[stage, part]:8.1f}{'':8}{budgets.get(part, ''):>8}")
    if budgets:
        print(
            f"budget / measured: whole job {400 / wall:.1f} ({400 / cpu:.1f} by processor time), "
            f"solve {150 / median['inflate', 'solve_poisson']:.1f}"
        )


if __name__ == "__main__":
    main()
