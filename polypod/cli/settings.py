"""`polypod settings`: what can be set, read from `Settings` itself."""

from __future__ import annotations

import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import typer
from pydantic import AliasChoices, ValidationError
from pydantic.fields import FieldInfo
from rich.markup import escape

from polypod.cli.output import FAILED, complain, print_json, result_console
from polypod.image import Home
from polypod.settings import Settings

SECRET = re.compile(r"key|token|secret|password", re.IGNORECASE)
HIDDEN = "(hidden)"


@dataclass(frozen=True)
class Setting:
    name: str
    """The environment variable."""
    value: str
    default: str
    description: str


def show_settings(model: str, as_json: bool) -> int:
    """Exit status of `polypod settings`."""
    found = [*settings_here(), *(settings_of(model) if model else ())]
    if as_json:
        print_json([asdict(setting) for setting in found])
        return 0
    out = result_console()
    for setting in found:
        changed = setting.value != setting.default
        style = "bold green" if changed else "bold"
        was = f"  [dim](default {escape(setting.default)})[/dim]" if changed else ""
        out.print(f"[{style}]{setting.name}[/{style}] = {escape(setting.value)}{was}".rstrip())
        if setting.description:
            out.print(f"    {escape(setting.description)}")
    return 0


def read_settings() -> Settings:
    """Those of this environment; one that is not valid is told, and ends the command."""
    try:
        return Settings()  # pyright: ignore[reportCallIssue]
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            name = env_name(str(problem["loc"][0]))
            what = problem["msg"].removeprefix("Value error, ")
            complain(f"{name} is not valid: {what}.", "Change it in the environment.")
        raise typer.Exit(FAILED) from None


def settings_here() -> list[Setting]:
    """Every setting with its value in this environment; secrets are hidden."""
    current = read_settings()
    return [
        Setting(
            name=env_name(name),
            value=_shown(name, getattr(current, name)),
            default=_shown(name, _default(name, field)),
            description=field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def settings_of(name: str) -> list[Setting]:
    """The model's own, in this environment."""
    from polypod.build.declared import declaration

    try:
        model = declaration(name)
    except ValueError as error:
        complain(str(error))
        raise typer.Exit(FAILED) from None
    here, home = model.configured(os.environ), Home(read_settings().home / name)
    own = [
        Setting(
            " or ".join(s.env), home.fill(here.setting(s.name)), home.fill(s.default), s.description
        )
        for s in model.settings
    ]
    named = model.slot_devices(os.environ)
    devices = [
        Setting(" or ".join(names), named.get(slot, ""), "", f"The device of slot {slot}.")
        for slot, names in model.devices.items()
    ]
    return own + devices


def env_name(name: str) -> str:
    """The environment variable of a setting; each slot has one of its own."""
    field = Settings.model_fields.get(name)
    if field is None:
        return name
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        return next(str(choice) for choice in alias.choices if str(choice).isupper())
    if name == "slots":
        return "POLYPOD_SLOT_<NAME>"
    return f"POLYPOD_{name.upper()}"


def _default(name: str, field: FieldInfo) -> Any:
    """As a service without any of these variables would have it."""
    if field.default_factory is not None:
        return {}
    value = field.get_default()
    return value.expanduser().absolute() if isinstance(value, Path) else value


def _shown(name: str, value: Any) -> str:
    if value in ("", None, (), {}):
        return "(none)"
    if SECRET.search(name):
        return HIDDEN
    if isinstance(value, tuple):
        return ",".join(cast(tuple[str, ...], value))
    if isinstance(value, dict):
        return ", ".join(f"{k}={v}" for k, v in cast(dict[str, str], value).items())
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _without_password(str(value))


def _without_password(text: str) -> str:
    password = urlsplit(text).password if "://" in text else None
    return text.replace(f":{password}@", f":{HIDDEN}@") if password else text
