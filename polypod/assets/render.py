"""Pictures of a mesh in a small studio: key light, fill, rim, a shadow on the floor.

Rays are cast by Embree (a wheel with nothing to install beside it). Four views with the camera
slightly above: front from +Z, right from +X, back from -Z, left from -X; so the object's +X side
is at the right hand in the front view, and faces the viewer in the right one.
"""

# pyright: basic
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from polypod.assets import colors
from polypod.assets.mesh import Mesh, corner_normals, f32, unit, weld

AZIMUTHS_DEG = (0, 90, 180, 270)
ELEVATION_DEG = 8
FIELD_DEG = 26
MARGIN = 0.86
"""Part of the picture's half side that the object may fill."""

CLAY = f32([0.62, 0.60, 0.58])
BACKDROP = f32([0.80, 0.80, 0.81])
KEY, FILL, RIM = unit(f32([[-0.5, 0.65, 0.75], [0.75, 0.1, 0.6], [0.35, 0.5, -0.8]]))
"""Where the lights are, seen from the camera: right, up, towards the viewer."""
AMBIENT_RAYS = 600_000
RAYS_AT_ONCE = 64_000
"""So few that what belongs to them stays in the processor's cache."""


@dataclass(frozen=True)
class Camera:
    """Looks at the origin; `axes` has the rows right, up, towards the viewer."""

    axes: np.ndarray
    distance: float

    @property
    def eye(self) -> np.ndarray:
        return self.axes[2] * np.float32(self.distance)


def cameras(points: np.ndarray) -> list[Camera]:
    """One for each view, all so far away that (N, 3) `points` fit into every picture."""
    axes = [_axes(azimuth) for azimuth in AZIMUTHS_DEG]
    tangent = np.tan(np.radians(FIELD_DEG / 2)) * MARGIN
    distance = 0.0
    for view in axes:
        x, y, z = (points @ view.T).T
        distance = max(distance, float((z + np.maximum(abs(x), abs(y)) / tangent).max()))
    return [Camera(view, distance) for view in axes]


def _axes(azimuth_deg: float) -> np.ndarray:
    azimuth, elevation = np.radians(azimuth_deg), np.radians(ELEVATION_DEG)
    right = [np.cos(azimuth), 0, -np.sin(azimuth)]
    back = [
        np.sin(azimuth) * np.cos(elevation),
        np.sin(elevation),
        np.cos(azimuth) * np.cos(elevation),
    ]
    return f32([right, np.cross(back, right), back])


