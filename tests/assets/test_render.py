from __future__ import annotations

import numpy as np
import pytest

from polypod.assets.mesh import Material, Part
from polypod.assets.render import render

RED, GREEN, BLUE, WHITE = (0.8, 0.05, 0.05), (0.05, 0.6, 0.05), (0.05, 0.05, 0.8), (0.8, 0.8, 0.8)


def middle(picture: np.ndarray) -> np.ndarray:
    side = len(picture)
    part = slice(side * 45 // 100, side * 55 // 100)
    return picture[part, part].reshape(-1, 3).mean(axis=0)


def strongest(color: np.ndarray) -> str:
    if color.max() - color.min() < 30:
        return "white"
    return ("red", "green", "blue")[int(color.argmax())]


def test_front_right_back_left_are_where_they_should_be(box) -> None:
    sides = {"+z": RED, "+x": GREEN, "-z": BLUE, "-x": WHITE}
    pictures = list(render((box(sides),), 128))
    assert [strongest(middle(p)) for p in pictures] == ["red", "green", "blue", "white"]
    assert all(p.shape == (128, 128, 3) and p.dtype == np.uint8 for p in pictures)


def test_the_plus_x_side_is_at_the_right_hand_in_the_front_view(box) -> None:
    body, arm = box(), box()
    arm = Part(
        arm.vertices * np.float32(0.4) + np.float32([2, 0, 0]),
        arm.faces,
        material=Material((*GREEN, 1.0)),
    )
    front, right, back, left = (p.astype(int) for p in render((body, arm), 128))

    def green(picture: np.ndarray) -> np.ndarray:
        return np.argwhere(picture[..., 1] - picture[..., [0, 2]].max(axis=-1) > 30)

    assert green(front)[:, 1].mean() > 64 + 20
    assert green(back)[:, 1].mean() < 64 - 20
    assert abs(green(right)[:, 1].mean() - 63.5) < 3
    assert len(green(left)) == 0


def test_textures_are_the_right_way_up(box, picture) -> None:
    def halves(pixels: np.ndarray) -> None:
        pixels[:32], pixels[32:] = (220, 30, 30), (30, 30, 220)

    sheet = Part(
        np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32),
        np.array([[0, 1, 2], [0, 2, 3]], np.int32),
        uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32),
        material=Material(texture=picture(halves)),
    )
    front = next(render((sheet,), 128))
    assert strongest(front[40, 64].astype(float)) == "red"
    assert strongest(front[88, 64].astype(float)) == "blue"


def test_a_textured_part_that_no_view_sees_is_no_error(ball, box, picture) -> None:
    hidden = ball(16, picture(lambda pixels: pixels.fill(200)))
    small = Part(
        hidden.vertices * np.float32(0.1), hidden.faces, uv=hidden.uv, material=hidden.material
    )
    around = box({"+z": RED})
    front = next(render((small, around), 64))
    assert strongest(middle(front)) == "red"


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_any_size_and_place_fills_the_picture(ball, scale: float) -> None:
    given = ball(16)
    moved = Part((given.vertices + np.float32([5, -3, 2])) * np.float32(scale), given.faces)
    edges = np.abs(np.diff(next(render((moved,), 128)).astype(int)[..., 0], axis=1)) > 8
    columns = np.flatnonzero(edges.any(axis=0))
    assert 6 <= columns.min() <= 20 and 108 <= columns.max() <= 122


def test_edges_are_smooth_and_the_backdrop_neutral(ball) -> None:
    front = next(render((ball(),), 256)).astype(int)
    assert np.ptp(front[2, 2]) <= 4 and front[2, 2].min() > 180
    row = front[128, :, 0]
    edge = row[: 256 // 2]
    jump = np.abs(np.diff(edge)).max()
    assert jump < 60, "a step this large is an edge without anti-aliasing"
