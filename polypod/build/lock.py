"""`requirements.lock` of a model: resolved for upstream's Python and the image's platform.

Packages that the image gets elsewhere (an index of their own, compiled from a commit) are taken out
of the resolution, with everything that asks for them; what they need in turn stands in
`requirements.in`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from polypod.image import Image
from polypod.model import Model

PLATFORM = "x86_64-manylinux_2_35"
"""Ubuntu 22.04, which all CUDA bases here are."""
UNIVERSAL_PYTHON = "3.10"
"""A model without an environment of its own runs in any serving interpreter from here on."""


class CannotLock(ValueError):
    """The requirements cannot be resolved; the message is uv's."""


def lock(model: Model, output: Path, *, upgrade: bool = False) -> None:
    """Resolve `requirements.in` into `output`, keeping what is there as far as it fits.

    Raises:
        CannotLock: it has no solution, or the index is not reachable.
    """
    with tempfile.TemporaryDirectory() as folder:
        overrides = Path(folder, "overrides.txt")
        overrides.write_text(overrides_for(model.image))
        command = compile_command(model, output, overrides)
        ended = subprocess.run(
            [*command, *(["--upgrade"] if upgrade else [])],
            cwd=model.folder,  # it notes the paths that it was given
            capture_output=True,
            text=True,
            check=False,
        )
    if ended.returncode:
        raise CannotLock(ended.stderr.strip() or "uv ended without a word")


def compile_command(model: Model, output: Path, overrides: Path) -> Sequence[str]:
    python = model.image.python
    target = (
        ["--python-version", python, "--python-platform", PLATFORM]
        if python
        else ["--universal", "--python-version", UNIVERSAL_PYTHON]
    )
    own = Path(sys.executable).with_name("uv")
    uv = str(own) if own.exists() else shutil.which("uv") or "uv"
    return [
        *(uv, "pip", "compile", "--quiet", "--no-header", "--no-emit-index-url"),
        *("--generate-hashes", "--emit-build-options", *target),
        *("--override", str(overrides)),
        *("requirements.in", "--output-file", str(output)),
    ]


def overrides_for(image: Image) -> str:
    """A file that lets nothing ask for what the image gets elsewhere."""
    return "".join(f"{name}; python_version < '0'\n" for name in elsewhere(image))


def elsewhere(image: Image) -> list[str]:
    """Names of the packages that `requirements.lock` does not hold."""
    wheels = (p.partition("==")[0].partition("[")[0] for w in image.wheels for p in w.packages)
    return sorted({*wheels, *(part.name for part in image.compiled)})


def pins(text: str) -> dict[str, str]:
    """Version by package in a lock, with the marker where it has one."""
    found = re.findall(
        r"^([A-Za-z0-9][\w.\[\]-]*)==([^\s\\]+(?:\s*;[^\\\n]*)?)", text, re.MULTILINE
    )
    pinned: dict[str, str] = {}
    for name, version in found:
        pinned[name] = ", ".join(filter(None, (pinned.get(name), version.strip())))
    return pinned
