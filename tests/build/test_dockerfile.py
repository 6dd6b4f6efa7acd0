"""The Dockerfile as text: layers in order, everything pinned, no secret in it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess

import pytest

from polypod.build.container import context_files
from polypod.build.declared import ROOT, declaration, serving_lock
from polypod.build.dockerfile import dockerfile
from polypod.model import Model
from tests.build.painter import COMMIT, DIGEST, OTHER, PAINTER

NAMES = sorted(path.parent.name for path in (ROOT / "services").glob("*/model.py"))
MODELS = [PAINTER, *map(declaration, NAMES)]


def instructions(text: str) -> list[str]:
    """One per line, without comments, continuations joined."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return [line for line in joined.splitlines() if line.strip()]


def position(lines: list[str], part: str) -> int:
    found = [number for number, line in enumerate(lines) if part in line]
    assert found, f"{part} is nowhere in the Dockerfile"
    return found[0]


def test_layers_stand_in_the_order_of_how_seldom_they_change() -> None:
    lines = instructions(dockerfile(PAINTER, serving_lock()))
    order = [
        "FROM nvidia/cuda",
        "apt-get install",
        "uv.lock",
        "uv venv --clear --python 3.10",
        "torch==2.5.1+cu121",
        "kaolin==0.17.0",
        "--require-hashes -r /opt/polypod/build/requirements.lock",
        "git.example/meta/painter",
        "git.example/nv/nvdiffrast",
        "src/painter/raster",
        "compileall /opt/polypod/painter/src/painter",
        "bake.py hub",
        "bake.py url",
        "bake.py licensed",
        "patch.py /opt/polypod/painter/weights/painter",
        "bake.py list",
        "COPY src/requirements/serving.lock",
        "COPY src /opt/polypod/app",
        "ENTRYPOINT",
    ]
    found = [position(lines, part) for part in order]
    assert found == sorted(found)


def test_nothing_before_the_code_copies_what_changes_often() -> None:
    """Else a changed line of code would make every layer after it anew."""
    lines = instructions(dockerfile(PAINTER, serving_lock()))
    copies = [line.split()[1] for line in lines if line.startswith("COPY")]
    assert copies == [
        "src/services/painter/requirements.lock",
        "src/polypod/build/bake.py",
        "src/requirements/serving.lock",
        "src",
    ]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_everything_that_is_fetched_is_pinned(model: Model) -> None:
    lines = instructions(dockerfile(model, serving_lock()))
    for line in lines:
        for fetch in re.findall(r"git -C \S+ fetch [^&]*", line):
            assert re.fullmatch(r"[0-9a-f]{40}", fetch.split()[-1]), fetch
        for install in re.findall(r"pip install [^&|]*", line):
            assert "--no-deps" in install, install
            local = re.search(r"--no-build-isolation.* /opt/polypod/\S+\s*$", install)
            given = shlex.split(line.split("|")[0])[3:] if "-r -" in install else []
            exact = given and all("==" in package for package in given)
            assert "--require-hashes" in install or local or exact, install
        for kind, plan in re.findall(r"bake\.py (hub|url|licensed) '(\{.*?\})'", line):
            told = json.loads(plan)
            if kind == "hub":
                given = re.fullmatch(r"[0-9a-f]{40}", told["revision"])
                assert given or "--revision" in line, told["repo"]
    assert not re.search(r"\b(curl|wget)\b|latest", "\n".join(lines))


def test_a_revision_that_nobody_knows_is_asked_for_and_the_build_fails_without() -> None:
    text = dockerfile(PAINTER, serving_lock())
    assert "ARG REVISION_META_LATER\n" in text
    assert '--revision "$REVISION_META_LATER"' in text


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_no_secret_is_in_it(model: Model) -> None:
    text = dockerfile(model, serving_lock())
    assert not re.search(r"(ARG|ENV)\s+\S*(TOKEN|KEY|PASSWORD|SECRET)", text)
    gated = [line for line in instructions(text) if '"gated": true' in line]
    assert all("--mount=type=secret,id=HF_TOKEN" in line for line in gated)
    assert len(gated) == sum(source.gated for source in model.weights.hub)


def test_sources_and_digests_of_the_declaration_are_used() -> None:
    text = dockerfile(PAINTER, serving_lock())
    assert f"FROM nvidia/cuda:12.1.1-cudnn8-devel-ubuntu22.04@sha256:{DIGEST}" in text
    assert f"--hash=sha256:{DIGEST}" in text
    assert f"echo {COMMIT} > /opt/polypod/painter/src/painter/.commit" in text
    assert f"echo {OTHER} > /opt/polypod/painter/weights/hub/dino_main/.commit" in text
    assert "submodule update -q --init --recursive --depth 1 third_party/glm" in text
    assert "TORCH_CUDA_ARCH_LIST='8.0;8.6;8.9;9.0' FORCE_CUDA=1" in text
    assert "--find-links https://pages.example/kaolin.html" in text


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_command_is_one_that_a_shell_can_read(model: Model) -> None:
    for line in instructions(dockerfile(model, serving_lock())):
        if line.startswith("RUN "):
            words = line.removeprefix("RUN ").split(" ")
            command = " ".join(word for word in words if not word.startswith("--mount="))
            subprocess.run(["sh", "-nc", command], check=True)
            assert shlex.split(command)


def test_inflate_is_small_and_asks_for_nothing() -> None:
    text = dockerfile(declaration("inflate"), serving_lock())
    assert "FROM debian:" in text
    assert "bake.py" not in text and "build-essential" not in text and "--mount" not in text


def test_only_an_image_whose_model_cuts_out_has_the_background_remover() -> None:
    cuts = [model.name for model in MODELS if model.removes_backgrounds]
    assert "sam3d" in cuts and "inflate" not in cuts
    for model in MODELS:
        lines = instructions(dockerfile(model, serving_lock()))
        installed = [
            at for at, line in enumerate(lines) if "-r /opt/polypod/build/cutout.lock" in line
        ]
        assert len(installed) == (model.name in cuts)
        assert all(at < lines.index("COPY src /opt/polypod/app") for at in installed)


def test_what_is_copied_is_in_the_context() -> None:
    files = context_files()
    for model in map(declaration, NAMES):
        for line in instructions(dockerfile(model, serving_lock())):
            if line.startswith("COPY"):
                source = line.split()[1]
                assert any(name == source or name.startswith(f"{source}/") for name in files), line
    assert "src/polypod/build/entry.sh" in files
    assert not [name for name in files if "/tests/" in name or ".git/" in name or "/." in name]


def test_the_image_listens_for_others_and_knows_its_model() -> None:
    text = dockerfile(declaration("inflate"), serving_lock())
    for told in ('POLYPOD_HOST="0.0.0.0"', 'POLYPOD_MODEL="inflate"', 'POLYPOD_DATA="/data"'):
        assert told in text
    assert 'ENTRYPOINT ["tini", "--", "/opt/polypod/bin/entry"]' in text
    assert "EXPOSE 8000" in text
