"""Stages that polypod offers to every model: cut-out, views of a mesh, export.

They run as all stages do, in a worker named `kit`, but with the serving environment's Python:
upstream's pins never have to hold for them, and no model repeats them. Results stay kept when a
model's own code changes, and are made again when the kit's does.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from polypod.image import Url
from polypod.model import KIT, Params, Stage
from polypod.when import When

U2NET = Url(
    "https://github.com/danielgatis/rembg/releases/download/v0.0.0/u2net.onnx",
    to="u2net/u2net.onnx",
    md5="60024c5c889badc19c04ad937298a77b",
)
"""The weights of the background remover, Apache-2.0 (digest: rembg's own list)."""

PERSON_RULES = (
    "One person, standing, from head to feet inside the picture.",
    "At least 128 pixels tall; 768 or more look good. A transparent background is kept as it is.",
)


class CutoutParams(Params):
    """The parameters of `cutout` for things."""

    mask_mode: Literal["auto", "alpha", "center", "full"] = Field(
        "auto",
        description="Where the object is when no `mask` is sent. auto: the picture's transparency, "
        "else a background remover; alpha: the transparency, which must be there; center: the "
        "rectangle from 10 to 90 % of each side; full: the whole picture.",
    )


class PersonParams(CutoutParams):
    """The parameters of `cutout` for people."""

    full_body: bool = Field(
        True,
        description="Refuse a picture whose border cuts off head or feet; false tries it all the "
        "same.",
    )


def cutout(
    *,
    person: bool = False,
    keep_background: bool = False,
    square: float = 0.0,
    side: int = 0,
    matting: bool = False,
    remover: str = "u2net",
    output: str = "input.png",
    params: tuple[str, ...] = ("mask_mode",),
) -> Stage:
    """Stage `cutout`: image, mask -> `output`, RGBA, at most 4096 pixels a side.

    Args:
        person: check that it is one whole person; the parameters are those of `PersonParams`.
        keep_background: only the alpha is changed, to 0 or 255.
        square: crop to the object and centre it in a square of which it fills this share; 0: no.
        side: pixels of that square; 0: as many as the picture has there.
        matting: a soft edge (closed-form matting), where the remover is used.
        remover: a model of rembg, whose `NAME.onnx` lies in `{weights}/u2net`; the model's setting
            `rembg_model` goes before it.
        params: those of the model's that `CutoutParams` has, or `remove_background`, which, false,
            takes a picture without transparency as a whole.
    """
    return Stage(
        "cutout",
        inputs=("image", "mask"),
        outputs=(output,),
        params=(*params, *(("full_body",) if person else ())),
        fixed={
            "person": person,
            "keep_background": keep_background,
            "square": square,
            "side": side,
            "matting": matting,
            "remover": remover,
            "output": output,
        },
        assets=(output,),
        slot="cpu",
        worker=KIT,
        limit_s=120,
    )


def views(source: str, when: tuple[When, ...] = ()) -> Stage:
    """Stage `views`: a mesh that is not the result -> `view_0.png` to `view_3.png`, 512 square.

    Polypod draws the views of a result itself.
    """
    pictures = tuple(f"view_{number}.png" for number in range(4))
    return Stage(
        "views",
        inputs=(source,),
        outputs=pictures,
        fixed={"source": source},
        assets=pictures,
        slot="cpu",
        worker=KIT,
        limit_s=120,
        when=when,
    )


def export(
    source: str,
    *,
    texture: str = "",
    matt: bool = True,
    share: float = 1.0,
    when: tuple[When, ...] = (),
) -> Stage:
    """Stage `export`: a mesh (OBJ or PLY with vertex colours, GLB) -> `model.glb` as ours are.

    Linear vertex colours, normals where the surface is smooth and, if `matt`, no metal, which
    glTF takes for granted where nothing is said. `texture` names the picture (PNG or JPEG) of an
    OBJ with texture coordinates, where an earlier stage leaves one. Axes stay: Y up, facing +Z is
    for the model.
    """
    return Stage(
        "export",
        inputs=(source, texture) if texture else (source,),
        outputs=("model.glb",),
        fixed={"source": source, "texture": texture, "matt": matt},
        assets=("model.glb",),
        slot="cpu",
        worker=KIT,
        share=share,
        limit_s=300,
        when=when,
    )
