"""Images built by BentoML: the bento is the build context, our Dockerfile says what is done in it.

`bentoml containerize` writes a Dockerfile of its own; here only its builders are used (docker,
podman, buildah and others), with ours.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import yaml

from polypod.build.declared import ROOT, serving_lock
from polypod.build.dockerfile import LICENSED, dockerfile, image_name
from polypod.build.licensed import LABEL, names, what_is_wrong
from polypod.build.steps import revision_argument
from polypod.model import Model

OPEN_REGISTRIES = (
    *("docker.io", "registry-1.docker.io", "registry.hub.docker.com", "ghcr.io", "quay.io"),
    *("public.ecr.aws", "registry.gitlab.com", "ttl.sh"),
)
"""Registries where anybody may pull unless the repository was made private."""
_UPLOADS = re.compile(r"\bpush\b(?!=(0|f|false)\b)|type=(registry|gha|s3|azblob)\b", re.IGNORECASE)
"""In a builder's option: the image, or a cache of its layers, goes elsewhere as it is built."""
TOKEN = "HF_TOKEN"  # noqa: S105  its name


class CannotBuild(ValueError):
    """What is missing for a build, and what to do."""


@dataclass(frozen=True)
class Order:
    """What the builder adds to the declaration."""

    backend: str = "docker"
    tag: str = ""
    licensed: Path | None = None
    revisions: Mapping[str, str] = field(default_factory=dict[str, str])
    """Commit by Hugging Face repository, where none is declared."""
    options: tuple[str, ...] = ()
    """Further options of the backend's `build`."""


def build(model: Model, order: Order) -> str:
    """Build the image; returns its tag. Raises CannotBuild before anything slow begins."""
    check_supplied(model, order.licensed, order.revisions)
    held = names(model.weights.licensed)
    if held and (upload := _upload(order.options)):
        raise CannotBuild(
            f"The image would hold files that may not be passed on ({held}), and {upload} sends "
            "it, or its layers, elsewhere as it is built. Leave that out and use `polypod push`, "
            "which looks where it goes."
        )
    if model.weights.gated and not os.environ.get(TOKEN):
        raise CannotBuild(
            f"The weights of {model.name} are gated. Accept their licence on the hub, then set "
            f"{TOKEN} to a token of that account. It is used as a build secret, never kept."
        )
    program = builder(order.backend)
    context = build_bento(model)
    path = context / "env" / "docker" / "Dockerfile"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dockerfile(model, serving_lock()))
    tag = order.tag or f"{image_name(model)}:{context.name}"
    command = build_command(model, order, program, context, tag)
    print("$", shlex.join(command), file=sys.stderr, flush=True)
    subprocess.run(command, check=True, env=os.environ | {"DOCKER_BUILDKIT": "1"})
    if held:
        print(f"{tag} is private: it holds files under licence ({held}).", file=sys.stderr)
    return tag


def build_command(
    model: Model, order: Order, program: str, context: Path, tag: str
) -> Sequence[str]:
    """The builder's command line. Secrets are named in it, never said."""
    command = [program, "build", "-f", str(context / "env" / "docker" / "Dockerfile"), "-t", tag]
    command += ["--build-arg", f"IMAGE={tag}"]
    if model.weights.gated:
        command += ["--secret", f"id={TOKEN},env={TOKEN}"]
    if model.weights.licensed:
        command += ["--build-context", f"{LICENSED}={order.licensed}"]
    for repo, revision in order.revisions.items():
        command += ["--build-arg", f"{revision_argument(repo)}={revision}"]
    return [*command, *order.options, str(context)]


def check_supplied(model: Model, licensed: Path | None, revisions: Mapping[str, str]) -> None:
    """Raises CannotBuild unless all is there that the declaration leaves to the builder."""
    if wrong := what_is_wrong(model.weights.licensed, licensed):
        raise CannotBuild(wrong)
    for source in model.weights.hub:
        given = revisions.get(source.repo, source.revision)
        if not re.fullmatch(r"[0-9a-f]{40}", given):
            raise CannotBuild(
                f"No revision of {source.repo} is declared. Look at its history on the hub and "
                f"give the commit: --revision {source.repo}=COMMIT."
            )
    unknown = sorted(set(revisions) - {source.repo for source in model.weights.hub})
    if unknown:
        raise CannotBuild(f"{model.name} takes no weights from {', '.join(unknown)}.")


