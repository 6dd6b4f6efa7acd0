"""The fleet: which endpoints serve which model, read from `deploy/fleet.yaml`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from polypod.errors import BadInput
from polypod.model import nearest
from polypod.router.endpoint import Known

ROOT = Path(__file__).resolve().parents[2]
FLEET = ROOT / "deploy" / "fleet.yaml"

_NAME = r"^[a-z0-9][a-z0-9_-]{0,47}$"
_VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_LOCAL = ("service", "min", "max", "idle_s", "env")
_FIXED = ("url", "key_from")


class ModelEndpoints(BaseModel):
    """How one model is served; `deploy/fleet.yaml` says what each field means."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["local", "fixed"] = "local"
    service: str = Field("", pattern=r"^([a-z0-9][a-z0-9_]{0,47})?$")
    url: tuple[str, ...] = ()
    key_from: str = ""
    min: int = Field(1, ge=0, le=64)
    max: int = Field(1, ge=0, le=64)
    idle_s: float = Field(480, ge=0, allow_inf_nan=False)
    env: dict[str, str] = Field(default_factory=dict)

    def model(self, name: str) -> str:
        """The model that is served, which the fleet calls `name`."""
        return self.service or name

    @model_validator(mode="before")
    @classmethod
    def _one_or_many(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        fields = dict(cast(dict[str, Any], given))
        if isinstance(fields.get("url"), str):
            fields["url"] = (fields["url"],)
        if "min" in fields:
            fields.setdefault("max", max(_whole(fields["min"]), 1))
        return fields

    @field_validator(*_LOCAL, *_FIXED, mode="before")
    @classmethod
    def _says_something(cls, value: Any, about: ValidationInfo) -> Any:
        """`about.data` has the provider, unless that is at fault itself."""
        provider = about.data.get("provider")
        if provider == "fixed" and about.field_name in _LOCAL:
            raise ValueError(
                "this is for endpoints that the router starts itself; a fixed one runs elsewhere, "
                "as it was started there: remove it, or write provider: local"
            )
        if provider == "local" and about.field_name in _FIXED:
            raise ValueError("this is for endpoints that run elsewhere: write provider: fixed")
        return value

    @model_validator(mode="after")
    def _fits(self) -> ModelEndpoints:
        if self.provider == "fixed" and not self.url:
            raise ValueError("a fixed endpoint needs a url")
        if any(not url.startswith(("http://", "https://")) for url in self.url):
            raise ValueError("a url begins with http:// or https://")
        if fault := next((f for url in self.url if (f := Known("", url).fault)), ""):
            raise ValueError(fault)
        for name, value in self.env.items():
            if not re.fullmatch(_VARIABLE, name) or "\0" in value:
                raise ValueError(f"{name!r} is no environment variable, or its value is none")
        if self.max < self.min:
            raise ValueError(f"max ({self.max}) is less than min ({self.min})")
        return self


class Fleet(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    models: dict[str, ModelEndpoints] = Field(default_factory=dict)

    def local(self) -> list[tuple[str, ModelEndpoints]]:
        """What runs on this computer, by name."""
        return [(name, of) for name, of in self.models.items() if of.provider == "local"]

    def fixed(self) -> list[Known]:
        """The endpoints that run elsewhere.

        Raises:
            BadInput: the environment variable with their key is not set.
        """
        return [
            Known(name if len(of.url) == 1 else f"{name}-{number}", url, "fixed", _key(name, of))
            for name, of in self.models.items()
            for number, url in enumerate(of.url, 1)
        ]


def read_fleet(path: Path) -> Fleet:
    """The fleet that the file describes.

    Raises:
        BadInput: it cannot be read; names the line and the field, and says what to do.
    """
    import yaml

    try:
        text = path.read_text()
        node = cast(Any, yaml).compose(text, yaml.SafeLoader)
        given = yaml.safe_load(text)
    except OSError as error:
        raise BadInput(
            f"The fleet file {path} cannot be read: {error.strerror}.",
            "Name another one with --fleet.",
        ) from None
    except UnicodeDecodeError:
        raise BadInput(f"The fleet file {path} is not UTF-8 text.") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none
        raise BadInput(*_not_yaml(path, error)) from None
    if twice := _twice(node):
        raise BadInput(f"{path}, line {twice[1]}: `{twice[0]}` is there already.", "Remove one.")
    try:
        return _checked(Fleet.model_validate(given or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = [str(part) for part in first["loc"]]
        line = _line(node, where)
        raise BadInput(
            f"{path}, line {line}: {_field(where)}{_why(cast(Mapping[str, Any], first), where)}.",
            "The comments in deploy/fleet.yaml tell what can be said.",
        ) from None


def _checked(fleet: Fleet) -> Fleet:
    for name in fleet.models:
        if not re.match(_NAME, name):
            raise BadInput(
                f"{name!r} in the fleet is not a model's name.",
                "Use small letters, digits and dashes; at most 48.",
            )
    endpoints = Counter(
        endpoint for name, of in fleet.models.items() for endpoint in _endpoints(name, of)
    )
    if twice := [endpoint for endpoint, count in endpoints.items() if count > 1]:
        raise BadInput(
            f"Two endpoints of the fleet would be called {twice[0]}.",
            "Those of a model NAME are NAME-1, NAME-2 and so on: give one model another name.",
        )
    return fleet


def _endpoints(name: str, of: ModelEndpoints) -> list[str]:
    count = of.max if of.provider == "local" else len(of.url)
    alone = of.provider == "fixed" and count == 1
    return [name] if alone else [f"{name}-{number}" for number in range(1, count + 1)]


def _key(name: str, of: ModelEndpoints) -> str:
    if not of.key_from:
        return ""
    key = os.environ.get(of.key_from, "")
    if not key:
        raise BadInput(
            f"The key of model {name} is to come from ${of.key_from}, which is not set.",
            f"export {of.key_from}=...",
        )
    if Known("", "", api_key=key).fault:
        raise BadInput(
            f"The key of model {name}, in ${of.key_from}, holds characters that no key has.",
            "Is there a line break in it, or a letter that is not ASCII?",
        )
    return key


def _whole(given: Any) -> int:
    return given if isinstance(given, int) else 1


def _not_yaml(path: Path, error: Exception) -> tuple[str, str]:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}" if mark else ""
    what = getattr(error, "problem", None) or str(error)
    return (
        f"{path}{where}: this is not YAML: {what}.",
        "Indent with spaces, and put `: ` after names.",
    )


def _field(where: Sequence[str]) -> str:
    return f"`{'.'.join(where)}`: " if where else ""


def _why(error: Mapping[str, Any], where: Sequence[str]) -> str:
    if error["type"] == "extra_forbidden":
        known = (ModelEndpoints if len(where) > 1 else Fleet).model_fields
        return f"there is no such field.{nearest(where[-1], known)} There are: {', '.join(known)}"
    told = str(error["msg"]).removeprefix("Value error, ")
    return told[:1].lower() + told[1:]


def _line(node: Any, where: Sequence[str]) -> int:
    """The line of the field, or of the nearest thing around it. `node`: as YAML was parsed."""
    line = int(node.start_mark.line) if node else 0
    for part in where:
        found = [pair for pair in _pairs(node) if pair[0].value == part]
        if not found:
            break
        line, node = int(found[0][0].start_mark.line), found[0][1]
    return line + 1


def _twice(node: Any) -> tuple[str, int] | None:
    """A name that a mapping holds for the second time, and its line."""
    seen = set[str]()
    for name, value in _pairs(node):
        if name.value in seen:
            return name.value, int(name.start_mark.line) + 1
        seen.add(name.value)
        if found := _twice(value):
            return found
    return None


def _pairs(node: Any) -> list[tuple[Any, Any]]:
    """Names and values of a mapping."""
    return node.value if node and node.id == "mapping" else []
