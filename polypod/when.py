"""Conditions on a job's parameters, as data: cards carry them to routers and forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Limits = Mapping[Literal["min", "max"], float]
"""Both inclusive."""
Value = bool | int | float | str | None
Wanted = Value | tuple[Value, ...] | Limits
"""A value matches when it is equal, when it is one of several, or when it is within limits."""
When = Mapping[str, Wanted]
"""By parameter; the preset is the parameter `preset`. All must match."""


def matches(when: When, params: Mapping[str, Any]) -> bool:
    """Whether these resolved parameters are so; one that is not among them matches only None."""
    return all(_matches(wanted, params.get(name)) for name, wanted in when.items())


def _matches(wanted: Wanted, value: Any) -> bool:
    if isinstance(wanted, Mapping):
        number = isinstance(value, int | float)
        return number and wanted.get("min", value) <= value <= wanted.get("max", value)
    return value in wanted if isinstance(wanted, tuple) else value == wanted
