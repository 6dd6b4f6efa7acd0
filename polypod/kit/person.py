"""Whether a cut-out shows one whole person, as models of people want it; by its outline alone."""

from __future__ import annotations

import cv2
import numpy as np

from .cutting import BadInput

LEAST_TALL = 128  # pixels
SECOND = 0.25  # of the largest part's area: another person, or something as large
CUT_OFF = 0.35  # of the person's width along the border: more than a head's top or two feet


def check_person(alpha: np.ndarray, full_body: bool) -> None:
    """Raises BadInput with what to do. Alpha: uint8 (height, width)."""
    inside = (alpha > 127).astype(np.uint8)
    parts = sorted(cv2.connectedComponentsWithStats(inside)[2][1:, cv2.CC_STAT_AREA].tolist())
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    tall, wide = (int(np.ptp(at)) + 1 if len(at) else 0 for at in (rows, columns))
    if tall < LEAST_TALL:
        raise BadInput(
            f"The person is {tall} pixels tall; at least {LEAST_TALL} are needed.",
            "Send a larger picture; 768 pixels or more look good.",
        )
    if len(parts) > 1 and parts[-2] > SECOND * parts[-1]:
        raise BadInput(
            "More than one person, or thing, stands in the picture.",
            "Send a picture of one person, or a `mask` that is white where the one is.",
        )
    if not full_body:
        return
    if wide > tall:
        raise BadInput(
            f"The person is wider ({wide} pixels) than tall ({tall}).",
            "Send a picture of one standing person with lowered arms; full_body false tries this "
            "one all the same.",
        )
    for row, what in ((0, "the head"), (-1, "the feet")):
        if inside[row].sum() > CUT_OFF * wide:
            raise BadInput(
                f"The border of the picture cuts off {what}.",
                "Send a picture that shows the whole person, with some space above and below; "
                "full_body false tries this one all the same.",
            )
