"""Open3D's ray casting as the worker calls it, on Embree."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene


class Tensor:
    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def numpy(self) -> np.ndarray:
        return self.array


class RaycastingScene:
    def __init__(self) -> None:
        self.scene = EmbreeScene()

    def add_triangles(self, vertex_positions: Tensor, triangle_indices: Tensor) -> int:
        corners, faces = vertex_positions.array, triangle_indices.array
        assert corners.dtype == np.float32 and faces.dtype == np.uint32
        self.triangles = TriangleMesh(self.scene, corners[faces])
        return 0

    def cast_rays(self, rays: Tensor, nthreads: int = 0) -> dict[str, Tensor]:
        assert rays.array.dtype == np.float32
        flat = rays.array.reshape(-1, 6)
        found = self.scene.run(flat[:, :3].copy(), flat[:, 3:].copy(), output=1)
        hit = found["primID"] >= 0
        shape = rays.array.shape[:-1]
        length = np.linalg.norm(found["Ng"], axis=1, keepdims=True)
        normals = np.where(hit[:, None], found["Ng"] / np.maximum(length, 1e-20), 0)
        distance = np.where(hit, found["tfar"], np.inf)
        return {
            "primitive_normals": Tensor(normals.reshape(*shape, 3)),
            "t_hit": Tensor(distance.reshape(shape)),
        }


core = SimpleNamespace(Tensor=Tensor)
t = SimpleNamespace(geometry=SimpleNamespace(RaycastingScene=RaycastingScene))