def _upload(options: Sequence[str]) -> str:
    """The option that sends away what is built; empty: none does."""
    for before, option in zip(("", *options), options, strict=False):
        if "--cache-from" not in (before, option.partition("=")[0]) and _UPLOADS.search(option):
            return option
    return ""


def builder(name: str) -> str:
    """The program of a builder that works here."""
    program = shutil.which(name)
    command = [name, "version"] if name == "buildah" else [name, "info"]
    if program is None:
        why = f"There is no {name} here."
    else:
        said = subprocess.run(command, capture_output=True, text=True, check=False)
        if said.returncode == 0:
            return program
        why = f"{name} does not work here: {_last_line(said.stderr or said.stdout)}"
    raise CannotBuild(
        f"{why} Install or start one, or name another: --backend podman or buildah. On a rented "
        "machine that is itself a container, use `polypod setup` instead."
    )


def build_bento(model: Model) -> Path:
    """`bentoml build` from the root bentofile.yaml; returns the bento's folder."""
    built = [sys.executable, "-m", "bentoml", "build", "--arg", f"model={model.name}"]
    built += ["--output", "tag"]
    out = subprocess.run(built, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
    tag = next(x for x in out.split() if x.startswith("__tag__:")).removeprefix("__tag__:")
    import bentoml

    return Path(bentoml.get(tag).path)


def context_files() -> list[str]:
    """What the build context holds, as the Dockerfile names it."""
    from bentoml._internal.bento.build_config import BentoPathSpec

    told = cast("dict[str, list[str]]", yaml.safe_load((ROOT / "bentofile.yaml").read_text()))
    spec = BentoPathSpec(told["include"], told.get("exclude", []), str(ROOT))  # pyright: ignore
    tops = {pattern.split("/")[0] for pattern in told["include"]}
    found = (path for top in tops for path in [ROOT / top, *(ROOT / top).rglob("*")])
    names = (path.relative_to(ROOT).as_posix() for path in found if path.is_file())
    return sorted(f"src/{name}" for name in names if spec.includes(name))


def push(model: Model, image: str, to: str, *, backend: str, private: bool) -> str:
    """Push `image` under the name `to`, which says the registry. Raises CannotBuild: refused."""
    open_to_all = registry_of(to) in OPEN_REGISTRIES and not private
    if open_to_all and (held := names(model.weights.licensed)):
        raise _refused(held, to)
    program = builder(backend)
    if open_to_all and (held := label_of(program, image)):
        raise _refused(held, to)
    subprocess.run([program, "tag", image, to], check=True)
    subprocess.run([program, "push", to], check=True)
    return to


def _refused(held: str, to: str) -> CannotBuild:
    return CannotBuild(
        f"The image holds files that may not be passed on ({held}), and anybody can pull from "
        f"{registry_of(to)} unless the repository is private. If it is, say so: --private."
    )


def label_of(program: str, image: str) -> str:
    """Which licensed files an image says that it holds, by whatever declaration it was built."""
    labels = f'{{{{index .Config.Labels "{LABEL}"}}}}'
    look = [program, "image", "inspect", "--format", labels, image]
    if Path(program).name == "buildah":
        labels = labels.replace(".Config", ".OCIv1.Config")
        look = [program, "inspect", "--type", "image", "--format", labels, image]
    said = subprocess.run(look, capture_output=True, text=True, check=False)
    if said.returncode:
        raise CannotBuild(f"What {image} holds cannot be told: {_last_line(said.stderr)}")
    return said.stdout.strip().removeprefix("<no value>")


def registry_of(reference: str) -> str:
    """The host in an image's name, with a port that is not HTTPS's; `docker.io` where none is."""
    first = reference.split("/")[0].lower().removesuffix(":443").removesuffix(".")
    named = "/" in reference and ("." in first or ":" in first or first == "localhost")
    return first if named and first not in ("index.docker.io",) else "docker.io"


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it ended")
