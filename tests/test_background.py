from __future__ import annotations

import asyncio
import contextlib

import pytest

from polypod import background
from polypod.background import Background

pytestmark = pytest.mark.anyio


async def test_what_swallows_its_cancellation_once_is_ended_all_the_same(monkeypatch):
    monkeypatch.setattr(background, "AGAIN_S", 0.05)
    begun, ended = asyncio.Event(), asyncio.Event()

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            begun.set()
            await asyncio.Event().wait()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    work = Background()
    work.run(stubborn())
    await begun.wait()
    await work.stop()
    assert ended.is_set()
