"""What accelerators this machine has, asked once of the driver's own tool."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from typing import Any

LIMIT_S = 10


@dataclass(frozen=True)
class Gpu:
    name: str
    vram_gb: float


class Devices:
    """`look` once; the answers are plain reads afterwards."""

    def __init__(self) -> None:
        self.gpus: tuple[Gpu, ...] = ()

    async def look(self) -> None:
        program = shutil.which("nvidia-smi")
        if not program:
            return
        child = await asyncio.create_subprocess_exec(
            program,
            "--query-gpu=name,memory.total",
            "--format=csv,noheader,nounits",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            out, _ = await asyncio.wait_for(child.communicate(), LIMIT_S)
        except asyncio.TimeoutError:
            child.kill()
            return
        self.gpus = tuple(_gpu(line) for line in out.decode().splitlines() if "," in line)

    def capacity_gb(self, device: str) -> float | None:
        """Memory of a device such as `cuda:0`; None where it is not known (a CPU)."""
        kind, _, index = device.partition(":")
        if kind != "cuda" or int(index or 0) >= len(self.gpus):
            return None
        return self.gpus[int(index or 0)].vram_gb

    def describe(self) -> dict[str, Any]:
        first = self.gpus[0] if self.gpus else None
        gpu = {"name": first.name, "vram_gb": first.vram_gb} if first else None
        return {"cuda": bool(first), "gpu": gpu}


def _gpu(line: str) -> Gpu:
    name, _, mib = line.rpartition(",")
    return Gpu(name.strip(), round(float(mib) / 1024, 1) if mib.strip().isdigit() else 0.0)
