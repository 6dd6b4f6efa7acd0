"""What the user gave on the command line, read; what is wrong with it is told as usage."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer


def parameters(pairs: Sequence[str], preset: str) -> dict[str, Any]:
    """`key=value`, the value as JSON where it is JSON (`0.5`, `true`, `null`), else as text."""
    values: dict[str, Any] = {"preset": preset} if preset else {}
    for pair in pairs:
        name, text = _split(pair, "--param", "resolution=256")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def inputs(pairs: Sequence[str]) -> dict[str, str]:
    """`name=file`, each file there."""
    found = {name: text for name, text in (_split(p, "--input", "mask=mask.png") for p in pairs)}
    for path in found.values():
        check_source(path)
    return found


def check_source(source: str) -> None:
    """A URL, or a file that is there."""
    if is_url(source):
        return
    if Path(source).is_dir():
        raise typer.BadParameter(f"{source} is a folder; name the pictures in it.")
    if not Path(source).exists():
        raise typer.BadParameter(f"There is no file {source}.")


def is_url(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _split(pair: str, option: str, example: str) -> tuple[str, str]:
    name, equals, text = pair.partition("=")
    if not equals or not name:
        raise typer.BadParameter(f"{option} {pair!r} has no value; write it like {example}.")
    return name, text
