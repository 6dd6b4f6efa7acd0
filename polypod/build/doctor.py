"""What is wrong with a model's environment here, in words, and what to do.

`examine` is quick enough for every start: it looks at files, sizes and the driver. `examine_deeply`
also imports upstream's packages and reads every byte of the weights.
"""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil

from polypod.build import bake
from polypod.build.steps import has_weights
from polypod.image import Home
from polypod.jobs.fits import CLASS_SLACK
from polypod.model import Model
from polypod.settings import Settings
from polypod.workers.devices import Devices, Gpu
from polypod.workers.process import environment

GIB = 1024**3
WORKING_GB = 2.0
"""What jobs need on the disk beside what is there already."""
IMPORTS_S = 600.0

TRY = """
import importlib, json, sys
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(failed))
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    seen: str
    todo: str = ""
    """What to do; empty: all is well."""
    blocks: bool = False
    """Without it no job can be done."""

    @property
    def well(self) -> bool:
        return not self.todo


def examine(model: Model, settings: Settings, devices: Devices) -> list[Finding]:
    """What can be seen in a moment."""
    home = Home(settings.home / model.name)
    environment = list(_environment(model, home, settings))
    nothing = any(finding.blocks for finding in environment)
    return [
        *environment,
        *(() if nothing else _sources(model, home)),
        *_weights(model, home),
        *_remover(model),
        *_gpus(model, settings, devices),
        *_machine(model, settings),
    ]


def examine_deeply(model: Model, settings: Settings, devices: Devices) -> list[Finding]:
    """All of `examine`, then imports and digests: minutes for 20 GB."""
    home = Home(settings.home / model.name)
    quick = examine(model, settings, devices)
    python = settings.model_python or str(home.python)
    can_import = model.image.imports and Path(python).exists()
    imports = list(_imports(model, home, python)) if can_import else []
    return [*quick, *imports, *_digests(model, home)]


def _environment(model: Model, home: Home, settings: Settings) -> Generator[Finding]:
    if not model.image.python:
        return
    python = Path(settings.model_python) if settings.model_python else home.python
    if python.exists():
        yield Finding("environment", f"{python}")
    else:
        yield Finding(
            "environment",
            f"The model environment is missing: there is no {python}.",
            f"Run the model's image, or make the environment here: polypod setup {model.name}.",
            blocks=True,
        )


def _sources(model: Model, home: Home) -> Generator[Finding]:
    for checkout in model.image.checkouts:
        mark = Path(home.fill(checkout.place), ".commit")
        found = mark.read_text().strip() if mark.exists() else ""
        if found == checkout.commit:
            yield Finding(f"source {checkout.name}", checkout.commit)
        else:
            yield Finding(
                f"source {checkout.name}",
                f"The source of {checkout.name} is {'at ' + found if found else 'missing'}; "
                f"{checkout.commit} belongs in {mark.parent}.",
                f"Run `polypod setup {model.name}`, or the image of this version.",
                blocks=True,
            )


def _weights(model: Model, home: Home) -> Generator[Finding]:
    if not has_weights(model):
        return
    if seen := lost_weights(home):
        yield Finding("weights", seen, _get_weights(model), blocks=True)
        return
    listed = _listed(home) or {}
    size = sum(size for size, _ in listed.values()) / GIB
    yield Finding("weights", f"{len(listed)} files, {size:.2f} GB, by size")


def lost_weights(home: Home) -> str:
    """What is not there of the weights, or not whole, by size; empty: nothing."""
    listed = _listed(home)
    if not listed:
        told = "no" if listed is None else "nothing in"
        return f"The weights are missing: there is {told} {home.weights / bake.LIST}."
    wrong = list(_wrong_sizes(home, listed))
    if wrong:
        return f"Of {len(listed)} files of weights {len(wrong)} are not whole: {wrong[0]}."
    return ""


def _get_weights(model: Model) -> str:
    """What it takes to have them, as the declaration says."""
    steps = [f"Run the model's image, or get them: polypod setup {model.name}."]
    if model.weights.gated:
        gated = ", ".join(source.repo for source in model.weights.hub if source.gated)
        steps.append(f"{gated} is gated: accept its licence there, and set HF_TOKEN.")
    if model.weights.licensed:
        names = ", ".join(file.name for file in model.weights.licensed)
        steps.append(f"Get these yourself and name their folder with --licensed: {names}.")
    return " ".join(steps)


def _remover(model: Model) -> Generator[Finding]:
    if not model.removes_backgrounds:
        return
    if importlib.util.find_spec("rembg"):
        yield Finding("background remover", "rembg")
    else:
        yield Finding(
            "background remover",
            "rembg is not installed, so only pictures with a transparent background, or a `mask`, "
            "can be used.",
            f"Run the model's image, or: polypod setup {model.name}.",
        )


def _listed(home: Home) -> dict[str, tuple[int, str]] | None:
    """Size and digest by path; None where there is no list."""
    try:
        told = json.loads((home.weights / bake.LIST).read_text())
        return {name: (int(file["size"]), str(file["sha256"])) for name, file in told.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _wrong_sizes(home: Home, listed: Mapping[str, tuple[int, str]]) -> Generator[str]:
    for name, (size, _) in listed.items():
        try:
            found = (home.weights / name).stat().st_size
        except OSError:
            yield f"{name} is not there"
            continue
        if found != size:
            yield f"{name} has {found} bytes, not {size}"


def _digests(model: Model, home: Home) -> Generator[Finding]:
    listed = _listed(home)
    if listed is None:
        return
    whole = {n: d for n, (size, d) in listed.items() if _size(home.weights / n) == size}
    altered = [name for name, known in whole.items() if bake.digest(home.weights / name) != known]
    if altered:
        seen = f"These files of weights were altered: {', '.join(altered)}."
        yield Finding("digests", seen, f"Remove them, then: {_get_weights(model)}", blocks=True)
    elif whole:
        yield Finding("digests", f"{len(whole)} files, by SHA-256")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _imports(model: Model, home: Home, python: str) -> Generator[Finding]:
    names = model.image.imports
    env = environment(python, home.environment(model.image))
    try:
        said = subprocess.run(
            [python, "-c", TRY, *names],
            env=env,
            capture_output=True,
            text=True,
            timeout=IMPORTS_S,
            check=False,
        )
        failed = cast("dict[str, str]", json.loads(said.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        failed = {names[0]: "the interpreter ended, or hung, while it imported"}
    again = f"Build the image again, or `polypod setup {model.name}`; the pins are in the lock."
    for name, error in failed.items():
        yield Finding("imports", f"`import {name}` fails: {error}.", again, blocks=True)
    if not failed:
        yield Finding("imports", ", ".join(names))


def _gpus(model: Model, settings: Settings, devices: Devices) -> Generator[Finding]:
    """Of those that the model's slots are mapped to."""
    if not model.image.gpu:
        return
    wanted = sorted({settings.device(s.slot) for s in model.stages if s.slot != "cpu"})
    for device in wanted:
        if not device.startswith("cuda"):
            continue
        index = int(device.partition(":")[2] or 0)
        if index < len(devices.gpus):
            yield _gpu(model, devices.gpus[index], device)
        else:
            yield Finding(
                device,
                f"There is no GPU {device}: {len(devices.gpus)} found.",
                "Start the container with `--gpus all` (and the NVIDIA container toolkit on its "
                "host), rent a pod with a GPU, or map the slot to one that is there: "
                "POLYPOD_SLOT_<NAME>=cuda:0.",
                blocks=True,
            )
    if devices.gpus and any(device.startswith("cuda") for device in wanted):
        yield _driver(model, devices)


