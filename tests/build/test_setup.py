"""`polypod setup` for real, from a repository, an index and files of this machine."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from polypod.build import doctor
from polypod.build.container import CannotBuild
from polypod.build.setup import Supplied, set_up
from polypod.build.steps import Site, model_layers
from polypod.image import (
    Checkout,
    Compiled,
    Home,
    Image,
    Licensed,
    Needs,
    Step,
    Weights,
    Wheels,
)
from polypod.model import Model
from tests.build.painter import PAINTER

PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
BACKEND = """
import os, zipfile

WHEEL = "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"

def build_wheel(folder, config=None, metadata=None):
    import torchlike
    assert "/build/raster.cache/" in folder, "what is moved there may not leave the disk"
    told = [os.environ[name] for name in ("TORCH_CUDA_ARCH_LIST", "FORCE_CUDA", "MAX_JOBS")]
    text = f"built = {', '.join(map(repr, told))}"
    files = {
        "raster.py": text + f", {torchlike.__version__!r}\\n",
        "raster-1.dist-info/METADATA": "Metadata-Version: 2.1\\nName: raster\\nVersion: 1\\n",
        "raster-1.dist-info/WHEEL": WHEEL,
    }
    name = "raster-1-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as wheel:
        for path, content in files.items():
            wheel.writestr(path, content)
        listed = "".join(f"{path},,\\n" for path in [*files, "raster-1.dist-info/RECORD"])
        wheel.writestr("raster-1.dist-info/RECORD", listed)
    return name
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def repository(folder: Path, files: Mapping[str, str]) -> Checkout:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "init", "-q")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(folder, "config", "uploadpack.allowFilter", "true")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "upstream")
    commit = git(folder, "rev-parse", "HEAD")
    (folder / "README").write_text("newer\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "newer")
    return Checkout(f"file://{folder}", commit)


def wheel(folder: Path, name: str, version: str) -> str:
    """Writes a wheel; returns its SHA-256."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    files = {
        f"{name}.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    with zipfile.ZipFile(path, "w") as made:
        rows: list[str] = []
        for inner, text in files.items():
            made.writestr(inner, text)
            digest = urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
            rows.append(f"{inner},sha256={digest.decode()},{len(text)}\n")
        made.writestr(f"{info}/RECORD", "".join([*rows, f"{info}/RECORD,,\n"]))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """Upstream's code, its index, an extension of its own, a licensed file: all on this disk."""
    monkeypatch.setenv("PATH", f"{sys.base_prefix}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path / "default"))
    monkeypatch.setenv("UV_PYTHON_PREFERENCE", "only-system")
    monkeypatch.delenv("MAX_JOBS", raising=False)
    digest = wheel(tmp_path / "own", "torchlike", "2.5.1+cu121")
    locked = wheel(tmp_path / "default", "einopslike", "0.8.0")
    folder = tmp_path / "services" / "sketch"
    folder.mkdir(parents=True)
    (folder / "requirements.lock").write_text(f"einopslike==0.8.0 --hash=sha256:{locked}\n")
    source = repository(
        tmp_path / "upstream",
        {
            "demo.py": "x = 1\n",
            "assets/large.bin": "x" * 9999,
            "ext/pyproject.toml": PROJECT,
            "ext/backend.py": BACKEND,
        },
    )
    image = Image(
        python=PYTHON,
        wheels=(
            Wheels(str(tmp_path / "own"), ("torchlike==2.5.1+cu121",), {"torchlike": digest}, True),
        ),
        checkouts=(
            source,
            replace(source, to="{src}/some", patterns=("ext", "/demo.py")),
        ),
        compiled=(Compiled("raster", source.url, source.commit, "ext", env={"FORCE_CUDA": "1"}),),
        steps=(Step("python -c 'import raster; print(raster.built)' > built", "proof", "{src}"),),
        imports=("torchlike", "einopslike", "raster"),
    )
    weights = Weights(
        licensed=(Licensed("body.npz", "https://smpl.example", "smplx/M.npz"),),
        steps=(Step("echo local > {weights}/config.yaml", "paths in the configuration"),),
    )
    return replace(
        PAINTER,
        name="sketch",
        folder=folder,
        image=image,
        weights=weights,
        needs=Needs(architectures=("8.0", "9.0")),
    )


@pytest.fixture
def supplied(tmp_path: Path) -> Supplied:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "body.npz").write_bytes(b"body")
    return Supplied(folder, system_packages=True)


def test_a_bare_machine_gets_what_an_image_has(
    model: Model, supplied: Supplied, tmp_path: Path
) -> None:
    home, said = Home(tmp_path / "home" / "sketch"), list[str]()
    set_up(model, home, supplied, said.append)
    built = (home.src / "built").read_text()
    assert built == "('8.0;9.0', '1', '4', '2.5.1+cu121')\n"
    assert not (home.src / "upstream/README").exists()  # its commit, not the newest
    assert (home.src / "upstream/.commit").read_text().strip() == model.image.checkouts[0].commit
    assert sorted(path.name for path in (home.src / "some").iterdir()) == [
        ".commit",
        "demo.py",
        "ext",
    ]
    assert (home.weights / "smplx/M.npz").read_bytes() == b"body"
    assert "config.yaml" in (home.weights / "weights.json").read_text()
    for name in model.image.imports:
        subprocess.run([home.python, "-c", f"import {name}"], check=True)
    assert not list((home.path / "build").iterdir())

    again = list[str]()
    set_up(model, home, supplied, again.append)
    assert all(line.endswith("done before") for line in again) and len(again) == len(said)


def test_what_changed_is_done_again_with_all_that_follows(
    model: Model, supplied: Supplied, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home" / "sketch")
    set_up(model, home, supplied, str)
    (step,) = model.image.steps
    steps = (replace(step, command=step.command.replace("built)", "built[0])")),)
    said = list[str]()
    changed = replace(model, image=replace(model.image, steps=steps))
    set_up(changed, home, supplied, said.append)
    done = [not line.endswith("done before") for line in said]
    assert done == sorted(done) and True in done and False in done
    assert (home.src / "built").read_text() == "8.0;9.0\n"


def test_a_step_that_fails_is_named_and_tried_again(
    model: Model, supplied: Supplied, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home" / "sketch")
    bad = replace(model.image, steps=(Step("exit 3", "the broken one"),))
    for _ in range(2):
        with pytest.raises(CannotBuild, match=r"the broken one.*status 3"):
            set_up(replace(model, image=bad), home, supplied, str)
    set_up(model, home, supplied, str)
    assert (home.src / "built").exists()


def test_what_was_removed_is_made_again(model: Model, supplied: Supplied, tmp_path: Path) -> None:
    """As the doctor says: remove what was altered, then set up again."""
    home = Home(tmp_path / "home" / "sketch")
    for harm in (
        home.weights / "smplx/M.npz",
        home.weights / "weights.json",
        home.src / "upstream/.commit",
        home.python,
    ):
        set_up(model, home, supplied, str)
        harm.unlink()
        set_up(model, home, supplied, str)
        assert harm.exists(), harm
    shutil.rmtree(home.weights)
    set_up(model, home, supplied, str)
    assert not doctor.lost_weights(home)


def test_another_licensed_file_takes_the_place_of_the_first(
    model: Model, supplied: Supplied, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home" / "sketch")
    set_up(model, home, supplied, str)
    assert supplied.licensed
    (supplied.licensed / "body.npz").write_bytes(b"the right body")
    set_up(model, home, supplied, str)
    assert (home.weights / "smplx/M.npz").read_bytes() == b"the right body"


def test_a_wheel_that_was_altered_is_refused(
    model: Model, supplied: Supplied, tmp_path: Path
) -> None:
    wheel(tmp_path / "own", "torchlike", "2.5.1+cu121")
    with (tmp_path / "own/torchlike-2.5.1+cu121-py3-none-any.whl").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CannotBuild, match="torchlike"):
        set_up(model, Home(tmp_path / "home" / "sketch"), supplied, str)


def test_the_clone_may_lie_in_a_folder_with_spaces(model: Model, tmp_path: Path) -> None:
    site = Site(Home(tmp_path), "/my code/requirements.lock", "/my code/bake.py", "/my code/uv")
    words = [
        shlex.split(command) for layer in model_layers(model, site) for command in layer.commands
    ]
    for name in ("uv", "bake.py", "requirements.lock"):
        assert any(f"/my code/{name}" in line for line in words)
        assert not any("/my" in line for line in words), "one word"


def test_what_a_person_must_bring_is_asked_for_before_anything_is_done(
    model: Model, tmp_path: Path
) -> None:
    home = Home(tmp_path / "home" / "sketch")
    with pytest.raises(CannotBuild, match=r"(?s)body\.npz is missing.*https://smpl\.example"):
        set_up(model, home, Supplied(), str)
    with pytest.raises(CannotBuild, match="without spaces"):
        set_up(PAINTER_FREE, Home(tmp_path / "my home"), Supplied(), str)
    assert not home.path.exists()
    assert "HF_TOKEN" not in os.environ


PAINTER_FREE = replace(PAINTER, image=Image(), weights=Weights())
