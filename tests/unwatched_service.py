"""The stub's service under a BentoML that never looks by itself whether its process is alive."""

from circus.controller import AsyncPeriodicCallback

from tests.stub_service import Stub

AsyncPeriodicCallback.start = lambda self: None  # pyright: ignore

__all__ = ["Stub"]
