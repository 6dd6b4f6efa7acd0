"""Models that are known by their card alone: the router has no model's code.

A card's parameters are JSON Schema as pydantic writes it; they become a pydantic class again, so a
request is checked here with the words that the pod itself would use. What the schema says beyond
numbers, texts, choices and booleans is left to the pod, which checks again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, create_model

from polypod.model import Case, Input, Licence, Model, Needs, Params, Stage

_TYPES: dict[str, Any] = {"integer": int, "number": float, "boolean": bool, "string": str}
_LIMITS = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "minLength": "min_length",
    "maxLength": "max_length",
}


@dataclass(frozen=True)
class CardModel(Model):
    """A `Model` whose card came from an endpoint."""

    given: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @cached_property
    def card(self) -> dict[str, Any]:
        return dict(self.given)


def model_of(card: Mapping[str, Any]) -> CardModel:
    """The model that a card describes.

    Raises:
        KeyError, TypeError, ValueError: it is not a card that this version can read.
    """
    if card["schema_version"] != 1:
        raise ValueError(f"a card of schema version {card['schema_version']}; this reads 1")
    return CardModel(
        name=card["name"],
        title=card["title"],
        summary=card["summary"],
        folder=Path(),
        params=_params(card["name"], card["parameters"]),
        stages=tuple(_stage(stage) for stage in card["stages"]),
        formats=tuple(card["outputs"]),
        licence=Licence(**card["licence"]),
        needs=_needs(card["needs"]),
        presets=card["presets"],
        default_preset=card["default_preset"],
        inputs={name: Input(**value) for name, value in card["inputs"].items()},
        version=card["version"],
        upstream=card["upstream"],
        given=card,
    )


def _needs(card: Mapping[str, Any]) -> Needs:
    cases = tuple(Case(**case) for case in card.get("cases", ()))
    figures: dict[str, Any] = {**card, "cases": cases}
    return Needs(**figures)


def _stage(card: Mapping[str, Any]) -> Stage:
    return Stage(
        card["name"],
        inputs=(),
        outputs=(),
        assets=tuple(card["assets"]),
        slot=card["slot"],
        worker=card.get("worker", ""),
        share=card["share"],
    )


def _params(name: str, schema: Mapping[str, Any]) -> type[Params]:
    fields: dict[str, Any] = {
        # which formats and presets there are is checked by `Model.resolve`
        key: (str if key == "output_format" else _type(value), _field(value))
        for key, value in schema["properties"].items()
        if key != "preset"
    }
    return create_model(f"{name}_params", __base__=Params, **fields)


def _type(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    if "const" in schema:
        return Literal[schema["const"]]
    if "anyOf" in schema:
        options = [_type(option) for option in schema["anyOf"] if option.get("type") != "null"]
        optional = any(option.get("type") == "null" for option in schema["anyOf"])
        chosen = options[0] if len(options) == 1 else Any
        return chosen | None if optional and chosen is not Any else chosen
    return _TYPES.get(schema.get("type", ""), Any)


def _field(schema: Mapping[str, Any]) -> Any:
    limits = {_LIMITS[k]: v for part in _parts(schema) for k, v in part.items() if k in _LIMITS}
    default = schema.get("default", ...)
    return Field(default, description=schema.get("description"), **limits)


def _parts(schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [schema, *schema.get("anyOf", ())]
