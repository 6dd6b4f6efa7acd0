"""rembg as the worker calls it: the object is what is darker than the picture's first pixel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image


class Session:
    def __init__(self, model_name: str) -> None:
        self.model_name = model_name


def new_session(model_name: str = "u2net", *args: Any, **kwargs: Any) -> Session:
    assert Path(os.environ["U2NET_HOME"], f"{model_name}.onnx").is_file(), "it would download"
    return Session(model_name)


def remove(
    data: Image.Image,
    alpha_matting: bool = False,
    alpha_matting_foreground_threshold: int = 240,
    alpha_matting_background_threshold: int = 10,
    alpha_matting_erode_size: int = 10,
    session: Session | None = None,
    only_mask: bool = False,
    post_process_mask: bool = False,
    bgcolor: tuple[int, int, int, int] | None = None,
    force_return_bytes: bool = False,
    *args: Any,
    **kwargs: Any,
) -> Image.Image:
    """With a faint haze everywhere, as the real one leaves it."""
    assert session is not None and data.mode == "RGB"
    background = data.convert("L").getpixel((0, 0))
    alpha = data.convert("L").point(lambda value: 255 if value < background - 20 else 3)
    cut = data.convert("RGBA")
    cut.putalpha(alpha)
    return cut
