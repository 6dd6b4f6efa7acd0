"""Files under licence: asked for, checked, and kept from where anybody can pull."""

from __future__ import annotations

import hashlib
import os
import pty
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from polypod.build import licensed
from polypod.build.container import CannotBuild, push
from polypod.build.dockerfile import dockerfile
from polypod.image import Licensed, Weights
from tests.build.painter import PAINTER

SMPLX, PIXIE = "https://smpl.example, after registration", "https://pixie.example"
BODY = b"body"
FILES = (
    Licensed("models/SMPLX.npz", SMPLX, sha256=hashlib.sha256(BODY).hexdigest()),
    Licensed("data/verts.npy", SMPLX),
    Licensed("pixie/model.tar", PIXIE),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All that is wanted."""
    for file in FILES:
        path = tmp_path / "mine" / file.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BODY)
    return tmp_path / "mine"


def test_all_that_is_missing_is_told_at_once_with_where_it_is(folder: Path) -> None:
    told = licensed.what_is_wrong(FILES, None)
    assert told.count("https://smpl.example") == 1 and "https://pixie.example" in told
    assert all(file.name in told for file in FILES) and "--licensed FOLDER" in told
    (folder / "data" / "verts.npy").unlink()
    told = licensed.what_is_wrong(FILES, folder)
    assert "data/verts.npy is missing" in told and "pixie" not in told
    assert licensed.what_is_wrong((), None) == ""


def test_digests_are_checked_before_anything_is_built(folder: Path) -> None:
    assert licensed.what_is_wrong(FILES, folder) == ""
    (folder / "models" / "SMPLX.npz").write_bytes(b"another version")
    told = licensed.what_is_wrong(FILES, folder)
    assert hashlib.sha256(b"another version").hexdigest() in told and SMPLX in told


def test_a_digest_may_be_told_by_its_beginning(folder: Path) -> None:
    short = replace(FILES[0], sha256=FILES[0].sha256[:8])
    assert licensed.what_is_wrong((short,), folder) == ""
    wrong = replace(FILES[0], sha256="00000000")
    assert "is not the file that is declared" in licensed.what_is_wrong((wrong,), folder)
    with pytest.raises(ValueError, match="no SHA-256"):
        Licensed("a", "b", sha256="abc")


def test_an_image_that_holds_them_says_so() -> None:
    model = replace(PAINTER, weights=Weights(licensed=FILES))
    text = dockerfile(model, "uv==0.9.0 --hash=sha256:0\n")
    label = f'LABEL {licensed.LABEL}="models/SMPLX.npz, data/verts.npy, pixie/model.tar"'
    assert label in text
    assert text.index("bake.py licensed") < text.index(label), "no layer is built anew for it"
    assert text.index("COPY src/polypod/build/bake.py") < text.index("bake.py licensed")
    free = replace(PAINTER, weights=Weights())
    assert licensed.LABEL not in dockerfile(free, "uv==0.9.0 --hash=sha256:0\n")


def test_push_heeds_the_label_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever today's declaration says: the image may be older, or of another name."""
    program, log = tmp_path / "builder", tmp_path / "asked"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {log}\n'
        '[ "$2" != inspect ] || [ "$5" != old:1 ] || echo SMPLX.npz\n'
        '[ "$2" != inspect ] || [ "$5" != gone:1 ] || { echo no such image >&2; exit 1; }\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    free = replace(PAINTER, weights=Weights())
    with pytest.raises(CannotBuild, match=r"SMPLX\.npz.*ghcr\.io.*--private"):
        push(free, "old:1", "ghcr.io/me/old:1", backend="builder", private=False)
    with pytest.raises(CannotBuild, match=r"What gone:1 holds cannot be told: no such image"):
        push(free, "gone:1", "ghcr.io/me/gone:1", backend="builder", private=False)
    push(free, "old:1", "ghcr.io/me/old:1", backend="builder", private=True)
    push(free, "new:1", "ghcr.io/me/new:1", backend="builder", private=False)
    pushed = re.findall(r"^push (\S+)", log.read_text(), re.MULTILINE)
    assert pushed == ["ghcr.io/me/old:1", "ghcr.io/me/new:1"]
    assert licensed.LABEL in log.read_text()


ASK = """
import sys
from dataclasses import replace
from polypod.cli.images import ask_for_licensed
from polypod.image import Licensed, Weights
from tests.build.painter import PAINTER

files = (Licensed("SMPLX.npz", "https://smpl.example"),) if sys.argv[1] == "some" else ()
print("folder:", ask_for_licensed(replace(PAINTER, weights=Weights(licensed=files))))
"""


@pytest.mark.parametrize(
    ("files", "terminal", "told"),
    [
        ("some", True, "folder: /mine"),
        ("some", False, "folder: None"),
        ("no", True, "folder: None"),
    ],
)
def test_the_folder_is_asked_for_where_someone_sits(files: str, terminal: bool, told: str) -> None:
    """On a real terminal; a program in a pipe is never kept waiting."""
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "wb"), os.fdopen(theirs, "rb") as keyboard:
        os.write(ours, b"/mine\n")
        ran = subprocess.run(
            [sys.executable, "-c", ASK, files],
            stdin=keyboard if terminal else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    assert told in ran.stdout
    assert ("https://smpl.example" in ran.stderr) is (told == "folder: /mine")
