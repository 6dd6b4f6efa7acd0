"""As much of torch.utils.data as workers touch themselves."""

from __future__ import annotations

from typing import Any

import torch


def default_collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of one: tensors get a first axis, texts become lists."""
    (row,) = batch
    tensors = {k: v.unsqueeze(0) for k, v in row.items() if isinstance(v, torch.Tensor)}
    return {k: tensors.get(k, [v]) for k, v in row.items()}
