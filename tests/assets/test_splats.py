from __future__ import annotations

import numpy as np

from polypod.assets.mesh import Splats
from polypod.assets.splats import MAX_DRAWN, render_splats

RED, GREEN, BLUE, WHITE = (0.8, 0.05, 0.05), (0.05, 0.6, 0.05), (0.05, 0.05, 0.8), (0.8, 0.8, 0.8)


def cube(count: int, thickness: float | None = None) -> Splats:
    """Points on the four upright sides of a cube: +Z red, +X green, -Z blue, -X white."""
    random = np.random.default_rng(0)
    points, colors = [], []
    for axis, sign, color in ((2, 1, RED), (0, 1, GREEN), (2, -1, BLUE), (0, -1, WHITE)):
        side = random.uniform(-1, 1, (count, 3)).astype(np.float32)
        side[:, axis] = sign
        points.append(side)
        colors.append(np.tile(np.float32(color), (count, 1)))
    axes = None
    if thickness is not None:
        axes = np.tile(np.eye(3, dtype=np.float32) * thickness, (4 * count, 1, 1))
    opacity = np.full(4 * count, 0.9, np.float32)
    return Splats(np.concatenate(points), np.concatenate(colors), opacity, axes)


def seen(picture: np.ndarray) -> str:
    side = len(picture)
    part = slice(side * 45 // 100, side * 55 // 100)
    color = picture[part, part].reshape(-1, 3).mean(axis=0)
    if np.ptp(color) < 40:
        return "white"
    return ("red", "green", "blue")[int(color.argmax())]


def test_the_near_side_hides_the_far_one() -> None:
    for splats in (cube(8000), cube(8000, 0.03)):
        views = list(render_splats(splats, 128))
        assert [seen(view) for view in views] == ["red", "green", "blue", "white"]


def test_a_floater_does_not_make_the_object_small() -> None:
    given = cube(4000, 0.03)
    points = given.points.copy()
    points[:5] *= 1000
    front = next(render_splats(Splats(points, given.colors, given.opacity, given.axes), 128))
    red = front[..., 0].astype(int) - front[..., 2] > 60
    assert red.mean() > 0.2


def test_what_is_clear_is_not_seen() -> None:
    given = cube(2000, 0.03)
    clear = Splats(given.points, given.colors, np.zeros_like(given.opacity), given.axes)
    assert np.ptp(next(render_splats(clear, 64)).astype(int)[..., 0] * 1.0) < 60


def test_one_point_and_too_many_are_drawn() -> None:
    one = Splats(np.zeros((1, 3), np.float32), np.float32([RED]), np.ones(1, np.float32))
    assert len(list(render_splats(one, 64))) == 4
    many = cube(MAX_DRAWN // 4 + 1000)
    assert seen(next(render_splats(many, 64))) == "red"
