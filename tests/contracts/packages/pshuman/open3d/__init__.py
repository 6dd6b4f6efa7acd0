"""Open3D's Poisson reconstruction, as far as it is asked for threads."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any


def create_from_point_cloud_poisson(
    pcd: Any,
    depth: int = 8,
    width: float = 0,
    scale: float = 1.1,
    linear_fit: bool = False,
    n_threads: int = -1,
) -> Any:
    """Ends the process where it is asked for more threads than there are CPUs, as 0.18 does."""
    if n_threads > len(os.sched_getaffinity(0)):
        os.abort()
    return pcd, [1.0]


geometry = SimpleNamespace(
    TriangleMesh=SimpleNamespace(create_from_point_cloud_poisson=create_from_point_cloud_poisson)
)
