"""Who may see and change a router's endpoints."""

from __future__ import annotations

import time

from polypod.access.keys import SCOPES, new_key
from polypod.router.app import create_router, make_engine
from polypod.settings import Settings
from tests.api.serving import Server, until


class Router(Server):
    def __init__(self, settings: Settings) -> None:
        self.engine = make_engine((), settings)
        self.app = create_router(self.engine, settings)
        self._serve()


def test_endpoints_are_for_admin_and_what_is_done_to_them_is_noted(tmp_path) -> None:
    router = Router(Settings(data=tmp_path))
    try:
        body = {"url": "http://127.0.0.1:9", "id": "far"}
        assert router.client.post("/endpoints", json=body).status_code == 201
        assert router.client.delete("/endpoints/far").status_code == 202
        headers = {}
        for scope in SCOPES:
            secret, key = new_key(scope, [scope], at=time.time())
            router.on_loop(lambda key=key: router.engine.store.access.add(key, "test"))
            until(lambda secret=secret: router.app.keyring.find(secret.encode()))
            headers[scope] = {"X-API-Key": secret}
        calls = (("GET", "/endpoints"), ("POST", "/endpoints"), ("DELETE", "/endpoints/far"))
        for method, path in calls:
            assert router.client.request(method, path, json=body).status_code == 401
            for scope in ("generate", "read", "dispatch"):
                answer = router.client.request(method, path, json=body, headers=headers[scope])
                assert answer.status_code == 403, (method, scope)
        for path, status in (("/livez", 200), ("/metrics", 401)):
            assert router.client.get(path).status_code == status
        assert router.client.get("/metrics", headers=headers["read"]).status_code == 200
        admin = headers["admin"]
        assert router.client.post("/endpoints", json=body, headers=admin).status_code == 201
        assert router.client.delete("/endpoints/far", headers=admin).status_code == 202
        acts = router.client.get("/audit", headers=admin).json()["acts"]
        found = router.app.keyring.find(admin["X-API-Key"].encode())
        assert found
        noted = [(a["who"], a["act"]) for a in acts if a["act"].startswith("endpoint")]
        assert noted == [
            (found.id, "endpoint removed"),
            (found.id, "endpoint registered"),
            ("local", "endpoint removed"),
            ("local", "endpoint registered"),
        ]
    finally:
        router.stop()
