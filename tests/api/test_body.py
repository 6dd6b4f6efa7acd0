from __future__ import annotations

import base64
import socket

import pytest

from tests.api.serving import Server, make_picture

IMAGE = base64.b64encode(make_picture()).decode()


@pytest.mark.parametrize("content_type", ["", "application/x-www-form-urlencoded"])
def test_json_whose_type_was_forgotten(server: Server, content_type: str) -> None:
    headers = {"content-type": content_type} if content_type else {}
    body = f'{{"image": "{IMAGE}"}}'.encode()
    answer = server.client.post("/generate", content=body, headers=headers)
    assert answer.status_code == 202, answer.text


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"a=b", "application/x-www-form-urlencoded", 415),
        (b"<x/>", "text/xml", 415),
        (b"[1]", "application/json", 400),
        (b"{", "application/json", 400),
        (b"", "application/json", 422),
    ],
)
def test_other_bodies_are_refused(
    server: Server, body: bytes, content_type: str, status: int
) -> None:
    headers = {"content-type": content_type}
    answer = server.client.post("/generate", content=body, headers=headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_a_form_where_only_json_is_read_is_not_told_to_send_a_form(server: Server) -> None:
    answer = server.client.post("/v2/stub/run", files={"image": make_picture()})
    assert answer.status_code == 400 and answer.json()["hint"] == "Send application/json."
    text = server.client.post("/v2/stub/run", content=b"x", headers={"content-type": "text/plain"})
    assert text.json()["hint"] == "Send application/json."


def test_a_file_sent_as_a_field_is_told_what_it_lacks(server: Server) -> None:
    field = {"image": (None, b"x" * (46 << 20), "image/png")}  # no file name
    answer = server.client.post("/generate", files=field)
    assert answer.status_code == 400 and "file name" in answer.json()["hint"]


def test_a_form_that_breaks_off(server: Server) -> None:
    broken = server.client.post(
        "/generate",
        content=b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nabc',
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    unbounded = server.client.post(
        "/generate", content=b"x", headers={"content-type": "multipart/form-data"}
    )
    assert broken.status_code in (400, 415, 422)
    assert unbounded.status_code == 400
    assert "boundary" in unbounded.json()["hint"]


def test_a_client_that_goes_away_while_it_sends(server: Server) -> None:
    before = server.history()
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(
            b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b'Content-Length: 5000\r\n\r\n{"image": "abc'
        )
    assert server.client.get("/health").status_code == 200
    assert server.history() == before
