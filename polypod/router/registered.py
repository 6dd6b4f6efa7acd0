"""Endpoints that were registered while the router ran: kept, since jobs may be there.

They are in a file of the data folder that only its owner can read: it holds their keys.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from polypod.router.endpoint import Known

log = logging.getLogger("polypod.router")


def registered(data: Path) -> Iterator[Known]:
    """Read when the first is asked for."""
    try:
        kept = json.loads(_path(data).read_text())
        for known in [_known(each) for each in kept]:
            if not known.fault:
                yield known
            else:
                log.warning("endpoint %s is left out: %s", known.id, known.fault)
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("%s cannot be read: %s", _path(data), error)


def keep(data: Path, known: Known) -> None:
    _write(data, [*(k for k in registered(data) if k.id != known.id), known])


def mark_draining(data: Path, endpoint: str) -> None:
    """It is known until it is forgotten, but gets no jobs any more."""
    kept = list(registered(data))
    if any(known.id == endpoint for known in kept):
        _write(data, [replace(k, draining=True) if k.id == endpoint else k for k in kept])


def forget(data: Path, endpoint: str) -> None:
    kept = list(registered(data))
    if any(known.id == endpoint for known in kept):
        _write(data, [known for known in kept if known.id != endpoint])


def _known(kept: Mapping[str, Any]) -> Known:
    draining = bool(kept.get("draining"))
    return Known(kept["id"], kept["url"], kept["provider"], kept["api_key"], draining=draining)


def _write(data: Path, kept: list[Known]) -> None:
    new = _path(data).with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump([asdict(known) for known in kept], file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(_path(data))


def _path(data: Path) -> Path:
    return data / "endpoints.json"
