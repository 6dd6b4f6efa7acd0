from __future__ import annotations

import base64
import io
import json
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.api.serving import Server, make_picture

PNG = make_picture()


def submit(server: Server, **body: Any) -> Any:
    return server.client.post("/generate", json=body)


def refusal(answer: Any) -> tuple[int, str]:
    document = answer.json()
    assert answer.headers["content-type"] == "application/problem+json"
    assert document["status"] == answer.status_code
    assert document["error"] == document["detail"]
    return answer.status_code, f"{document['detail']} {document['hint']}"


def uploaded(server: Server, job_id: str, name: str = "image") -> bytes:
    return server.client.get(f"/job/{job_id}/result/{name}").content


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    "text",
    [
        b64(PNG),
        "data:image/png;base64," + b64(PNG),
        base64.encodebytes(PNG).decode(),
        b64(PNG).replace("A", " A"),
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
    ],
)
def test_base64_in_all_its_forms(server: Server, text: str) -> None:
    answer = submit(server, image=text)
    assert answer.status_code == 202, answer.text
    assert uploaded(server, answer.json()["job_id"]) == PNG


def test_raw_line_breaks_inside_the_json_string(server: Server) -> None:
    body = b'{"image": "' + base64.encodebytes(PNG) + b'"}'
    answer = server.client.post("/generate", content=body)
    assert answer.status_code == 202, answer.text
    assert uploaded(server, answer.json()["job_id"]) == PNG


def test_a_large_picture_as_json_and_as_a_form(server: Server) -> None:
    out = io.BytesIO()
    Image.effect_noise((1500, 1500), 100).convert("RGB").save(out, "PNG", compress_level=0)
    large = out.getvalue()
    assert len(large) > 6_000_000
    by_json = submit(server, image=b64(large))
    by_form = server.client.post("/generate", files={"image": large})
    for answer in (by_json, by_form):
        assert answer.status_code == 202, answer.text
        assert uploaded(server, answer.json()["job_id"]) == large


@pytest.mark.parametrize("part", ["image", "file"])
def test_a_form_brings_the_picture_as_image_or_file(server: Server, part: str) -> None:
    answer = server.client.post("/generate", files={part: ("../a\n.png", PNG)}, data={"seed": "3"})
    assert answer.status_code == 202, answer.text
    assert uploaded(server, answer.json()["job_id"]) == PNG
    assert server.job(answer.json()["job_id"])["seed"] == 3


def test_base64_as_the_text_of_a_form_field(server: Server) -> None:
    answer = server.client.post(
        "/generate", files={"image": (None, b64(PNG)), "mask": ("", b"")}, data={"mask_url": ""}
    )
    assert answer.status_code == 202, answer.text


def test_what_is_turned_is_kept_both_ways(server: Server) -> None:
    out = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.new("RGB", (60, 40)).save(out, "JPEG", exif=exif)
    answer = submit(server, image=b64(out.getvalue()))
    job = server.job(answer.json()["job_id"])
    assert uploaded(server, job["job_id"]) == out.getvalue()
    manifest = server.ended(job["job_id"]) and server.client.get(
        f"/job/{job['job_id']}/result/manifest.json"
    )
    seen = manifest.json()["inputs"]["image"]["sha256"]
    upload = next(a for a in job["assets"] if a["name"] == "image")
    assert seen != upload["sha256"]
    assert upload["media_type"] == "image/jpeg"  # by its content: it came without a name


