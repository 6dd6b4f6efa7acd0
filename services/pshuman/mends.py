"""What is mended in upstream when a worker loads it: small changes, each with the line it is for.

Nothing of upstream is copied; files and lines are of the commit that model.py pins.
"""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace

import numpy as np


def estimate_only(imutils, detector) -> None:
    """lib/pymaf/utils/imutils.py:116,142: a detector loaded anew, and a cut-out that nobody reads.

    Both for every job. It can go when upstream's process_image takes a detector.
    """
    imutils.detection = SimpleNamespace(maskrcnn_resnet50_fpn=lambda pretrained: detector)
    imutils.remove = lambda png: png


def poisson_within(triangles, cpus: int) -> None:
    """lib/dataset/mesh_util.py:1248 asks for 6 threads: with fewer CPUs, Open3D 0.18 crashes.

    It can go when upstream asks for as many as there are.
    """
    make = triangles.create_from_point_cloud_poisson
    triangles.create_from_point_cloud_poisson = lambda points, depth, n_threads: make(
        points, depth=depth, n_threads=min(n_threads, cpus)
    )


def write_unmirrored(reconstruct) -> None:
    """utils/func.py:210: the turntable's cameras are reflections; its mesh is none.

    It can go when that line does.
    """
    write = reconstruct.write_video
    reconstruct.write_video = lambda frames, **more: write([unmirrored(f) for f in frames], **more)


def unmirrored(frame: np.ndarray) -> np.ndarray:
    """Each half of it, colours and normals, by itself."""
    return np.concatenate([half[:, ::-1] for half in np.split(frame, 2, axis=1)], axis=1)


def read_tables_once(reconstruct, mesh_util) -> None:
    """reconstruct.py:361, mesh_util.py:1192: 600 MB of tables are read for each mesh.

    It can go when upstream reads them once.
    """
    for module in (reconstruct, mesh_util):
        module.SMPLX = lru_cache(maxsize=None)(module.SMPLX)
