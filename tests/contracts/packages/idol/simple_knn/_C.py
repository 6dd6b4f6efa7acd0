"""simple_knn's one function, which takes points on a GPU and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def distCUDA2(points: Any) -> Any:
    """(N,) the mean squared distance to the three nearest other points."""
    assert str(points.device) == "cuda" and points.dtype == np.float32
    between = ((points.array[:, None] - points.array[None]) ** 2).sum(-1)
    return torch.tensor(np.sort(between, axis=1)[:, 1:4].mean(1), device="cuda")