def directions(camera: Camera, side: int, rows: slice, columns: slice) -> np.ndarray:
    """(H, W, 3) float32: through the pixels of a part of a picture of `side` pixels."""
    tangent = np.tan(np.radians(FIELD_DEG / 2))
    x = ((np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1) * np.float32(tangent)
    right, up, back = camera.axes
    return x[columns, None] * right - x[rows, None, None] * up - back


def in_unit_ball(points: np.ndarray) -> tuple[np.ndarray, float]:
    """Centre and radius by which everything is moved and scaled before it is drawn."""
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, max(float(np.linalg.norm(high - low)) / 2, 1e-20)


def render(mesh: Mesh, size: int, oversampling: float = 1.5) -> Iterator[np.ndarray]:
    """Yields (size, size, 3) sRGB bytes for each view."""
    scene = _Scene(mesh)
    for camera in cameras(scene.vertices):
        light, covered = scene.look(camera, round(size * oversampling))
        yield develop(light, covered, scene.backdrop(camera, size))


def develop(light: np.ndarray, covered: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    """The finished picture, (H, W, 3) sRGB bytes. Light is premultiplied by what it covers."""
    import cv2

    size = backdrop.shape[:2]
    light = cv2.resize(light, size, interpolation=cv2.INTER_AREA)
    covered = cv2.resize(covered, size, interpolation=cv2.INTER_AREA)[..., None]
    return colors.encode(light + backdrop * (1 - covered))


class _Scene:
    def __init__(self, mesh: Mesh) -> None:
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        vertices, faces = weld(mesh)
        centre, radius = in_unit_ball(vertices[faces].reshape(-1, 3))
        self.vertices = ((vertices - centre) / np.float32(radius)).astype(np.float32)
        self.mesh, self.faces = mesh, faces
        self.starts = np.cumsum([0, *(len(part.faces) for part in mesh)])
        self.textures = [
            colors.decoded(part.material.texture) if part.material.texture else None
            for part in mesh
        ]
        self.normals = corner_normals(mesh)
        self.embree = EmbreeScene()
        self.triangles = TriangleMesh(self.embree, self.vertices[faces])
        self.open = self._openness()
        self.shadow = self._shadow()

    def look(self, camera: Camera, side: int) -> tuple[np.ndarray, np.ndarray]:
        """Light (side, side, 3), linear, and how much of each pixel is covered (side, side)."""
        light = np.zeros((side, side, 3), np.float32)
        covered = np.zeros((side, side), np.float32)
        rows, columns = self._window(camera, side)
        step = max(RAYS_AT_ONCE // max(columns.stop - columns.start, 1), 1)
        for top in range(rows.start, rows.stop, step):
            band = slice(top, min(top + step, rows.stop))
            rays = directions(camera, side, band, columns)
            shape, rays = rays.shape[:2], rays.reshape(-1, 3)
            origins = np.broadcast_to(camera.eye, rays.shape)
            found = self.embree.run(origins, rays, output=1)
            hit = np.flatnonzero(found["primID"] >= 0)
            face, u, v = (found[name][hit] for name in ("primID", "u", "v"))
            weights = np.stack([1 - u - v, u, v], axis=1)
            away = np.einsum("ni,ni->n", found["Ng"][hit], rays[hit]) > 0
            seen = np.zeros((len(rays), 3), np.float32)
            seen[hit] = self._shade(camera, face, weights, rays[hit], away)
            light[band, columns] = seen.reshape(*shape, 3)
            covered[band, columns] = (found["primID"] >= 0).reshape(shape)
        return light, covered

    def _window(self, camera: Camera, side: int) -> tuple[slice, slice]:
        """Rows and columns that the object can be seen in."""
        x, y, z = (self.vertices @ camera.axes.T).T
        scale = 1 / ((camera.distance - z) * np.tan(np.radians(FIELD_DEG / 2)))
        x, y = (x * scale + 1) * side / 2, (1 - y * scale) * side / 2
        rows, columns = (
            slice(max(int(p.min()) - 1, 0), min(int(p.max()) + 2, side)) for p in (y, x)
        )
        return rows, columns

    def _shade(
        self,
        camera: Camera,
        face: np.ndarray,
        weights: np.ndarray,
        rays: np.ndarray,
        away: np.ndarray,
    ) -> np.ndarray:
        """(N, 3) linear light from the hits; `away`: those on the back of their face."""
        normals = np.einsum("nc,nci->ni", weights, self.normals[face])
        normals = unit(normals) @ camera.axes.T
        towards = -unit(rays) @ camera.axes.T
        normals *= np.where(away, np.float32(-1), np.float32(1))[:, None]  # both sides are shown
        facing = np.clip(np.einsum("ni,ni->n", normals, towards), 0, 1)
        open_ = np.einsum("nc,nc->n", weights, self.open[self.faces[face]])
        up = normals @ camera.axes[:, 1]
        key, fill, rim = (normals @ light for light in (KEY, FILL, RIM))
        grazing = (1 - facing) ** 3
        light = (0.30 + 0.10 * up) * open_
        light += 0.62 * (0.5 + 0.5 * key) ** 2 * (0.4 + 0.6 * open_)
        light += 0.16 * np.maximum(fill, 0) * open_
        gleam = 0.20 * grazing * np.maximum(rim + 0.4, 0) * open_
        return self._albedo(face, weights) * light[:, None] + gleam[:, None]

    def _albedo(self, face: np.ndarray, weights: np.ndarray) -> np.ndarray:
        albedo = np.empty((len(face), 3), np.float32)
        for part, texture, start, end in zip(
            self.mesh, self.textures, self.starts[:-1], self.starts[1:], strict=True
        ):
            mine = slice(None) if len(self.mesh) == 1 else (face >= start) & (face < end)
            corners = part.faces[face[mine] - start]
            color = np.tile(f32(part.material.color[:3]), (len(corners), 1))
            if not colors.has_colors(part):
                color[:] = CLAY
            if texture is not None and part.uv is not None:
                uv = np.einsum("nc,nci->ni", weights[mine], part.uv[corners])
                color *= colors.sample(texture, uv)
            if part.colors is not None:
                color *= np.einsum("nc,nci->ni", weights[mine], part.colors[corners, :3])
            albedo[mine] = color
        return albedo

    def _openness(self) -> np.ndarray:
        """(U,) float32: how much of the sky each vertex sees; 1 is all."""
        vertices, faces = self.vertices, self.faces
        normals = np.zeros_like(vertices)
        normals[faces.ravel()] = self.normals.reshape(-1, 3)
        each = int(np.clip(AMBIENT_RAYS // len(vertices), 4, 48))
        open_ = np.empty(len(vertices), np.float32)
        for start in range(0, len(vertices), RAYS_AT_ONCE // each):
            some = slice(start, start + RAYS_AT_ONCE // each)
            rays = _hemisphere(normals[some], each)
            origins = np.repeat(vertices[some] + normals[some] * np.float32(3e-3), each, axis=0)
            blocked = self.embree.run(origins, rays, dists=0.7, query="OCCLUDED") >= 0
            open_[some] = 1 - blocked.reshape(-1, each).mean(axis=1, dtype=np.float32)
        for _ in range(2):
            mean = open_[faces].mean(axis=1)
            total = np.bincount(faces.ravel(), np.repeat(mean, 3), len(vertices))
            open_ = total / np.maximum(np.bincount(faces.ravel(), minlength=len(vertices)), 1)
        return open_.astype(np.float32)

    def _shadow(self, side: int = 72, reach: float = 2.4, each: int = 40) -> np.ndarray:
        """(side, side) float32 over the floor from -reach to reach: 1 is no light."""
        import cv2

        x = ((np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1) * reach
        floor = np.zeros((side, side, 3), np.float32)
        floor[..., 0], floor[..., 2] = x[None], x[:, None]
        floor[..., 1] = self.vertices[:, 1].min() - 1e-3
        floor = floor.reshape(-1, 3)
        up = np.broadcast_to(f32([0, 1, 0]), floor.shape)
        rays = _hemisphere(up, each)
        blocked = self.embree.run(np.repeat(floor, each, axis=0), rays, query="OCCLUDED") >= 0
        dark = blocked.reshape(side, side, each).mean(axis=2, dtype=np.float32)
        edge = np.clip((reach - np.hypot(x[None], x[:, None])) / reach * 2, 0, 1)
        return cv2.GaussianBlur(dark, (0, 0), 1.2) * edge

    def backdrop(self, camera: Camera, side: int) -> np.ndarray:
        """(side, side, 3) float32, linear: wall and floor in one grey, with the shadow."""
        import cv2

        rays = directions(camera, side, slice(None), slice(None))
        floor = self.vertices[:, 1].min()
        down = np.minimum(rays[..., 1], -1e-6)
        place = camera.eye + rays * ((floor - camera.eye[1]) / down)[..., None]
        count, reach = len(self.shadow), 2.4
        x, z = ((place[..., axis] / reach + 1) * count / 2 - 0.5 for axis in (0, 2))
        shadow = cv2.remap(self.shadow, x, z, cv2.INTER_CUBIC, borderMode=cv2.BORDER_CONSTANT)
        shadow = np.where(rays[..., 1] < 0, np.clip(shadow, 0, 1), 0)
        return wall(side) * (1 - 0.75 * shadow[..., None])


def wall(side: int) -> np.ndarray:
    x = (np.arange(side, dtype=np.float32) + 0.5) * 2 / side - 1
    far = np.hypot(x[None], x[:, None] + 0.2)
    return BACKDROP * (1.05 - 0.16 * far**2)[..., None]


def _hemisphere(normals: np.ndarray, each: int) -> np.ndarray:
    """(N * each, 3) float32: directions about (N, 3) normals, more of them along it (cosine)."""
    random = np.random.default_rng(0)
    turn = random.random((len(normals), 1), np.float32)
    steps = np.arange(each, dtype=np.float32)
    radius = np.sqrt((steps + 0.5) / each)
    angle = 2 * np.pi * (turn + steps * np.float32(0.618034))
    side = np.where(abs(normals[:, 1:2]) < 0.9, f32([[0, 1, 0]]), f32([[1, 0, 0]]))
    a = unit(np.cross(normals, side))
    b = np.cross(normals, a)
    rays = (
        (radius * np.cos(angle))[..., None] * a[:, None]
        + (radius * np.sin(angle))[..., None] * b[:, None]
        + np.sqrt(1 - radius**2)[:, None] * normals[:, None]
    )
    return rays.reshape(-1, 3).astype(np.float32)