def bomb() -> bytes:
    """A PNG of 30 000 x 30 000 pixels in a few hundred bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def animation() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("L", (40, 40), n) for n in (0, 255)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "statuses"),
    [
        (b"just text", {415, 422}),
        (PNG[: len(PNG) // 2], {422}),
        (b"", {400, 422}),
        (b"%PDF-1.7 and more", {415, 422}),
        (animation(), {413, 422}),
        (bomb(), {413}),
        (make_picture((1, 1)), {422}),
    ],
    ids=["text", "truncated", "empty", "pdf", "animated", "bomb", "tiny"],
)
def test_bad_pictures_are_refused_with_words(
    server: Server, data: bytes, statuses: set[int]
) -> None:
    before = server.history()
    for answer in (
        submit(server, image=b64(data)),
        server.client.post("/generate", files={"image": ("a.png", data)}),
    ):
        status, words = refusal(answer)
        assert status in statuses, words
        assert len(words) > 20
    assert server.history() == before


@pytest.mark.parametrize("mode", ["CMYK", "L", "P", "RGBA"])
def test_unusual_modes_are_accepted(server: Server, mode: str) -> None:
    kind = "JPEG" if mode == "CMYK" else "PNG"
    out = io.BytesIO()
    Image.new(mode, (40, 40)).save(out, kind)
    assert submit(server, image=b64(out.getvalue())).status_code == 202


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 422, "no `image`"),
        ({"image": None}, 422, "no `image`"),
        ({"image": "", "seed": 1}, 400, "image"),
        ({"image": b64(PNG), "image_url": "http://example.org/a.png"}, 400, "more than once"),
        ({"image": b64(PNG), "image_id": "abc"}, 400, "more than once"),
        ({"image": "not*base64"}, 400, "not base64"),
        ({"image": 5}, 400, "`image` is not text"),
        ({"image": ["x"]}, 400, "`image` is not text"),
        ({"image_url": 5}, 400, "`image_url` is not text"),
        ({"image_url": "ftp://example.org/a"}, 422, "http"),
        ({"image_url": "data:image/png;base64," + "A" * 40_000}, 400, "data URLs as `image`"),
        ({"image_id": "no-such"}, 400, "`image_id`"),
        ({"image_id": "ab12"}, 404, "POST /images"),
        ({"image": b64(PNG), "maks": "x"}, 422, "Did you mean 'mask'"),
        ({"image": b64(PNG), "motion": "{]"}, 422, "not JSON"),
        ({"image": b64(PNG), "motion": b64(b"{]")}, 422, "not JSON"),
    ],
)
def test_what_cannot_be_is_named(
    server: Server, body: dict[str, Any], status: int, words: str
) -> None:
    found, said = refusal(submit(server, **body))
    assert (found, words in said) == (status, True), (found, said)


def test_both_image_and_file_or_a_part_twice(server: Server) -> None:
    two = server.client.post("/generate", files={"image": PNG, "file": PNG})
    twice = server.client.post("/generate", files=[("image", PNG), ("image", PNG)])
    other = server.client.post("/generate", files={"image": PNG, "musk": PNG})
    assert refusal(two)[0] == refusal(twice)[0] == 400
    assert "Did you mean 'mask'" in refusal(other)[1]


def test_named_inputs_beside_the_picture(server: Server) -> None:
    mask, motion = make_picture((20, 20)), {"frames": [1, 2, {"x": "y" * 50_000}]}
    by_json = submit(server, image=b64(PNG), mask=b64(mask), motion=motion)
    parts = {"image": PNG, "mask": mask, "motion": json.dumps(motion).encode()}
    by_form = server.client.post("/generate", files=parts)
    as_text = server.client.post(
        "/generate", files={"image": PNG, "motion": (None, json.dumps(motion))}
    )
    for answer in (by_json, by_form, as_text):
        assert answer.status_code == 202, answer.text
        assert json.loads(uploaded(server, answer.json()["job_id"], "motion")) == motion
    assert uploaded(server, by_form.json()["job_id"], "mask") == mask


def test_too_large_a_file_is_413(serve: Any, tmp_path: Path) -> None:
    out = io.BytesIO()
    Image.effect_noise((500, 500), 100).save(out, "PNG")
    with serve(tmp_path, max_upload_bytes=100_000) as server:
        for answer in (
            submit(server, image=b64(out.getvalue())),
            server.client.post("/generate", files={"image": out.getvalue()}),
            server.client.post(
                "/images", content=out.getvalue(), headers={"content-type": "image/png"}
            ),
        ):
            assert refusal(answer)[0] == 413


class _Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/to-self":
            self.send_response(302)
            self.send_header("Location", "/a.png")
            self.end_headers()
            return
        self.send_response(200 if self.path == "/a.png" else 404)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        self.wfile.write(PNG if self.path == "/a.png" else b"")

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    http = HTTPServer(("127.0.0.1", 0), _Site)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield http.server_address[1]
    http.shutdown()
    http.server_close()
    thread.join()


def test_image_url_is_fetched_before_the_answer(serve: Any, tmp_path: Path, site: int) -> None:
    with serve(tmp_path, allow_private_urls=True) as server:
        for path in ("a.png", "to-self"):
            answer = submit(server, image_url=f"http://127.0.0.1:{site}/{path}", seed=None)
            assert answer.status_code == 202, answer.text
            assert uploaded(server, answer.json()["job_id"]) == PNG
        assert refusal(submit(server, image_url=f"http://127.0.0.1:{site}/none"))[0] == 422


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "169.254.169.254", "10.0.0.1"]
)
def test_addresses_of_this_network_are_refused(server: Server, site: int, host: str) -> None:
    status, words = refusal(submit(server, image_url=f"http://{host}:{site}/a.png"))
    assert status in (400, 422), words
    form = server.client.post(
        "/generate", files={"mask": PNG}, data={"image_url": f"http://{host}"}
    )
    assert form.status_code in (400, 422)


def test_a_big_picture_is_checked_apart_and_kept_like_any_other(server: Server) -> None:
    big = make_picture((2000, 2000), kind="BMP")
    stored = server.client.post("/images", files={"image": ("a.bmp", big)}).json()
    assert (stored["width"], stored["media_type"]) == (2000, "image/png")
    job = server.done(big)
    assert server.done(make_picture(), seed=1)["job_id"] != job["job_id"]
    refused = server.client.post("/generate", files={"image": ("a.bmp", big[:-9])})
    assert refused.status_code == 422
    assert "cut off" in refused.json()["error"]
