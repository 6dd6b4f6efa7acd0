"""What accelerators this process may use, asked once of the driver's own tool.

That lists all of the machine; where CUDA_VISIBLE_DEVICES is set, `cuda:0` is the first one of it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

LIMIT_S = 10


QUERY = "uuid,name,memory.total,compute_cap,driver_version"
VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Gpu:
    name: str
    vram_gb: float
    """0: it is not told."""
    architecture: str = ""
    """Compute capability (`8.6`); empty: the driver is too old to say."""
    driver: str = ""
    uuid: str = ""


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
        found = [_gpu(line) for line in listed.splitlines() if line.count(",") >= 4]
        names = os.environ.get(VISIBLE)
        self.gpus = tuple(found if names is None else _visible(found, names))
        newest = re.search(r"CUDA Version:\s*([\d.]+)", said)
        self.cuda = newest[1] if newest else ""

    def capacity_gb(self, device: str) -> float | None:
        """Memory of a device such as `cuda:0`; None where it is not known (a CPU)."""
        kind, _, index = device.partition(":")
        if kind != "cuda" or int(index or 0) >= len(self.gpus):
            return None
        return self.gpus[int(index or 0)].vram_gb or None

    def describe(self) -> dict[str, Any]:
        first = self.gpus[0] if self.gpus else None
        gpu = {"name": first.name, "vram_gb": first.vram_gb} if first else None
        return {"cuda": bool(first), "gpu": gpu}


def visible_as(device: str) -> str:
    """CUDA_VISIBLE_DEVICES of a process for which this device (`cuda:1`) is the only one."""
    index, names = int(device.partition(":")[2] or 0), os.environ.get(VISIBLE)
    if names is None:
        return str(index)
    return "".join(names.split(",")[index : index + 1]).strip()


def _visible(gpus: Sequence[Gpu], names: str) -> Generator[Gpu]:
    """As CUDA reads it: by index or by the UUID's beginning; a wrong name hides what follows."""
    for name in map(str.strip, names.split(",")):
        if name.startswith("MIG-") and gpus:
            yield Gpu("part of a GPU", 0.0, driver=gpus[0].driver)
            continue
        alike = [gpu for gpu in gpus if name.startswith("GPU-") and gpu.uuid.startswith(name)]
        if name.isdecimal():
            alike = [*gpus[int(name) : int(name) + 1]]
        if len(alike) != 1:
            return
        yield alike[0]


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
    uuid, _, rest = line.partition(",")
    name, mib, architecture, driver = (part.strip() for part in rest.rsplit(",", 3))
    vram_gb = round(float(mib) / 1024, 1) if mib.isdigit() else 0.0
    return Gpu(name, vram_gb, architecture if architecture[:1].isdigit() else "", driver, uuid)
