"""Conversions and previews through real child processes, with files that mean harm as well."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from polypod.assets import derive, formats
from polypod.assets.glb import write_glb
from polypod.assets.mesh import Material, Part, Texture, facts
from polypod.errors import BadInput, Problem, TooLarge, Unavailable


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def children() -> list[psutil.Process]:
    """The conversions under way, among whatever else this test process has started."""
    found: list[psutil.Process] = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "polypod.assets.tool" in child.cmdline():
                found.append(child)
    return found


def wait_until(true: Callable[[], bool], limit_s: float = 20) -> None:
    end = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.02)


@pytest.fixture
def model(tmp_path: Path, ball, box, picture) -> Path:
    """A textured ball and a box beside it."""
    side = Part(box().vertices + np.float32([4, 0, 0]), box().faces)
    write_glb((ball(32, picture(lambda pixels: pixels.fill(150))), side), tmp_path / "model.glb")
    return tmp_path / "model.glb"


@pytest.fixture
def stuck(tmp_path: Path) -> Path:
    """A file that never ends: whoever opens it waits for ever."""
    path = tmp_path / "stuck.glb"
    os.mkfifo(path)
    return path


def test_conversions_leave_one_whole_file_each(tmp_path: Path, model: Path) -> None:
    async def convert_all() -> None:
        await asyncio.gather(
            *(
                derive.convert(model, "glb", tmp_path / f"to.{format}", format)
                for format in derive.FORMATS
            )
        )
        await derive.convert(tmp_path / "to.ply", "ply", tmp_path / "back.glb", "glb")

    run(convert_all())
    names = {"model.glb", "back.glb", *(f"to.{format}" for format in derive.FORMATS)}
    assert {path.name for path in tmp_path.iterdir()} == names
    wanted = facts(formats.read(model, "glb"))  # type: ignore[arg-type]
    for name in names:
        found = facts(formats.read(tmp_path / name, name.rpartition(".")[2]))  # type: ignore[arg-type]
        assert found["triangles"] == wanted["triangles"] and found["watertight"] is True


def test_previews_and_facts(tmp_path: Path, model: Path) -> None:
    (tmp_path / "views").mkdir()
    found = run(derive.previews(model, "glb", tmp_path / "views", size=128))
    assert found == facts(formats.read(model, "glb"))  # type: ignore[arg-type]
    assert sorted(p.name for p in (tmp_path / "views").iterdir()) == list(derive.VIEWS)
    with Image.open(tmp_path / "views" / "view_0.png") as view:
        assert view.size == (128, 128)


def png_bomb(side: int = 30_000) -> bytes:
    """A true picture of 900 million pixels in 110 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def glb(change: Callable[[dict[str, Any]], None], model: Path) -> bytes:
    data = model.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    doc = json.loads(data[20 : 20 + length])
    change(doc)
    text = json.dumps(doc).encode()
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    head = struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest))
    return head + struct.pack("<I4s", len(text), b"JSON") + text + rest


