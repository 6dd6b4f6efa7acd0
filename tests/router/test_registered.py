"""Registered endpoints outlive the router, and their keys are for its owner's eyes only."""

from __future__ import annotations

import stat

import pytest

from polypod.router.app import create_router, make_engine
from polypod.router.endpoint import Endpoint, Known
from polypod.router.registered import forget, keep, registered
from polypod.settings import Settings

ONE = Known("one", "http://127.0.0.1:1", "fixed", "its-key")
TWO = Known("two", "http://127.0.0.1:2")


def test_they_are_kept_and_forgotten(tmp_path):
    assert list(registered(tmp_path)) == []
    keep(tmp_path, ONE)
    keep(tmp_path, TWO)
    moved = Known("one", "http://127.0.0.1:3", "fixed", "its-key")
    keep(tmp_path, moved)
    assert list(registered(tmp_path)) == [TWO, moved]
    assert stat.S_IMODE((tmp_path / "endpoints.json").stat().st_mode) == 0o600
    assert "its-key" not in repr(moved)
    forget(tmp_path, "two")
    forget(tmp_path, "nobody")
    assert list(registered(tmp_path)) == [moved]


def test_a_file_that_cannot_be_read_stops_nothing(tmp_path):
    (tmp_path / "endpoints.json").write_text('[{"id": 1}]')
    assert list(registered(tmp_path)) == []


@pytest.mark.parametrize("url", ["http://[", "http:", "http:///x", "http://:80", "http://a:x"])
def test_what_can_be_no_endpoint_does_not_keep_a_router_from_starting(tmp_path, url):
    keep(tmp_path, Known("wrong", url))
    keep(tmp_path, Known("key", "http://127.0.0.1:1", "fixed", "\u00e9"))
    keep(tmp_path, ONE)
    assert list(registered(tmp_path)) == [ONE]
    for known in registered(tmp_path):
        Endpoint(known)


@pytest.mark.anyio
async def test_a_router_knows_those_of_the_last(tmp_path):
    keep(tmp_path, ONE)
    settings = Settings(data=tmp_path)
    engine = make_engine([TWO], settings)
    create_router(engine, settings)
    await engine.start()
    try:
        assert set(engine.runner.endpoints) == {"one", "two"}
    finally:
        await engine.stop()
