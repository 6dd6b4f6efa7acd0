from __future__ import annotations

from polypod.api.schemas import request_schemas
from tests.models.stub.model import MODEL


def test_each_model_brings_its_own_parameters() -> None:
    schemas = request_schemas(MODEL)
    json_body = schemas["StubJson"]["properties"]
    assert json_body["steps"]["maximum"] == 1000
    assert {"image", "image_url", "image_id", "mask", "motion", "motion_url"} <= set(json_body)
    assert "motion_id" not in json_body
    assert json_body["until"]["enum"] == ["prepare", "work"]
    assert schemas["StubForm"]["properties"]["image"]["format"] == "binary"