def _gpu(model: Model, gpu: Gpu, device: str) -> Finding:
    memory = f"{gpu.vram_gb:g} GB" if gpu.vram_gb else "memory not told"
    compiled, seen = model.needs.architectures, f"{gpu.name}, {memory}"
    if compiled and gpu.architecture and not runs_on(compiled, gpu.architecture):
        return Finding(
            device,
            f"{gpu.name} has compute capability {gpu.architecture}; the model is compiled for "
            f"{', '.join(compiled)}.",
            "Use a GPU of one of these, such as A100 (8.0), A40 or RTX 3090 (8.6), L40S or RTX "
            "4090 (8.9), H100 (9.0), or add it to the declaration and build again.",
            blocks=True,
        )
    needed = max(model.vram_gb(model.resolve({})).values(), default=0.0)
    if gpu.vram_gb and needed > gpu.vram_gb * CLASS_SLACK:
        return Finding(
            device,
            f"{seen}; the default preset needs {needed:g} GB ({model.needs.source or 'declared'}).",
            "Use a larger GPU, or a preset that needs less. POLYPOD_NEEDS=off tries anyway.",
        )
    return Finding(device, f"{seen}, compute capability {gpu.architecture or 'not told'}")


def runs_on(compiled: Sequence[str], architecture: str) -> bool:
    """Whether code for one of `compiled` runs: same major number, and not newer than the GPU."""
    gpu = _version(architecture)
    return any(c[:1] == gpu[:1] and c <= gpu for c in map(_version, compiled))


def _driver(model: Model, devices: Devices) -> Finding:
    needs, driver = model.needs, devices.gpus[0].driver
    seen = f"driver {driver or 'not told'}, CUDA {devices.cuda or 'not told'}"
    old_cuda = needs.cuda and devices.cuda and _version(devices.cuda) < _version(needs.cuda)
    old_driver = needs.driver and driver and _version(driver) < _version(needs.driver)
    if old_cuda or old_driver:
        wanted = f"CUDA {needs.cuda}" if old_cuda else f"driver {needs.driver}"
        return Finding(
            "driver",
            f"The driver is too old: {seen}; the model needs {wanted} or newer.",
            "Update the driver of the host, or rent a pod whose host has it (RunPod: "
            "minCudaVersion; Vast.ai: cuda_max_good).",
            blocks=True,
        )
    return Finding("driver", seen)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def _machine(model: Model, settings: Settings) -> Generator[Finding]:
    folder = next(p for p in (settings.data, *settings.data.parents) if p.exists())
    free = shutil.disk_usage(folder).free / GIB
    enough = (
        "" if free >= WORKING_GB else f"Free {WORKING_GB:g} GB there, or give it a larger disk."
    )
    yield Finding("disk", f"{free:.1f} GB free for {settings.data}", enough)
    memory = memory_gb()
    short = memory * CLASS_SLACK < model.needs.memory_gb
    yield Finding(
        "memory",
        f"{memory:.1f} GB, {model.needs.memory_gb:g} needed",
        "Loading may be ended by the system: give the pod more memory." if short else "",
    )


def memory_gb() -> float:
    """Main memory that this machine, or this container, may use."""
    limits = [psutil.virtual_memory().total]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        path = Path("/sys/fs/cgroup", name)
        text = path.read_text().strip() if path.exists() else ""
        limits += [int(text)] if text.isdigit() else []
    return min(limits) / GIB
