"""polypod: research image-to-3D models as dependable GPU endpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polypod.client import AsyncClient as AsyncClient
    from polypod.client import Client as Client

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The clients are imported when they are used: the serving side has no need of httpx."""
    if name in ("Client", "AsyncClient"):
        import polypod.client

        return getattr(polypod.client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
