"""What `input.png` is for every way in which a picture can say where its object is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from polypod.kit.cutting import BadInput, NotInstalled, Remover, clean, cut


def photo(folder: Path, alpha: bool = False, size: tuple[int, int] = (200, 120)) -> Path:
    """A red bar of 40 x 80 pixels at (60, 20) before grey; its alpha says where, if asked for."""
    picture = Image.new("RGB", size, (128, 128, 128))
    ImageDraw.Draw(picture).rectangle((60, 20, 99, 99), fill=(200, 0, 0))
    if alpha:
        mask = Image.new("L", size)
        ImageDraw.Draw(mask).rectangle((60, 20, 99, 99), fill=255)
        picture.putalpha(mask)
    picture.save(folder / "photo.png")
    return folder / "photo.png"


def mask_of(folder: Path, size: tuple[int, int] = (200, 120)) -> Path:
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).rectangle((100, 0, 149, 119), fill=255)
    mask.save(folder / "mask.png")
    return folder / "mask.png"


def alpha_box(picture: Image.Image) -> tuple[int, int, int, int] | None:
    return picture.getchannel("A").getbbox()


def test_own_transparency_is_kept_and_what_is_behind_it_is_cleared(tmp_path: Path) -> None:
    made = cut(photo(tmp_path, alpha=True), None, Remover({}))
    assert made.mode == "RGBA" and made.size == (200, 120)
    assert alpha_box(made) == (60, 20, 100, 100)
    assert made.getpixel((0, 0)) == (255, 255, 255, 0)
    assert made.getpixel((70, 50)) == (200, 0, 0, 255)


def test_a_mask_wins_over_transparency(tmp_path: Path) -> None:
    made = cut(photo(tmp_path, alpha=True), mask_of(tmp_path), Remover({}))
    assert alpha_box(made) == (100, 0, 150, 120)


@pytest.mark.parametrize(
    ("mode", "box"), [("center", (20, 12, 180, 108)), ("full", (0, 0, 200, 120))]
)
def test_modes_that_need_no_remover(mode: str, box: tuple[int, ...], tmp_path: Path) -> None:
    made = cut(photo(tmp_path), None, Remover({}), mode=mode)
    assert alpha_box(made) == box


def test_alpha_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no transparent part"):
        cut(photo(tmp_path), None, Remover({}), mode="alpha")


def test_with_the_background_kept_only_the_alpha_changes(tmp_path: Path) -> None:
    made = cut(photo(tmp_path, alpha=True), None, Remover({}), keep_background=True)
    assert made.getpixel((0, 0)) == (128, 128, 128, 0)
    assert set(np.unique(np.asarray(made.getchannel("A")))) == {0, 255}


@pytest.mark.parametrize(("side", "pixels"), [(0, 94), (512, 512)])
def test_in_a_square_the_object_is_centred_and_fills_the_share(
    side: int, pixels: int, tmp_path: Path
) -> None:
    made = cut(photo(tmp_path, alpha=True), None, Remover({}), square=0.85, side=side)
    assert made.size == (pixels, pixels)
    box = alpha_box(made)
    assert box is not None
    left, top, right, bottom = box
    assert (bottom - top) / pixels == pytest.approx(0.85, abs=0.01)
    assert (right - left) / (bottom - top) == pytest.approx(0.5, abs=0.01)
    assert abs(left - (pixels - right)) <= 1 and abs(top - (pixels - bottom)) <= 1


def test_haze_and_specks_are_dropped_and_parts_stay() -> None:
    alpha = np.full((100, 100), 3, np.uint8)
    alpha[10:60, 10:60] = 255  # 2500 pixels
    alpha[70:80, 70:80] = 200  # 100: a part
    alpha[90:93, 5:8] = 255  # 9: a speck
    kept = clean(alpha, specks=0.01)
    assert kept[0, 0] == 0 and kept[91, 6] == 0
    assert kept[75, 75] == 200 and kept[30, 30] == 255
    assert clean(alpha, specks=0.05)[75, 75] == 0


@pytest.mark.parametrize("size", [None, (5, 40)])
def test_nothing_or_too_little_is_refused_with_what_to_do(
    size: tuple[int, int] | None, tmp_path: Path
) -> None:
    picture = Image.new("RGBA", (100, 100))
    if size:
        picture.paste((255, 0, 0, 255), (10, 10, 10 + size[0], 10 + size[1]))
    picture.save(tmp_path / "empty.png")
    with pytest.raises(BadInput, match="too small, or none was found") as refused:
        cut(tmp_path / "empty.png", None, Remover({}))
    assert "Send a picture" in refused.value.hint


def test_a_mask_of_another_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="differ in shape") as refused:
        cut(photo(tmp_path), mask_of(tmp_path, (120, 120)), Remover({}))
    assert "200 x 120" in refused.value.hint


def test_huge_pictures_are_made_smaller(tmp_path: Path) -> None:
    made = cut(photo(tmp_path, alpha=True, size=(8000, 400)), None, Remover({}))
    assert made.size == (4096, 205)


def test_without_a_remover_nothing_is_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("U2NET_HOME", str(tmp_path / "none"))
    with pytest.raises(NotInstalled, match=r"u2net\.onnx") as refused:
        cut(photo(tmp_path), None, Remover({"weights": str(tmp_path)}))
    assert "transparent background" in refused.value.hint
