"""pymeshlab as the worker calls it: what it cannot keep whole it cuts off."""

from __future__ import annotations

import numpy as np


class Mesh:
    def __init__(self, vertex_matrix: np.ndarray, face_matrix: np.ndarray) -> None:
        self.vertices, self.faces = np.asarray(vertex_matrix), np.asarray(face_matrix)

    def vertex_matrix(self) -> np.ndarray:
        return self.vertices

    def face_matrix(self) -> np.ndarray:
        return self.faces


class MeshSet:
    def add_mesh(self, mesh: Mesh) -> None:
        self.mesh = mesh

    def current_mesh(self) -> Mesh:
        return self.mesh

    def meshing_decimation_quadric_edge_collapse(
        self, targetfacenum: int, preservetopology: bool
    ) -> None:
        assert not preservetopology
        self.mesh.faces = self.mesh.faces[:targetfacenum]
