"""Parameters of a request: text of a form by the schema, `null` seeds drawn, parents inherited."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any, cast

from polypod.api.bigjson import not_too_deep, plain
from polypod.errors import BadInput, BadRequest
from polypod.model import Model

MAX_NAME = 100


def from_form(model: Model, fields: Mapping[str, str]) -> dict[str, Any]:
    """The values that the text of form fields stands for: `true`, `0.5`, `null`, `[1, 2]`.

    A parameter that takes text keeps it as it is. What is not JSON stays text too, so that the
    check of the value says what is wrong with it.
    """
    properties = model.card["parameters"]["properties"]
    return {
        name: text if _takes_text(properties.get(name, {})) else _parse(text)
        for name, text in fields.items()
    }


def resolve(model: Model, given: Mapping[str, Any]) -> dict[str, Any]:
    """`Model.resolve` for values that may be anything that JSON can say.

    Raises:
        BadInput: with words.
    """
    preset = given.get("preset")
    if not isinstance(preset, str | None):
        raise BadInput("`preset` is not text.", f"Use one of: {', '.join(model.presets)}.")
    long = next((name for name in given if len(name) > MAX_NAME), None)
    if long:
        raise BadInput(
            f"Unknown parameter {long[:40]!r}... ({len(long)} characters).",
            f"Parameters of this model: {', '.join(model.params.model_fields)}.",
        )
    return model.resolve({name: plain(value) for name, value in given.items()})


def draw_seed(params: Mapping[str, Any]) -> dict[str, Any]:
    """With a random seed where it is null; drawn once, so that retries use the same."""
    drawn = dict(params)
    if drawn.get("seed", 0) is None:
        drawn["seed"] = secrets.randbits(32)
    return drawn


def inherit(model: Model, parent: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a job that goes on from a parent: its own, over a new preset's values,
    over the parent's."""
    known = {name: value for name, value in parent.items() if name in model.params.model_fields}
    preset = given.get("preset") or parent.get("preset")
    chosen = model.presets.get(str(given.get("preset")), {})
    return resolve(model, {**known, **chosen, **given, "preset": preset})


def take_text(fields: dict[str, Any], name: str) -> str:
    """Removes the field and returns it; empty where it is not there."""
    value = fields.pop(name, None)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRequest(f"`{name}` is not text.", f'Send it as a string: "{name}": "...".')
    return value


def _takes_text(schema: Mapping[str, Any]) -> bool:
    options = cast(list[Mapping[str, Any]], schema.get("anyOf", [schema]))
    return any(
        o.get("type") == "string" or any(isinstance(v, str) for v in o.get("enum", ()))
        for o in options
    )


def _parse(text: str) -> Any:
    text = text.strip()
    if text.lower() in ("", "none"):
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return not_too_deep(json.loads(text, parse_constant=str))
    except (ValueError, RecursionError):
        return text