def usdz(entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", kind) as package:
        for name, data in entries.items():
            package.writestr(name, data)
    return out.getvalue()


def huge_count(doc: dict[str, Any]) -> None:
    for accessor in doc["accessors"]:
        accessor["count"] = 1 << 40


def wrong_corner(doc: dict[str, Any]) -> None:
    doc["accessors"][0]["count"] = 3


PLY = b"ply\nformat binary_little_endian 1.0\nelement vertex %d\nproperty float x\n"
PLY += b"property float y\nproperty float z\nend_header\n"
OUTSIDE = b'#usda 1.0\ndef "A" (references = @/etc/other.usda@</A>) {}\n'

HOSTILE: dict[str, tuple[str, Callable[[Path], bytes]]] = {
    "empty glb": ("glb", lambda model: b""),
    "truncated glb": ("glb", lambda model: model.read_bytes()[:-5000]),
    "glb that says less": ("glb", lambda model: model.read_bytes()[:300]),
    "huge accessors": ("glb", lambda model: glb(huge_count, model)),
    "corner that is not there": ("glb", lambda model: glb(wrong_corner, model)),
    "deep JSON": ("glb", lambda model: glb(lambda d: d.update(nodes=[[[[]]]]), model)),
    "huge stl": ("stl", lambda model: bytes(80) + b"\xff\xff\xff\xff" + bytes(50)),
    "huge ply": ("ply", lambda model: PLY % 10**12 + bytes(36)),
    "no points": ("ply", lambda model: PLY % 0),
    "not finite": ("ply", lambda model: PLY % 2 + struct.pack("<6f", *[float("nan")] * 6)),
    "zip bomb": ("usdz", lambda model: usdz({"a.usda": bytes(1 << 26)}, zipfile.ZIP_DEFLATED)),
    "usdz without a scene": ("usdz", lambda model: usdz({"a.png": b"x"})),
    "usdz of other files": ("usdz", lambda model: usdz({"a.usda": OUTSIDE})),
    "glb as usdz": ("usdz", lambda model: model.read_bytes()),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_cannot_be_read_is_told_in_words(tmp_path: Path, model: Path, name: str) -> None:
    format, make = HOSTILE[name]
    source = tmp_path / f"hostile.{format}"
    source.write_bytes(make(model))
    with pytest.raises((BadInput, TooLarge)) as caught:
        run(derive.convert(source, format, tmp_path / "to.stl", "stl", memory=2 * derive.GIB))
    told = caught.value.message + caught.value.hint
    assert "Traceback" not in told and str(tmp_path) not in told and "Error" not in told
    assert not (tmp_path / "to.stl").exists() and children() == []


def test_a_texture_that_would_fill_the_memory_is_refused(tmp_path: Path, ball) -> None:
    part = ball(8)
    bomb = Material(texture=Texture(png_bomb(), "image/png"))
    write_glb((Part(part.vertices, part.faces, uv=part.uv, material=bomb),), tmp_path / "a.glb")
    with pytest.raises(BadInput, match="texture"):
        run(derive.previews(tmp_path / "a.glb", "glb", tmp_path))


def test_too_little_memory_is_told(tmp_path: Path) -> None:
    count = 3_000_000
    vertices = np.random.default_rng(0).random((count, 3), np.float32)
    faces = np.arange(count * 3, dtype=np.int32).reshape(-1, 3) % count
    write_glb((Part(vertices, faces),), tmp_path / "big.glb")
    with pytest.raises(Unavailable, match=r"needs more than 0\.5 GiB"):
        limit = derive.GIB // 2
        run(derive.convert(tmp_path / "big.glb", "glb", tmp_path / "a.stl", "stl", memory=limit))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.glb"]


def test_too_many_triangles_are_refused(tmp_path: Path) -> None:
    faces = np.zeros((5_000_001, 3), np.int32)
    write_glb((Part(np.zeros((3, 3), np.float32), faces),), tmp_path / "a.glb")
    with pytest.raises(TooLarge, match="5,000,000"):
        run(derive.previews(tmp_path / "a.glb", "glb", tmp_path))


def test_past_its_time_the_child_is_gone(tmp_path: Path, stuck: Path) -> None:
    with pytest.raises(Unavailable, match=r"longer than 0\.5 s"):
        run(derive.convert(stuck, "glb", tmp_path / "a.stl", "stl", limit_s=0.5))
    assert children() == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stuck.glb"]


def test_cancelled_the_child_is_gone(tmp_path: Path, stuck: Path) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(derive.convert(stuck, "glb", tmp_path / "a.stl", "stl"))
        await asyncio.to_thread(wait_until, lambda: bool(children()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert children() == []

    run(cancelled())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stuck.glb"]


def test_a_killed_child_is_an_error_and_not_a_wait(tmp_path: Path, stuck: Path) -> None:
    async def killed() -> None:
        task = asyncio.ensure_future(derive.convert(stuck, "glb", tmp_path / "a.stl", "stl"))
        await asyncio.to_thread(wait_until, lambda: bool(children()))
        children()[0].kill()
        with pytest.raises(Unavailable, match="was ended"):
            await task

    run(killed())


def test_the_child_ends_with_its_parent(tmp_path: Path, stuck: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path; from polypod.assets import derive;"
        "asyncio.run(derive.convert(Path(sys.argv[1]), 'glb', Path(sys.argv[2]), 'stl'))"
    )
    command = [sys.executable, "-c", code, str(stuck), str(tmp_path / "a.stl")]
    with subprocess.Popen(command) as parent:
        found: list[psutil.Process] = []

        def sleeping() -> bool:  # it has set its limits and waits for the file
            found[:] = psutil.Process(parent.pid).children()
            return bool(found) and found[0].nice() == 5

        wait_until(sleeping)
        os.kill(parent.pid, signal.SIGKILL)
    wait_until(lambda: not found[0].is_running() or found[0].status() == psutil.STATUS_ZOMBIE)


def test_the_child_is_told_no_secret(tmp_path: Path, stuck: Path) -> None:
    os.environ["POLYPOD_API_KEYS"] = "secret"
    try:

        async def look() -> dict[str, str]:
            task = asyncio.ensure_future(derive.convert(stuck, "glb", tmp_path / "a.stl", "stl"))
            await asyncio.to_thread(
                wait_until,
                lambda: any("polypod.assets.tool" in child.cmdline() for child in children()),
            )
            seen = children()[0].environ()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return seen

        seen = run(look())
    finally:
        del os.environ["POLYPOD_API_KEYS"]
    assert "PATH" in seen and "POLYPOD_API_KEYS" not in seen


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=128k"):
        pytest.skip(f"cannot mount: {os.strerror(ctypes.get_errno())}")
    try:
        yield folder
    finally:
        libc.umount2(bytes(folder), 2)


@pytest.mark.parametrize("format", ["stl", "ply", "obj", "glb", "usdz"])
def test_a_full_disk_is_told(small_disk: Path, model: Path, format: str) -> None:
    (small_disk / "much").write_bytes(bytes(100_000))
    with pytest.raises(Unavailable, match="disk is full"):
        run(derive.convert(model, "glb", small_disk / f"a.{format}", format))
    assert [path.name for path in small_disk.iterdir()] == ["much"]


def test_an_unknown_format_is_named(tmp_path: Path, model: Path) -> None:
    with pytest.raises(Problem, match="'fbx'"):
        run(derive.convert(model, "glb", tmp_path / "a.fbx", "fbx"))
