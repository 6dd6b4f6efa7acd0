from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from polypod.access.keyring import Keyring
from polypod.api.auth import Auth
from polypod.api.endpoint import KEY


def call(auth: Auth, path: str = "/jobs", client: str = "127.0.0.1", **headers: str) -> Any:
    """Status of the answer, or the scope as the app behind saw it."""
    sent: list[dict[str, Any]] = []
    names = {k.replace("_", "-").encode(): v.encode("latin-1") for k, v in headers.items()}
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "client": (client, 1234),
        "headers": list({b"host": b"localhost:8000", **names}.items()),
    }

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(auth(scope, None, send))  # type: ignore[arg-type]
    return sent[0]["status"] if sent else scope


async def app(scope: Any, receive: Any, send: Any) -> None:
    return


KEYED = Auth(app, Keyring(("alpha", "sha256:" + hashlib.sha256(b"beta").hexdigest())))
LOCAL = Auth(app, Keyring())


def test_keys_in_either_header_and_either_form_are_accepted() -> None:
    by_bearer = call(KEYED, authorization="Bearer alpha")
    by_bare_key = call(KEYED, authorization="alpha")
    by_header = call(KEYED, x_api_key="alpha")
    hashed = call(KEYED, x_api_key="beta")
    alpha = hashlib.sha256(b"alpha").hexdigest()[:16]
    assert by_bearer[KEY].id == by_bare_key[KEY].id == by_header[KEY].id == alpha
    assert hashed[KEY].id == hashlib.sha256(b"beta").hexdigest()[:16]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic alpha"},
        {"x_api_key": ""},
        {"x_api_key": "alphaé"},
        {"x_api_key": "sha256:" + hashlib.sha256(b"beta").hexdigest()},
    ],
)
def test_no_key_or_a_wrong_one_is_401(headers: dict[str, str]) -> None:
    assert call(KEYED, **headers) == 401
    assert call(KEYED, "/docs", **headers) == 401


@pytest.mark.parametrize("path", ["/health", "/livez", "/readyz"])
def test_open_paths_need_no_key_and_know_no_owner(path: str) -> None:
    assert call(KEYED, path)[KEY] is None
    assert call(KEYED, path, x_api_key="alpha")[KEY]


def test_with_keys_any_host_may_call() -> None:
    assert call(KEYED, client="203.0.113.9", host="example.org", x_api_key="alpha")[KEY]


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("127.0.0.1", {"host": "127.0.0.1:8000"}),
        ("127.0.0.2", {"host": "LOCALHOST"}),
        ("::1", {"host": "[::1]:8000"}),
        ("::ffff:127.0.0.1", {"host": "app.localhost:3"}),
        ("127.0.0.1", {"host": "localhost", "origin": "http://localhost:5173"}),
    ],
)
def test_without_keys_this_machine_is_served(client: str, headers: dict[str, str]) -> None:
    assert KEY not in call(LOCAL, client=client, **headers)


@pytest.mark.parametrize(
    ("client", "headers"),
    [
        ("192.168.1.5", {}),
        ("127.0.0.1", {"host": "evil.example"}),
        ("127.0.0.1", {"host": "127.0.0.1.evil.example:8000"}),
        ("127.0.0.1", {"host": "localhost@evil.example"}),
        ("127.0.0.1", {"host": "[::1"}),
        ("127.0.0.1", {"host": ""}),
        ("127.0.0.1", {"origin": "https://evil.example"}),
        ("127.0.0.1", {"origin": "null"}),
        ("127.0.0.1", {"origin": "http://localhost.evil.example"}),
    ],
)
def test_without_keys_others_get_403(client: str, headers: dict[str, str]) -> None:
    assert call(LOCAL, client=client, **headers) == 403
    assert call(LOCAL, "/health", client=client, **headers) == 403


def test_admitted_origins_may_be_host_and_origin() -> None:
    auth = Auth(app, Keyring(), origins=("https://app.example:8443",))
    assert call(auth, origin="https://app.example:8443", host="app.example:8443") != 403
    assert call(auth, origin="https://app.example") == 403
    assert call(auth, host="other.example") == 403
    assert call(Auth(app, Keyring(), origins=("*",)), origin="https://any.example") != 403


def test_a_websocket_is_closed_unless_it_may() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/x", "client": ("127.0.0.1", 1), "headers": []}
    asyncio.run(KEYED(scope, None, send))  # type: ignore[arg-type]
    assert sent[0]["type"] == "websocket.close"
