"""Locks of model environments: resolved for upstream's Python, and resolved again here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from polypod.build.declared import ROOT, declaration
from polypod.build.lock import CannotLock, compile_command, elsewhere, overrides_for, pins
from polypod.cli.images import changes
from polypod.image import Image
from tests.build.painter import PAINTER

NAMES = sorted(path.parent.name for path in (ROOT / "services").glob("*/requirements.lock"))
UNREACHABLE = re.compile(r"fetch|connect|network|dns|timed out|certificate", re.IGNORECASE)


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_still_fits_what_it_was_made_from(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the index can be reached; what a lock says of itself is checked below in any case."""
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "20")
    model = declaration(name)
    try:
        assert changes(model, model.folder / "requirements.lock") == []
    except CannotLock as error:
        if not UNREACHABLE.search(str(error)):
            raise
        pytest.skip("the package index cannot be reached from here")


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_pins_all_by_hash_and_holds_what_is_asked_for(name: str) -> None:
    model = declaration(name)
    text = (model.folder / "requirements.lock").read_text()
    blocks = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
    for block in blocks:
        assert re.match(r"[A-Za-z0-9][\w.\[\]-]*==\S+", block), block[:80]
        assert "--hash=sha256:" in block, block[:80]
    asked = (model.folder / "requirements.in").read_text()
    named = set(re.findall(r"^([A-Za-z0-9][\w.-]*)", asked, re.MULTILINE))
    assert {normal(name) for name in named} <= {normal(name) for name in pins(text)}
    exact = dict(re.findall(r"^([A-Za-z0-9][\w.-]*)==([^\s;#]+)", asked, re.MULTILINE))
    locked = {normal(name): version for name, version in pins(text).items()}
    for package, version in exact.items():
        assert locked[normal(package)].split(" ;")[0] == version
    assert not {normal(name) for name in elsewhere(model.image)} & set(locked)


@pytest.mark.parametrize("name", NAMES)
def test_a_lock_holds_nothing_that_nobody_asks_for(name: str) -> None:
    """By what the resolver noted of each package's metadata when it was locked."""
    model = declaration(name)
    text = (model.folder / "requirements.lock").read_text()
    known = {normal(package) for package in [*pins(text), *elsewhere(model.image)]}
    for block in re.split(r"\n(?=[A-Za-z0-9])", text.strip()):
        asking = re.findall(r"# +(?!via$)(?:via +)?(\S.*)$", block, re.MULTILINE)
        assert asking, block[:80]
        for who in asking:
            from_a_file = who.startswith("-")
            assert from_a_file or normal(who) in known, f"{block.splitlines()[0]} for {who}"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_compiled_finds_what_makes_a_wheel_of_it(name: str) -> None:
    """It is built without isolation, and an environment of uv's holds not even setuptools."""
    model = declaration(name)
    locked = pins((model.folder / "requirements.lock").read_text())
    if model.image.compiled:
        assert "setuptools" in locked
        major, minor = (int(part) for part in locked["setuptools"].split(".")[:2])
        assert "wheel" in locked or (major, minor) >= (70, 1)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


def test_upstreams_python_and_platform_are_what_is_resolved_for() -> None:
    command = compile_command(PAINTER, Path("out"), Path("overrides"))
    line = " ".join(command)
    assert "--python-version 3.10 --python-platform x86_64-manylinux_2_35" in line
    assert "--generate-hashes" in line and "--universal" not in line
    assert "--universal" in compile_command(declaration("inflate"), Path("out"), Path("o"))


def test_what_the_image_gets_elsewhere_is_taken_out_of_the_resolution(tmp_path: Path) -> None:
    assert elsewhere(PAINTER.image) == ["kaolin", "nvdiffrast", "raster", "torch"]
    assert overrides_for(Image()) == ""
    (tmp_path / "overrides.txt").write_text(overrides_for(PAINTER.image))
    (tmp_path / "a.in").write_text("torch\nkaolin==99\n")
    uv = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--offline", "--no-header"]
    done = subprocess.run(
        [*uv, "--override", str(tmp_path / "overrides.txt"), str(tmp_path / "a.in")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr
