"""Building and pushing: what is refused beforehand, and a real bento as the build context."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from polypod.build import container
from polypod.build.container import CannotBuild, Order, build, build_command, push, registry_of
from polypod.build.declared import declaration
from polypod.errors import Forbidden
from polypod.image import Weights
from polypod.lifetime import check_address
from polypod.settings import Settings
from tests.build.painter import COMMIT, PAINTER

BUILDER = """#!/bin/sh
echo "$0" "$@" >> {log}
[ "$1" != build ] || cp "$3" {log}.Dockerfile
"""


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that notes what it is asked to build; returns its notes."""
    log, folder = tmp_path / "asked", tmp_path / "bin"
    folder.mkdir()
    program = folder / "builder"
    program.write_text(BUILDER.format(log=log))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("BENTOML_HOME", str(tmp_path / "bentoml"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return log


@pytest.fixture
def licensed(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "SMPLX.npz").write_bytes(b"body")
    return folder


def test_a_bento_is_built_and_given_to_the_builder_with_our_dockerfile(builder: Path) -> None:
    order = Order("builder", "registry.example/inflate:1", options=("--push",))
    tag = build(declaration("inflate"), order)
    assert tag == "registry.example/inflate:1"
    asked = builder.read_text().splitlines()[-1]
    assert "-t registry.example/inflate:1" in asked
    assert "--build-arg IMAGE=registry.example/inflate:1 --push" in asked
    context = Path(asked.split()[-1])
    assert all((context / name).is_file() for name in container.context_files())
    text = Path(f"{builder}.Dockerfile").read_text()
    assert text == (context / "env/docker/Dockerfile").read_text()
    assert text.startswith("# Inflate, made by")


def test_secrets_and_supplied_files_are_named_never_copied(licensed: Path, tmp_path: Path) -> None:
    order = Order(licensed=licensed, revisions={"meta/later": COMMIT}, options=("--pull",))
    command = build_command(PAINTER, order, "docker", tmp_path, "painter:1")
    line = " ".join(command)
    assert "--secret id=HF_TOKEN,env=HF_TOKEN" in line
    assert f"--build-context licensed={licensed}" in line
    assert f"--build-arg REVISION_META_LATER={COMMIT}" in line
    assert command[-2:] == ["--pull", str(tmp_path)]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"licensed": None}, r"(?s)SMPLX\.npz is missing.*https://smpl\.example"),
        ({"revisions": {}}, "No revision of meta/later is declared"),
        ({"revisions": {"meta/later": "main"}}, "No revision of meta/later is declared"),
        ({"revisions": {"meta/later": COMMIT, "x/y": COMMIT}}, "takes no weights from x/y"),
        ({}, "gated.*HF_TOKEN"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_built(
    builder: Path, licensed: Path, change: dict[str, object], told: str
) -> None:
    order = Order("builder", "", licensed, {"meta/later": COMMIT})
    with pytest.raises(CannotBuild, match=told):
        build(PAINTER, replace(order, **change))  # type: ignore[arg-type]
    assert not builder.exists()


@pytest.mark.parametrize(
    "option",
    [
        "--push",
        "--push=true",
        "type=registry",
        "--output=type=image,name=me/painter,push=true",
        "-otype=registry,name=me/painter",
        "--cache-to=type=registry,ref=me/painter:cache,mode=max",
    ],
)
def test_a_build_does_not_push_licensed_files(builder: Path, licensed: Path, option: str) -> None:
    order = Order("builder", "", licensed, {"meta/later": COMMIT}, ("--pull", option))
    with pytest.raises(CannotBuild, match=r"SMPLX\.npz.*polypod push"):
        build(PAINTER, order)
    assert not builder.exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--output=type=image,push=false", "--cache-to=type=local,dest=c"),
        ("--cache-from=type=registry,ref=me/painter:cache",),
        ("--cache-from", "type=registry,ref=me/painter:cache"),
    ],
)
def test_other_options_reach_the_builder(licensed: Path, options: tuple[str, ...]) -> None:
    order = Order("builder", "", licensed, {"meta/later": COMMIT}, options)
    with pytest.raises(CannotBuild, match="HF_TOKEN"):  # what is asked for next
        build(PAINTER, order)


def test_no_builder_is_told_with_what_else_there_is() -> None:
    with pytest.raises(CannotBuild, match=r"no nobuilder here.*polypod setup"):
        container.builder("nobuilder")


@pytest.mark.parametrize(
    ("name", "registry"),
    [
        ("sam3d", "docker.io"),
        ("me/sam3d:1", "docker.io"),
        ("ghcr.io/me/sam3d", "ghcr.io"),
        ("registry.example:5000/sam3d:1", "registry.example:5000"),
        ("localhost/sam3d", "localhost"),
        ("GHCR.io/me/sam3d", "ghcr.io"),
        ("ghcr.io:443/me/sam3d", "ghcr.io"),
        ("ghcr.io./me/sam3d", "ghcr.io"),
    ],
)
def test_the_registry_of_a_name(name: str, registry: str) -> None:
    assert registry_of(name) == registry


def test_licensed_files_are_not_pushed_to_where_anybody_can_pull(builder: Path) -> None:
    def to(name: str, *, private: bool = False) -> str:
        return push(PAINTER, "painter:1", name, backend="builder", private=private)

    for name in ("me/painter:1", "ghcr.io/me/painter:1"):
        with pytest.raises(CannotBuild, match=r"SMPLX\.npz.*--private"):
            to(name)
    assert not builder.exists()
    assert to("me/painter:1", private=True) == "me/painter:1"
    assert to("registry.example/painter:1") == "registry.example/painter:1"
    pushed = re.findall(r"push (\S+)", builder.read_text())
    assert pushed == ["me/painter:1", "registry.example/painter:1"]
    free = replace(PAINTER, weights=Weights())
    assert push(free, "painter:1", "me/free:1", backend="builder", private=False) == "me/free:1"


@pytest.mark.parametrize("gpu", [True, False])
def test_an_image_without_keys_says_how_it_is_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: bool
) -> None:
    monkeypatch.delenv("NVIDIA_VISIBLE_DEVICES", raising=False)
    if gpu:
        monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", "all")
    settings = Settings(data=tmp_path, host="0.0.0.0", image="painter:1")  # type: ignore[call-arg]
    with pytest.raises(Forbidden) as refused:
        check_address(settings)
    first, second = re.findall(r"docker run .*", refused.value.hint)
    assert ("--gpus all" in first) is gpu
    assert "POLYPOD_API_KEYS=" in first and first.endswith("painter:1")
    assert "-p 127.0.0.1:8000:8000 -e POLYPOD_AUTH=off" in second
