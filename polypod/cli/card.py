"""What a person should know before the first job with a model: licence, needs, input rules."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

from polypod.client.views import Json


def licence_lines(licence: Json) -> Generator[str]:
    """What is allowed, in a line; then whose parts have licences of their own."""
    names = [str(licence.get(key) or "") for key in ("code", "weights")]
    flags = [] if licence.get("commercial", True) else ["not for commercial use"]
    if excluded := licence.get("regions_excluded"):
        flags.append(f"not licensed in {', '.join(map(str, excluded))}")
    told = "; ".join([", weights ".join(filter(None, names)), *flags])
    yield f"Licence: {told}"
    parts: Mapping[str, str] = licence.get("parts") or {}
    for name, says in parts.items():
        yield f"  {name}: {says}"
    for extra in filter(None, (licence.get("note"), licence.get("url"))):
        yield f"  {extra}"


def needs_lines(needs: Json, by_preset: Mapping[str, Mapping[str, float]]) -> Generator[str]:
    """GPU memory by preset where it differs, and the machine."""
    for preset, slots in by_preset.items():
        if slots:
            memory = ", ".join(f"{gb:g} GB ({slot})" for slot, gb in slots.items())
            yield f"  {preset}: GPU memory {memory}"
    gpu = (
        [f"compute capability {', '.join(needs['architectures'])}"]
        if needs.get("architectures")
        else []
    )
    cuda = [f"CUDA {needs['cuda']} or newer"] if needs.get("cuda") else []
    machine = f"{needs.get('memory_gb', 0):g} GB memory, {needs.get('disk_gb', 0):g} GB disk"
    yield f"  {'; '.join([*gpu, *cuda, machine])}"
    if source := needs.get("source"):
        yield f"  figures: {source}"


def rules(inputs: Mapping[str, Any]) -> Generator[str]:
    for name, declared in inputs.items():
        for rule in declared.get("rules") or ():
            yield f"  {name}: {rule}"
