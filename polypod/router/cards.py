"""Models that are known by their card alone: the router has no model's code.

A card's parameters are JSON Schema as pydantic writes it; they become a pydantic class again, so a
request is checked here with the words that the pod itself would use. What the schema says beyond
numbers, texts, choices and booleans is left to the pod, which checks again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, FiniteFloat, ValidationError, create_model

from polypod.model import Input, Licence, Model, Needs, Params, Stage
from polypod.when import When

log = logging.getLogger("polypod.router")

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

    @property
    def age(self) -> tuple[int, ...]:
        """Newer versions are larger: 1.10 than 1.9."""
        return tuple(int(number) for number in re.findall(r"\d+", self.version))


def models_of(cards: Iterable[Mapping[str, Any]]) -> list[CardModel]:
    """The models of kept cards; those that this version cannot read are left out."""
    models: list[CardModel] = []
    for card in cards:
        try:
            models.append(model_of(card))
        except (KeyError, TypeError, ValueError) as error:
            log.warning("a kept card cannot be read: %s", error)
    return models


def model_of(card: Mapping[str, Any]) -> CardModel:
    """The model that a card describes.

    Raises:
        KeyError, TypeError, ValueError: it is not a card that this version can read.
    """
    if card["schema_version"] != 1:
        raise ValueError(f"a card of schema version {card['schema_version']}; this reads 1")
    try:
        read = _Card.model_validate(card)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    return CardModel(
        name=read.name,
        title=read.title,
        summary=read.summary,
        folder=Path(),
        params=_params(read.name, card["parameters"]),
        stages=tuple(
            Stage(
                s.name,
                inputs=(),
                outputs=(),
                assets=s.assets,
                slot=s.slot,
                worker=s.worker,
                share=s.share,
                when=s.when,
                only_with=s.only_with,
            )
            for s in read.stages
        ),
        formats=read.outputs,
        licence=read.licence,
        needs=read.needs,
        presets=read.presets,
        default_preset=read.default_preset,
        inputs=read.inputs,
        version=read.version,
        upstream=read.upstream,
        given=card,
    )


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,100}$")]


class _Stage(BaseModel):
    name: _Name
    slot: _Name
    worker: str = ""
    share: FiniteFloat = Field(ge=0)
    assets: tuple[_Name, ...]
    when: tuple[When, ...] = ()
    only_with: str = ""


class _Parameters(BaseModel):
    properties: dict[_Name, dict[str, Any]] = Field(max_length=1000)


class _Card(BaseModel):
    """What of a card the router itself works with: one that is not so would stop it."""

    name: _Name
    title: str
    summary: str
    version: str
    upstream: str
    digest: str
    parameters: _Parameters
    stages: tuple[_Stage, ...]
    outputs: tuple[_Name, ...]
    licence: Licence
    needs: Needs
    presets: dict[str, dict[str, Any]]
    default_preset: str
    inputs: dict[_Name, Input]


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
