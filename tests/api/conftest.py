"""Servers for the tests of the API."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polypod.model import Model
from polypod.settings import Settings
from tests.api.serving import Server, make_picture
from tests.models.stub.model import MODEL


@pytest.fixture(scope="session")
def stub() -> Model:
    return MODEL


@pytest.fixture(scope="session")
def serve(stub: Model) -> Iterator[Callable[..., contextlib.AbstractContextManager[Server]]]:
    """Makes servers: `with serve(tmp_path, max_queue_size=1) as server`."""

    @contextlib.contextmanager
    def make(data: Path, **changes: Any) -> Iterator[Server]:
        settings = Settings(data=data, **changes)
        server = Server(settings, stub)
        try:
            yield server
        finally:
            server.stop()

    yield make


@pytest.fixture(scope="module")
def server(
    serve: Callable[..., contextlib.AbstractContextManager[Server]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """One server for all tests that need nothing special of it."""
    with serve(tmp_path_factory.mktemp("data"), max_queue_size=100) as one:
        yield one


@pytest.fixture(scope="session")
def picture() -> bytes:
    return make_picture()
