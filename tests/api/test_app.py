from __future__ import annotations

import pytest

from polypod.api.app import ROUTES
from polypod.api.openapi import OPERATIONS
from tests.api.serving import Server


def test_every_route_is_described_and_no_other() -> None:
    described = {(o.method, o.path) for o in OPERATIONS}
    assert described == {(method, path) for method, path, _ in ROUTES}
    assert len(OPERATIONS) == len(ROUTES)


@pytest.mark.parametrize("path", ["/nothing", "/job", "/job/a/b", "/generate/sync/x", "/health/"])
def test_what_is_not_there_is_a_problem_document(server: Server, path: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert path in answer.json()["error"]


def test_a_wrong_method_names_the_right_ones(server: Server) -> None:
    answer = server.client.post("/job/abc")
    assert answer.status_code == 405
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "PUT", "DELETE"}
    assert answer.headers["content-type"] == "application/problem+json"
    assert server.client.get("/generate").headers["allow"] == "POST"
