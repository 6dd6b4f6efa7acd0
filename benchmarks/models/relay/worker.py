"""Notes each load and each stage, with its times, in STUB_LOG. Standard library only."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path


def load(worker, settings):
    time.sleep(float(os.environ.get("STUB_LOAD_S", "0")))
    note({"load": worker, "at": time.time()})


def run(stage, state, job):
    """Holds the device for its time, and hands on what it was given."""
    began = time.time()
    seconds = {"shape": "shape_s", "paint": "paint_s"}.get(stage)
    time.sleep(max(began + (job.params[seconds] if seconds else 0) - time.time(), 0))
    source, target = {
        "prepare": ("image", "input.bin"),
        "shape": ("input.bin" if "input.bin" in job.inputs else "image", "shape.bin"),
        "paint": ("shape.bin", "model.bin"),
    }[stage]
    seed = str(job.params.get("seed", "")).encode()
    (job.outputs / target).write_bytes(Path(job.inputs[source]).read_bytes() + b" " + seed)
    note({"stage": stage, "job": job.id.partition("/")[0], "began": began, "ended": time.time()})


def note(line):
    with Path(os.environ["STUB_LOG"]).open("a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")
