from __future__ import annotations

import numpy as np
import pytest

from polypod.assets.mesh import Part, Splats, corner_normals, facts


def test_seams_are_no_holes(ball) -> None:
    found = facts((ball(),))
    assert found["triangles"] == 2 * 2 * 64 * 63
    assert found["vertices"] == 128 * 63 + 2
    assert found["watertight"] is True
    assert found["volume"] == pytest.approx(4 / 3 * np.pi, rel=0.01)
    assert np.allclose(found["bounds"], [[-1, -1, -1], [1, 1, 1]], atol=1e-6)


def test_volume_of_several_parts_anywhere(box) -> None:
    one = box()
    far = Part(one.vertices + np.float32(1000), one.faces)
    assert facts((one, far))["volume"] == pytest.approx(16, rel=1e-3)


def test_a_surface_with_a_hole_has_no_volume(ball) -> None:
    whole = ball()
    found = facts((Part(whole.vertices, whole.faces[1:]),))
    assert (found["watertight"], found["volume"]) == (False, None)


def test_a_triangle_turned_over_has_no_volume(box) -> None:
    faces = box().faces.copy()
    faces[0] = faces[0, ::-1]
    assert facts((Part(box().vertices, faces),))["watertight"] is False


def test_points_have_bounds_only() -> None:
    points = np.array([[0, 0, 0], [1, 2, 3]], np.float32)
    found = facts(Splats(points, points, np.ones(2, np.float32)))
    assert (found["triangles"], found["vertices"], found["volume"]) == (0, 2, None)
    assert found["bounds"] == [[0, 0, 0], [1, 2, 3]]


def test_normals_are_smooth_on_a_ball_and_flat_on_a_box(ball, box) -> None:
    round_, flat = ball(), box()
    outward = round_.vertices[round_.faces]
    assert np.einsum("fci,fci->fc", corner_normals((round_,)), outward).min() > 0.99
    assert np.allclose(np.abs(corner_normals((flat,))).max(axis=-1), 1, atol=1e-6)
