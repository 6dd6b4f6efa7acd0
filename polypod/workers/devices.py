"""What accelerators this machine has, asked once of the driver's own tool."""

from __future__ import annotations

import asyncio
import re
import shutil
from dataclasses import dataclass
from typing import Any

LIMIT_S = 10


QUERY = "name,memory.total,compute_cap,driver_version"


@dataclass(frozen=True)
class Gpu:
    name: str
    vram_gb: float
    architecture: str = ""
    """Compute capability (`8.6`); empty: the driver is too old to say."""
    driver: str = ""


class Devices:
    """`look` once; the answers are plain reads afterwards."""

    def __init__(self) -> None:
        self.gpus: tuple[Gpu, ...] = ()
        self.cuda = ""
        """The newest CUDA version that the driver knows (`12.4`); empty: no driver."""

    async def look(self) -> None:
        listed, said = await asyncio.gather(
            _ask(f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"), _ask()
        )
        self.gpus = tuple(_gpu(line) for line in listed.splitlines() if line.count(",") >= 3)
        newest = re.search(r"CUDA Version:\s*([\d.]+)", said)
        self.cuda = newest[1] if newest else ""

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


async def _ask(*options: str) -> str:
    """What the driver's own tool says; empty where there is none, or it hangs."""
    program = shutil.which("nvidia-smi")
    if not program:
        return ""
    pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(program, *options, stdout=pipe, stderr=nowhere)
    try:
        out, _ = await asyncio.wait_for(child.communicate(), LIMIT_S)
    except asyncio.TimeoutError:
        child.kill()
        await child.wait()
        return ""
    return out.decode(errors="replace")


def _gpu(line: str) -> Gpu:
    name, mib, architecture, driver = (part.strip() for part in line.rsplit(",", 3))
    vram_gb = round(float(mib) / 1024, 1) if mib.isdigit() else 0.0
    return Gpu(name, vram_gb, architecture if architecture[:1].isdigit() else "", driver)
