"""smplx's body model, as far as upstream's fit makes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class SMPLX:
    made = 0

    def __init__(
        self,
        model_path: str,
        gender: str = "neutral",
        use_pca: bool = True,
        flat_hand_mean: bool = False,
        use_face_contour: bool = False,
    ) -> None:
        path = Path(model_path, f"SMPLX_{gender.upper()}.npz")
        assert path.exists(), f"Path {path} does not exist!"
        type(self).made += 1

    def to(self, device: Any) -> SMPLX:
        return self
