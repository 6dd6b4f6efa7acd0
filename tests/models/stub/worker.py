"""The stub's two functions. Standard library only; Python 3.8 or later.

`STUB_LOAD_SECONDS` in the environment makes loading slow, `STUB_LOAD_FAIL` makes it fail; every
run adds its stage and seed as a line to the file `STUB_RUNS`.
"""

import hashlib
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path

CORNERS = [(x, y, z) for x in (-0.5, 0.5) for y in (0.0, 1.0) for z in (-0.25, 0.25)]
FACES = [
    (0, 1, 3), (0, 3, 2), (4, 6, 7), (4, 7, 5), (0, 4, 5), (0, 5, 1),
    (2, 3, 7), (2, 7, 6), (0, 2, 6), (0, 6, 4), (1, 5, 7), (1, 7, 3),
]  # fmt: skip


class BadInput(Exception):
    """The input cannot be used."""

    hint = "Send another picture."


def load(worker, settings):
    time.sleep(float(os.environ.get("STUB_LOAD_SECONDS", "0")))
    if os.environ.get("STUB_LOAD_FAIL"):
        raise RuntimeError("the weights are not there")
    return {"worker": worker, "device": settings.get("device", "cpu")}


def run(stage, state, job):
    if os.environ.get("STUB_RUNS"):
        with Path(os.environ["STUB_RUNS"]).open("a", encoding="ascii") as runs:
            runs.write(f"{stage} {job.params.seed}\n")
    if stage == "prepare":
        pass_time(job, stage, job.params.prepare_seconds)
        digests = {name: digest(path) for name, path in sorted(job.inputs.items())}
        (job.outputs / "prepared.json").write_text(json.dumps(digests), encoding="utf-8")
        return
    for line in job.params.say.splitlines():
        print(line, flush=True)
    pass_time(job, stage, job.params.seconds)
    if job.params.output_format == "ply":
        (job.outputs / "model.ply").write_text(ply(), encoding="ascii")
    else:
        write_glb(job.outputs / "model.glb", job.params.size_bytes, job.params.seed)


def pass_time(job, stage, seconds):
    """Wait in `steps` parts, with a report after each; fail half-way if asked to."""
    for step in range(job.params.steps):
        if job.params.fail_in == stage and step == job.params.steps // 2:
            fail(job.params.fail, seconds)
        if seconds:
            time.sleep(seconds / job.params.steps)
        job.progress((step + 1) / job.params.steps, f"step {step + 1}")


def fail(how, seconds):
    if how == "bad_input":
        raise BadInput("There is nothing in the picture.")
    if how == "error":
        raise RuntimeError("something broke")
    if how == "exit":
        sys.exit(3)
    if how == "memory":
        raise MemoryError("no room")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "native":  # deaf to cancel: SIGTERM ignored, no progress call
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(max(seconds, 60))
    if how == "hang":
        while True:
            time.sleep(60)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_glb(path, size_bytes, seed):
    """A box as binary glTF; unused bytes, drawn from the seed, fill it up to `size_bytes`."""
    indices = b"".join(struct.pack("<3H", *face) for face in FACES)
    corners = b"".join(struct.pack("<3f", *corner) for corner in CORNERS)
    used = len(indices) + len(corners)
    padding = max(size_bytes - used - 1000, 0) // 4 * 4
    document = {
        "asset": {"version": "2.0", "generator": "stub", "extras": {"seed": seed}},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": {"POSITION": 1}, "indices": 0}]}],
        "buffers": [{"byteLength": used + padding}],
        "bufferViews": [
            {"buffer": 0, "byteOffset": 0, "byteLength": len(indices), "target": 34963},
            {"buffer": 0, "byteOffset": len(indices), "byteLength": len(corners), "target": 34962},
        ],
        "accessors": [
            {"bufferView": 0, "componentType": 5123, "count": len(FACES) * 3, "type": "SCALAR"},
            {
                "bufferView": 1,
                "componentType": 5126,
                "count": len(CORNERS),
                "type": "VEC3",
                "min": [-0.5, 0.0, -0.25],
                "max": [0.5, 1.0, 0.25],
            },
        ],
    }
    text = json.dumps(document).encode()
    text += b" " * (max(1000 - 28, len(text)) - len(text))
    text += b" " * (-len(text) % 4)
    total = 12 + 8 + len(text) + 8 + used + padding
    block = hashlib.sha256(str(seed).encode()).digest() * 2048
    with path.open("wb") as file:
        file.write(struct.pack("<4sII", b"glTF", 2, total))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", used + padding, b"BIN\0") + indices + corners)
        for start in range(0, padding, len(block)):
            file.write(block[: padding - start])


def ply():
    head = (
        f"ply\nformat ascii 1.0\nelement vertex {len(CORNERS)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(FACES)}\nproperty list uchar int vertex_indices\nend_header\n"
    )
    lines = [" ".join(map(str, corner)) for corner in CORNERS]
    lines += ["3 " + " ".join(map(str, face)) for face in FACES]
    return head + "\n".join(lines) + "\n"
