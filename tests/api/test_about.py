from __future__ import annotations

from pathlib import Path
from typing import Any

from polypod import __version__
from polypod.model import Model
from tests.api.serving import Server, make_picture, until


def test_health_says_what_clients_look_for(server: Server) -> None:
    health = server.client.get("/health").json()
    assert health["status"] in ("healthy", "starting")
    assert (health["api"], health["version"]) == (1, __version__)
    assert set(health["queue"]) == {"queued", "processing", "max_queue_size", "max_concurrent"}
    assert health["store_id"]


def test_health_without_a_key_tells_nothing_of_jobs(serve: Any, tmp_path: Path) -> None:
    with serve(tmp_path, api_keys=("secret",)) as server:
        anonymous = server.client.get("/health").json()
        server.client.headers["X-API-Key"] = "secret"
        job_id = server.submit(make_picture(), seconds=60)["job_id"]
        until(lambda: job_id in server.client.get("/health").text)
        del server.client.headers["X-API-Key"]
        assert job_id not in server.client.get("/health").text
        assert (
            server.client.get("/health").json()["slots"][0].keys() == anonymous["slots"][0].keys()
        )
        assert anonymous["slots"][0]["device"]


def test_cards_of_the_models(server: Server, stub: Model) -> None:
    assert server.client.get("/models").json()["models"][0]["name"] == "stub"
    card = server.client.get("/models/stub").json()
    assert card["digest"] == stub.card["digest"]
    assert card["parameters"]["properties"]["steps"]["default"] == 5
    missing = server.client.get("/models/stab")
    assert (missing.status_code, "Did you mean 'stub'?" in missing.text) == (404, True)


def test_the_first_page_for_people_and_for_programs(server: Server) -> None:
    page = server.client.get("/", headers={"Accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert f"curl -F image=@photo.jpg {server.url}/generate" in page.text
    body = server.client.get("/").json()
    assert body["models"] == {"stub": "/models/stub"}
    assert body["version"] == __version__
