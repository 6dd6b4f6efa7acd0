"""The OpenAPI document, and the server held against it by schemathesis."""

from __future__ import annotations

import base64
import copy
import dataclasses
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as openapi_checks

from polypod.api.openapi import openapi_document
from tests.api.serving import Server, make_picture
from tests.models.stub.model import MODEL

DOCUMENT = openapi_document([MODEL])
PNG = make_picture()


def json_bodies_only(document: dict[str, Any]) -> dict[str, Any]:
    """Schemathesis 4.32 cannot always make the binary parts of forms; test_inputs sends those."""
    document = copy.deepcopy(document)
    for path in document["paths"].values():
        for operation in path.values():
            content = operation.get("requestBody", {}).get("content", {})
            for kind in set(content) - {"application/json"}:
                del content[kind]
    return document


schema = schemathesis.openapi.from_dict(json_bodies_only(DOCUMENT))

CHECKS = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
    openapi_checks.unsupported_method,
]


@pytest.fixture(scope="module")
def job_id(server: Server) -> str:
    return server.done(PNG)["job_id"]


@schema.parametrize()
@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_the_server_keeps_to_its_document(
    case: schemathesis.Case, server: Server, job_id: str
) -> None:
    if "DELETE" not in case.operation.method.upper() and "job_id" in (case.path_parameters or {}):
        case.path_parameters["job_id"] = job_id
    _let_it_pass(case)
    response = case.call(base_url=server.url, timeout=20)
    if response.status_code in (503, 504):  # documented: full, or not there in time
        assert response.headers["content-type"] == ["application/problem+json"]
        return
    case.validate_response(response, checks=CHECKS)
    if response.status_code >= 400:
        problem = response.json()
        assert problem["error"]
        if response.headers["content-type"] == ["application/problem+json"]:
            assert problem["status"] == response.status_code
            assert problem["error"] == problem["detail"]


def _let_it_pass(case: schemathesis.Case) -> None:
    """A real picture in place of random text, and no job that takes its time."""
    body: Any = case.body
    if isinstance(body, dict) and case.path.startswith("/v2/"):
        body = body.get("input")
    if not isinstance(body, dict):
        return
    if isinstance(body.get("image"), str):
        body["image"] = base64.b64encode(PNG).decode()
    for name in ("seconds", "prepare_seconds", "size_bytes"):
        if isinstance(body.get(name), int | float):
            body[name] = min(body[name], 0)
    if body.get("fail") in MODEL.params.model_fields["fail"].annotation.__args__:
        body["fail"] = ""


def test_several_models_are_told_apart() -> None:
    other = dataclasses.replace(MODEL, name="other-one")
    document = openapi_document([MODEL, other])
    body = document["paths"]["/generate"]["post"]["requestBody"]["content"]["application/json"]
    names = [ref["$ref"].rpartition("/")[2] for ref in body["schema"]["anyOf"]]
    assert names == ["StubJson", "OtherOneJson"]
    assert set(names) <= set(document["components"]["schemas"])


def test_every_reference_leads_somewhere() -> None:
    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                yield value["$ref"]
            for inner in value.values():
                yield from walk(inner)
        elif isinstance(value, list):
            for inner in value:
                yield from walk(inner)

    for reference in walk(DOCUMENT):
        assert reference.removeprefix("#/components/schemas/") in DOCUMENT["components"]["schemas"]


def test_a_submit_that_waits_for_its_result_is_described(server: Server) -> None:
    accept = {"Accept": "model/gltf-binary"}
    for path in ("/generate", "/models/{model}/generate"):
        url = path.replace("{model}", MODEL.name)
        answer = server.client.post(url, files={"image": PNG}, headers=accept)
        assert answer.status_code == 200, answer.text
        assert {"200", "504"} <= DOCUMENT["paths"][path]["post"]["responses"].keys()


def test_the_server_shows_it(server: Server) -> None:
    assert server.client.get("/openapi.json").json() == DOCUMENT
