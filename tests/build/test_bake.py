"""Weights come whole or not at all: the script is run against a server that misbehaves."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from polypod.build import bake
from polypod.image import Hub, Licensed, Url

COMMIT = "2e73555018d2741ccd486e56c24fac41155a1dc6"
LARGE = bytes(range(256)) * 4000
SMALL = b"step: 25\n"
SECRET = "hf_secret"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@dataclass
class Hugging:
    """A hub with one gated repository, and a store for its large files elsewhere."""

    url: str = ""
    breaks: int = 0
    """How many answers of the store end in the middle."""
    altered: bool = False
    seen: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])
    """Path, Authorization and Range of each request."""

    def listing(self, page: str) -> list[Any]:
        git = hashlib.sha1(b"blob %d\0" % len(SMALL) + SMALL).hexdigest()
        small = {"type": "file", "path": "checkpoints/a.yaml", "size": len(SMALL), "oid": git}
        lfs = {"oid": sha256(LARGE), "size": len(LARGE)}
        large = {"type": "file", "path": "checkpoints/a.ckpt", "size": 130, "oid": "x", "lfs": lfs}
        other = {"type": "file", "path": "README.md", "size": 1, "oid": "y"}
        folder = {"type": "directory", "path": "checkpoints", "oid": "z"}
        return [large] if page else [folder, small, other]


@pytest.fixture
def hugging() -> Generator[Hugging]:
    state = Hugging()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            token = self.headers.get("Authorization", "")
            state.seen.append((self.path, token, self.headers.get("Range", "")))
            if self.path.startswith("/store/"):
                self.store()
            elif token != f"Bearer {SECRET}":
                self.answer(401, b"gated")
            elif self.path.startswith(f"/api/models/meta/sam/tree/{COMMIT}"):
                page = self.path.partition("page=")[2]
                following = "" if page else f'<{state.url}{self.path}&page=2>; rel="next"'
                self.answer(200, json.dumps(state.listing(page)).encode(), Link=following)
            elif self.path == f"/meta/sam/resolve/{COMMIT}/checkpoints/a.ckpt":
                self.answer(
                    302, b"", Location=f"{state.url.replace('127.0.0.1', 'localhost')}/store/a"
                )
            elif self.path == f"/meta/sam/resolve/{COMMIT}/checkpoints/a.yaml":
                self.answer(200, SMALL)
            else:
                self.answer(404, b"")

        def store(self) -> None:
            data = LARGE[:-1] + b"!" if state.altered else LARGE
            begin = int(self.headers.get("Range", "bytes=0-")[6:-1])
            self.send_response(206 if begin else 200)
            self.send_header("Content-Length", str(len(data) - begin))
            self.end_headers()
            if state.breaks:
                state.breaks -= 1
                self.wfile.write(data[begin : begin + 100_000])
                self.close_connection = True
            else:
                self.wfile.write(data[begin:])

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                if value:
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def run(
    kind: str, to: Path, source: object = None, *more: str, **env: str
) -> subprocess.CompletedProcess[str]:
    plan = [json.dumps(source)] if source else []
    command = [sys.executable, bake.__file__, kind, *plan, "--to", str(to), *more]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


def hub(**changes: object) -> dict[str, object]:
    source = Hub("meta/sam", COMMIT, ("checkpoints/*",), gated=True)
    return asdict(source) | {"to": source.place} | changes


def test_a_gated_repository_comes_whole_over_a_bad_line(hugging: Hugging, tmp_path: Path) -> None:
    hugging.breaks = 2
    done = run("hub", tmp_path, hub(), HF_TOKEN=SECRET, HF_ENDPOINT=hugging.url)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "sam/checkpoints/a.ckpt").read_bytes() == LARGE
    assert (tmp_path / "sam/checkpoints/a.yaml").read_bytes() == SMALL
    assert not (tmp_path / "sam/README.md").exists()
    ranges = [wanted for path, _, wanted in hugging.seen if path.startswith("/store/")]
    assert ranges == ["", "bytes=100000-", "bytes=200000-"]
    assert not any(token for path, token, _ in hugging.seen if path.startswith("/store/"))
    assert SECRET not in done.stdout + done.stderr


def test_what_is_there_is_not_fetched_again(hugging: Hugging, tmp_path: Path) -> None:
    for _ in range(2):
        run("hub", tmp_path, hub(), HF_TOKEN=SECRET, HF_ENDPOINT=hugging.url)
    assert len([1 for path, _, _ in hugging.seen if path.startswith("/store/")]) == 1


def test_a_file_that_was_altered_is_refused_and_not_kept(hugging: Hugging, tmp_path: Path) -> None:
    hugging.altered = True
    done = run("hub", tmp_path, hub(), HF_TOKEN=SECRET, HF_ENDPOINT=hugging.url)
    assert done.returncode and "is not what was declared" in done.stderr
    assert not list(tmp_path.rglob("a.ckpt*"))


def test_the_layout_of_a_cache_is_found_without_a_network(hugging: Hugging, tmp_path: Path) -> None:
    plan = hub(cache=True, to="hub")
    assert run("hub", tmp_path, plan, HF_TOKEN=SECRET, HF_ENDPOINT=hugging.url).returncode == 0
    cached = tmp_path / "hub/models--meta--sam"
    assert (cached / "refs/main").read_text() == COMMIT
    assert (cached / f"snapshots/{COMMIT}/checkpoints/a.yaml").read_bytes() == SMALL


@pytest.mark.parametrize(
    ("env", "told"),
    [({}, "Accept its licence on the hub"), ({"HF_TOKEN": "hf_other"}, "has not been granted")],
)
def test_a_missing_token_is_told_in_words(
    hugging: Hugging, tmp_path: Path, env: dict[str, str], told: str
) -> None:
    done = run("hub", tmp_path, hub(), **env, HF_ENDPOINT=hugging.url)
    assert done.returncode and told in done.stderr and "Traceback" not in done.stderr


def test_a_branch_is_no_revision(tmp_path: Path) -> None:
    done = run("hub", tmp_path, hub(revision=""), "--revision", "main")
    assert done.returncode and "no revision of meta/sam is declared" in done.stderr


def test_a_file_of_its_own_is_checked_by_what_is_known_of_it(
    hugging: Hugging, tmp_path: Path
) -> None:
    md5 = hashlib.md5(LARGE).hexdigest()
    known = asdict(Url(f"{hugging.url}/store/w", "u2net/w.onnx", md5=md5, size=len(LARGE)))
    assert run("url", tmp_path, known).returncode == 0
    assert (tmp_path / "u2net/w.onnx").read_bytes() == LARGE
    wrong = asdict(Url(f"{hugging.url}/store/w", "other.onnx", "0" * 64))
    done = run("url", tmp_path, wrong)
    assert done.returncode and sha256(LARGE) in done.stderr
    begins = asdict(Url(f"{hugging.url}/store/w", "short.onnx", sha256(LARGE)[:8]))
    assert run("url", tmp_path, begins).returncode == 0
    other = asdict(Url(f"{hugging.url}/store/w", "other.onnx", "0" * 8))
    assert "is not what was declared" in run("url", tmp_path, other).stderr
    gone = run("url", tmp_path, asdict(Url(f"{hugging.url}/gone", "gone.onnx")))
    assert gone.returncode and "cannot be fetched" in gone.stderr


@pytest.mark.parametrize("known", [{"sha256": sha256(LARGE)}, {"size": len(LARGE)}, {}])
def test_what_was_begun_as_another_file_is_begun_anew(
    hugging: Hugging, tmp_path: Path, known: dict[str, Any]
) -> None:
    (tmp_path / "w.part").write_bytes(b"of another revision")
    done = run("url", tmp_path, asdict(Url(f"{hugging.url}/store/w", "w", **known)))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w").read_bytes() == LARGE


def test_a_full_disk_is_told_at_once(hugging: Hugging, tmp_path: Path) -> None:
    (tmp_path / "w.part").symlink_to("/dev/full")
    done = run("url", tmp_path, asdict(Url(f"{hugging.url}/store/w", "w", sha256(LARGE))))
    assert done.returncode and "No space left" in done.stderr and "Make room" in done.stderr
    assert len(hugging.seen) == 1


def test_a_licensed_file_is_taken_from_the_builder(tmp_path: Path) -> None:
    supplied, weights = tmp_path / "mine", tmp_path / "weights"
    supplied.mkdir()
    plan = asdict(Licensed("SMPLX.npz", "https://smpl.example", "smplx/M.npz", sha256(SMALL)))
    missing = run("licensed", weights, plan, "--from", str(supplied))
    assert missing.returncode
    assert "https://smpl.example" in missing.stderr and "--licensed" in missing.stderr
    (supplied / "SMPLX.npz").write_bytes(LARGE)
    assert (
        "is not what was declared" in run("licensed", weights, plan, "--from", str(supplied)).stderr
    )
    (supplied / "SMPLX.npz").write_bytes(SMALL)
    assert run("licensed", weights, plan, "--from", str(supplied)).returncode == 0
    assert (weights / "smplx/M.npz").read_bytes() == SMALL


def test_no_name_leads_out_of_the_folder(hugging: Hugging, tmp_path: Path) -> None:
    done = run("url", tmp_path / "weights", asdict(Url(f"{hugging.url}/store/w", "../w")))
    assert done.returncode and "does not stay in" in done.stderr


def test_the_list_has_every_file_with_size_and_digest(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/w.ckpt").write_bytes(LARGE)
    (tmp_path / "half.part").write_bytes(b"x")
    assert run("list", tmp_path).returncode == 0
    listed = json.loads((tmp_path / "weights.json").read_text())
    assert listed == {"a/w.ckpt": {"size": len(LARGE), "sha256": sha256(LARGE)}}
