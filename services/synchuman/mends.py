"""What is changed in upstream's code when a worker starts, and when each of it can go.

P1, P2 and PP are the files that worker.py names, at the commit that model.py pins.
"""

from __future__ import annotations

import functools
import os
import sys
import types


def keep_off_the_network() -> None:
    """P1:134 and P2:86 ask GitHub for DINOv2's code, P2 twice; it lies in SYNCHUMAN_DINO.

    To be left out when upstream takes a folder.
    """
    import torch

    load_hub = torch.hub.load

    @functools.cache
    def load_local(repo_or_dir, model, **options):
        return load_hub(os.environ["SYNCHUMAN_DINO"], model, source="local", **options)

    torch.hub.load = load_local


def leave_out() -> None:
    """Packages that upstream imports and a job does not need: P1:20 rembg (for pictures without
    transparency), PP:23 open3d (nothing), flexicubes.py:11 kaolin (to compare shapes).

    To be left out, each, when upstream no longer imports it.
    """

    def check_tensor(tensor, shape=None, throw=True):
        return tensor.dim() == len(shape) and all(
            wanted in (None, found) for wanted, found in zip(shape, tensor.shape, strict=True)
        )

    for name in ("rembg", "open3d", "kaolin.utils.testing"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["kaolin.utils.testing"].check_tensor = check_tensor


def mend_fill_holes(post) -> None:
    """`_fill_holes` gives three values always: PP:244 gives two where all faces are visible, and
    PP:354 counts a mask that PP:336 makes only where something is cut off.

    To be left out when its callers (PP:407, 425) and its ends agree.
    """
    fill = post._fill_holes

    @functools.wraps(fill)
    def filled(*args, **options):
        try:
            made = fill(*args, **options)
        except UnboundLocalError as error:  # its holes are closed by then
            trace = error.__traceback__
            while trace.tb_next:
                trace = trace.tb_next
            names = trace.tb_frame.f_locals
            made = names["verts"], names["faces"]
        return made if len(made) == 3 else (*made, 0)

    post._fill_holes = filled


def first_of(error: BaseException) -> BaseException:
    """The error in whose handling this one was raised, and so on."""
    while error.__context__ is not None:
        error = error.__context__
    return error
