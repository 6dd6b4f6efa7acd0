"""The commands for images and model environments: what they take. What they do is in `images`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Build and check models"

Name = Annotated[str, typer.Argument(metavar="MODEL", help="One of services/.")]
Backend = Annotated[str, typer.Option(help="docker, podman, buildah or nerdctl.")]
LicensedFiles = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        envvar="POLYPOD_LICENSED",
        help="Files under licence that you got yourself; asked for where it is not given.",
    ),
]
Revisions = Annotated[
    list[str] | None,
    typer.Option("--revision", metavar="REPO=COMMIT", help="Of weights that declare none."),
]


def register(app: typer.Typer) -> None:
    """Add them to the command line."""
    for command, example in (
        (image, "polypod image inflate > Dockerfile"),
        (build, "polypod build inflate --tag registry.example.com/inflate:1"),
        (push, "polypod push inflate registry.example.com/inflate:1"),
        (lock, "polypod lock inflate"),
        (setup, "polypod setup inflate"),
        (doctor, "polypod doctor inflate"),
    ):
        app.command(rich_help_panel=PANEL, epilog=f"Example: [bold]{example}[/bold]")(command)


def image(name: Name) -> None:
    """Print a model's Dockerfile, and which files its build reads."""
    from polypod.cli.images import show_image

    raise typer.Exit(show_image(name))


def build(
    name: Name,
    tag: Annotated[str, typer.Option("--tag", "-t", help="Name of the image.")] = "",
    backend: Backend = "docker",
    licensed: LicensedFiles = None,
    revision: Revisions = None,
    option: Annotated[
        list[str] | None, typer.Option("--opt", help="Passed on to the builder.")
    ] = None,
) -> None:
    """Build a model's image, with its weights in it. HF_TOKEN, if needed, is a build secret."""
    from polypod.cli.images import build_image

    raise typer.Exit(build_image(name, tag, backend, licensed, revision or [], option or []))


def push(
    name: Name,
    to: Annotated[str, typer.Argument(metavar="REGISTRY/NAME:TAG", show_default=False)],
    image: Annotated[str, typer.Option(help="The local image.", show_default="the same")] = "",
    private: Annotated[
        bool, typer.Option(help="Only those with a licence can pull from there.")
    ] = False,
    backend: Backend = "docker",
) -> None:
    """Push an image. Refused where it holds licensed files and anybody might pull it."""
    from polypod.cli.images import push_image

    raise typer.Exit(push_image(name, image or to, to, backend, private))


def lock(
    name: Name,
    check: Annotated[bool, typer.Option(help="Only say whether it still fits.")] = False,
    upgrade: Annotated[bool, typer.Option(help="Take what is newest.")] = False,
) -> None:
    """Resolve a model's requirements.in to requirements.lock, for upstream's Python."""
    from polypod.cli.images import lock_model

    raise typer.Exit(lock_model(name, check, upgrade))


def setup(
    name: Name,
    licensed: LicensedFiles = None,
    revision: Revisions = None,
    no_system: Annotated[
        bool, typer.Option("--no-system", help="System packages are there: install none.")
    ] = False,
) -> None:
    """Make a model's environment on this machine, without a container; then see the doctor."""
    from polypod.cli.images import set_up_model

    raise typer.Exit(set_up_model(name, licensed, revision or [], no_system))


def doctor(
    name: Annotated[
        str, typer.Argument(metavar="MODEL", envvar="POLYPOD_MODEL", help="One of services/.")
    ] = "inflate",
    quick: Annotated[
        bool, typer.Option(help="No imports, and weights by size only: as at each start.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: one document.")] = False,
) -> None:
    """Check a model's environment, weights, GPU and machine. Exit status 1 if it cannot work."""
    from polypod.cli.images import see_doctor

    raise typer.Exit(see_doctor(name, quick, as_json))
