"""The kit's worker: runs its stages in the serving environment, through the harness as all do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from .cutting import Remover, cut
from .person import check_person

if TYPE_CHECKING:
    from polypod.assets.mesh import Mesh


def load(worker: str, settings: dict[str, Any]) -> Remover:
    return Remover(settings)


def run(stage: str, remover: Remover, job: Any) -> None:
    {"cutout": cutout, "views": views, "export": export}[stage](remover, job)


def cutout(remover: Remover, job: Any) -> None:
    params = job.params
    mask = Path(job.inputs["mask"]) if "mask" in job.inputs else None

    def remove(picture: Image.Image) -> Image.Image:
        job.progress(0.1, "Removing the background")
        return remover(picture, params.remover, params.matting)

    cut(
        Path(job.inputs["image"]),
        mask,
        remove,
        mode=params.get("mask_mode", "auto" if params.get("remove_background", True) else "keep"),
        keep_background=params.keep_background,
        specks=0.05 if params.person else 0.01,
        square=params.square,
        side=params.side,
        check=(lambda alpha: check_person(alpha, params.full_body)) if params.person else None,
    ).save(job.outputs / params.output, compress_level=1)


def views(_: Remover, job: Any) -> None:
    import cv2

    from polypod.assets.render import render

    for number, picture in enumerate(render(mesh_of(job), 512)):
        job.progress(number / 4, f"View {number + 1} of 4")
        png = cv2.imencode(".png", picture[..., ::-1])[1].tobytes()
        (job.outputs / f"view_{number}.png").write_bytes(png)


def export(_: Remover, job: Any) -> None:
    from polypod.assets import formats
    from polypod.assets.mesh import Texture

    job.progress(0.1, "Writing model.glb")
    changed: dict[str, Any] = {"metallic": 0.0} if job.params.matt else {}
    if job.params.texture in job.inputs:
        picture = Path(job.inputs[job.params.texture]).read_bytes()
        kind = "image/png" if picture.startswith(b"\x89PNG") else "image/jpeg"
        changed["texture"] = Texture(picture, kind)
    mesh = tuple(replace(p, material=replace(p.material, **changed)) for p in mesh_of(job))
    formats.write(mesh, job.outputs / "model.glb", "glb")


def mesh_of(job: Any) -> Mesh:
    from polypod.assets import formats

    source = job.params.source
    shape = formats.read(Path(job.inputs[source]), source.rpartition(".")[2])
    assert isinstance(shape, tuple), f"{source} has points and no triangles"
    return shape
