"""Whether a job fits the GPU memory that there is, and what would: pure functions on declarations.

It is asked before a job is taken in, so that nobody waits minutes for an out of memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import Any

from polypod.errors import BadInput
from polypod.model import Model

CLASS_SLACK = 1.07
"""A card that is sold with 24 GB tells of 22.5, and needs are said as cards are sold."""

Capacity = Callable[[str], float | None]
"""GB of GPU memory for a slot; None where it is not known."""


def lacking(
    model: Model, params: Mapping[str, Any], until: str, capacity: Capacity
) -> tuple[str, float, float] | None:
    """Slot, GB needed and GB there, of the slot that is farthest too small; None if all fits."""
    short = [
        (slot, needed, there)
        for slot, needed in model.vram_gb(params, until).items()
        if (there := capacity(slot)) is not None and needed > there * CLASS_SLACK
    ]
    return max(short, key=lambda found: found[1] - found[2], default=None)


def check(model: Model, params: Mapping[str, Any], until: str, capacity: Capacity) -> None:
    """Raises BadInput, with what fits, for a job that needs more GPU memory than there is."""
    found = lacking(model, params, until, capacity)
    if found is None:
        return
    slot, needed, there = found
    fitting = list(_fitting(model, params, until, capacity))
    hint = f"These fit: {', '.join(fitting)}." if fitting else "Nothing that it makes fits there."
    source = model.needs.source_for(params)
    raise BadInput(
        f"This job needs {needed:g} GB of GPU memory ({slot}); there are {there:g} GB.",
        f"{hint} POLYPOD_NEEDS=off on the server tries anyway"
        + (f" (where the figure is from: {source})." if source else "."),
        needed_gb=needed,
        available_gb=there,
        fits=fitting,
    )


def _fitting(
    model: Model, params: Mapping[str, Any], until: str, capacity: Capacity
) -> Generator[str]:
    """One change each that makes the job fit."""
    output = {"output_format": params["output_format"]}
    for preset in model.presets:
        chosen = model.resolve({"preset": preset} | output)
        if preset != params.get("preset") and not lacking(model, chosen, until, capacity):
            yield f"preset {preset}"
    for format_ in model.formats:
        changed = {**params, "output_format": format_}
        if changed != params and not lacking(model, changed, until, capacity):
            yield f"output_format {format_}"
    for stage in model.plan(params, until)[:-1]:
        if stage.slot != "cpu" and not lacking(model, params, stage.name, capacity):
            yield f"until {stage.name}"
