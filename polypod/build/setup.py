"""A model's environment on this machine, without a container: the steps of its image, run here.

What is done is noted in the model's folder, and is not done again until its step changes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polypod.build import bake, doctor, steps
from polypod.build.container import CannotBuild, check_supplied
from polypod.build.declared import CUTOUT_LOCK, ROOT
from polypod.build.steps import Layer, Site
from polypod.image import Home, Image
from polypod.model import Model

NOTES = ".done"


@dataclass(frozen=True)
class Supplied:
    """What the person who sets up adds to the declaration."""

    licensed: Path | None = None
    revisions: Mapping[str, str] = field(default_factory=dict[str, str])
    system_packages: bool = False
    """They are there already, or by another name: install none."""


def set_up(model: Model, home: Home, supplied: Supplied, say: Callable[[str], None]) -> None:
    """Make the environment in `home`.

    Raises:
        CannotBuild: something is missing that a person has to bring, or a step failed.
    """
    check_supplied(model, supplied.licensed, supplied.revisions)
    if not re.fullmatch(r"[\w./+-]+", str(home.path)):
        raise CannotBuild(
            f"Upstream's build scripts do not all bear a folder such as {str(home.path)!r}. Set "
            "POLYPOD_HOME to one without spaces."
        )
    home.path.mkdir(parents=True, exist_ok=True)
    if not supplied.system_packages:
        _system_packages(model.image, say)
    site = Site(
        home=home,
        lock=str(model.folder / "requirements.lock"),
        bake=str(Path(__file__).with_name("bake.py")),
        uv=_uv(),
        licensed=str(supplied.licensed or ""),
        architectures=model.needs.architectures,
    )
    layers = steps.model_layers(model, site)
    _forget_what_is_lost(layers, home)
    revisions = {steps.revision_argument(repo): at for repo, at in supplied.revisions.items()}
    env = {**steps.ARGUMENTS, **os.environ, **revisions}
    for number, layer in enumerate(layers):
        _once(layer, number, len(layers), site, env, say)
    if model.removes_backgrounds and importlib.util.find_spec("rembg") is None:
        say("the background remover, in the serving environment")
        lock = str(ROOT / "requirements" / CUTOUT_LOCK)
        install = [_uv(), "pip", "install", "--python", sys.executable, "--no-deps"]
        _must([*install, "--require-hashes", "-r", lock], os.environ)


def _forget_what_is_lost(layers: Sequence[Layer], home: Home) -> None:
    """What somebody has removed since it was done is done again."""
    notes = [home.path / NOTES / f"{number:03}" for number in range(len(layers))]
    lost_weights = bool(notes) and notes[-1].exists() and doctor.lost_weights(home)
    for note, layer in zip(notes, layers, strict=True):
        lost = lost_weights if layer.weights else layer.proof and not Path(layer.proof).exists()
        if lost:
            note.unlink(missing_ok=True)


def _once(
    layer: Layer,
    number: int,
    count: int,
    site: Site,
    env: Mapping[str, str],
    say: Callable[[str], None],
) -> None:
    """Run a step unless it was done, as it is, after all that was done before."""
    notes = site.home.path / NOTES
    note, digest = notes / f"{number:03}", _digest(layer, site, env)
    title = f"[{number + 1}/{count}] {layer.title}"
    if note.exists() and note.read_text() == digest:
        say(f"{title}: done before")
        return
    say(title)
    for later in notes.glob("[0-9]*"):
        if later.name >= note.name:
            later.unlink()
    shell = shutil.which("bash") or "/bin/sh"
    ended = subprocess.run([shell, "-c", " && ".join(layer.commands)], env=env, check=False)
    if ended.returncode:
        raise CannotBuild(
            f"The step “{layer.title}” failed with status {ended.returncode}; the lines above say "
            "why. Mend it and run the command again: what is done stays done."
        )
    notes.mkdir(exist_ok=True)
    note.write_text(digest)


def _digest(layer: Layer, site: Site, env: Mapping[str, str]) -> str:
    """Of everything that the step is made of."""
    made = hashlib.sha256("\n".join(layer.commands).encode())
    made.update(env.get(layer.revision, "").encode())
    if layer.licensed:
        made.update(bake.digest(Path(site.licensed, layer.licensed)).encode())
    if "--require-hashes -r" in layer.commands[0]:
        made.update(Path(site.lock).read_bytes())
    return made.hexdigest()


def _system_packages(image: Image, say: Callable[[str], None]) -> None:
    """Install what is missing; without the rights for it, say what to run."""
    missing = [name for name in steps.system_packages(image) if not _installed(name)]
    if not missing:
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if not shutil.which("dpkg-query"):
        say(f"This is no Debian or Ubuntu: make sure that there is {', '.join(missing)}.")
        return
    if os.geteuid() != 0:
        raise CannotBuild(f"System packages are missing. Run: sudo {' '.join(command)}")
    say(f"system packages: {', '.join(missing)}")
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    _must(["apt-get", "update", "-qq"], quiet)
    _must(command, quiet)


def _installed(package: str) -> bool:
    if not shutil.which("dpkg-query"):
        return False
    asked = ["dpkg-query", "-W", "-f", "${Status}", package]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    return said.stdout.endswith("ok installed")


def _must(command: Sequence[str], env: Mapping[str, str]) -> None:
    if subprocess.run(command, env=env, check=False).returncode:
        raise CannotBuild(f"`{' '.join(command)}` failed; the lines above say why.")


def _uv() -> str:
    found = Path(sys.executable).with_name("uv")
    program = str(found) if found.exists() else shutil.which("uv")
    if not program:
        raise CannotBuild("There is no uv here. Run `make setup` first.")
    return program
