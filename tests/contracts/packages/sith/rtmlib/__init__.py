"""rtmlib's RTMPose, with its parameters: sees a standing skeleton in the box that it is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np

BODY = [(50, 8), (52, 6), (48, 6), (55, 7), (45, 7), (62, 20), (38, 20), (70, 35), (30, 35)]
BODY += [(75, 48), (25, 48), (57, 50), (43, 50), (58, 72), (42, 72), (58, 92), (42, 92)]
FEET = [(60, 98), (63, 97), (57, 96), (40, 98), (37, 97), (43, 96)]
UNSURE = 20  # the right big toe


def skeleton() -> np.ndarray:
    """COCO-WholeBody's 133 points, in hundredths of the box."""
    face = [(46 + n % 9, 4 + n // 9) for n in range(68)]
    left = [(75 + n % 4, 48 + n // 4) for n in range(21)]
    right = [(25 - n % 4, 48 + n // 4) for n in range(21)]
    return np.array([*BODY, *FEET, *face, *left, *right], float)


class RTMPose:
    def __init__(
        self,
        onnx_model: str,
        model_input_size: tuple = (192, 256),
        mean: tuple = (123.675, 116.28, 103.53),
        std: tuple = (58.395, 57.12, 57.375),
        to_openpose: bool = False,
        backend: str = "onnxruntime",
        device: str = "cpu",
    ) -> None:
        assert Path(onnx_model).name == "dw-ll_ucoco_384.onnx"
        assert (model_input_size, backend, device) == ((288, 384), "onnxruntime", "cpu")
        assert not to_openpose, "its OpenPose has 18 points of the body"

    def __call__(self, image: np.ndarray, bboxes: tuple = ()) -> tuple[np.ndarray, np.ndarray]:
        assert image.shape == (1024, 1024, 3) and image.dtype == np.uint8
        ((left, top, right, bottom),) = bboxes
        sure = np.full(133, 0.9)
        sure[UNSURE], sure[0] = 0.1, 1.02
        if image[512, 512, 2] > 200:  # someone in blue: nobody
            sure[:] = 0.05
        points = skeleton() / 100 * [right - left, bottom - top] + [left, top]
        return points[None], sure[None]
