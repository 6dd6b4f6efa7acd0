"""The hints' `polypod`, in every place from which it can be started."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bento import ROOT

SCRIPT = Path(sys.executable).with_name("polypod")
TELL = "from polypod.command import typed; print(typed('--version'))"


def told(folder: Path, path: str) -> str:
    """The hint of a program that runs in `folder`, with this PATH."""
    ran = subprocess.run(
        [sys.executable, "-c", TELL],
        cwd=folder,
        env={"PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return ran.stdout.strip()


@pytest.mark.parametrize(
    ("folder", "path", "hint"),
    [
        (SCRIPT.parent, str(SCRIPT.parent), "polypod"),
        (SCRIPT.parents[2], "/usr/bin", str(SCRIPT.relative_to(SCRIPT.parents[2]))),
        (Path("/"), "/usr/bin", str(SCRIPT)[1:]),
        (Path("/usr"), "/usr/bin", str(SCRIPT)),
    ],
)
def test_a_hint_can_be_typed_as_it_is_printed(folder: Path, path: str, hint: str) -> None:
    command = told(folder, path)
    assert command == f"{hint} --version"
    ran = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=folder,
        env={"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout.startswith("polypod "), ran.stderr


def test_another_polypod_on_the_path_is_not_ours(tmp_path: Path) -> None:
    other = tmp_path / "polypod"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    assert shlex.split(told(tmp_path, str(tmp_path)))[0] == str(SCRIPT)


def test_make_run_takes_a_photo_with_a_space_in_its_name(tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    installed.touch()
    words = [
        "run",
        "PHOTO=no such.jpg",
        "OUT=my out",
        "ARGS=",  # not those of the make that runs the tests
        f"BIN={SCRIPT.parent}",
        f"SERVING={installed}",
    ]
    ran = subprocess.run(["make", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "There is no file no such.jpg." in ran.stderr
