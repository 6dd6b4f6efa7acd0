"""Fixes the sparse attention's backend when it is first imported."""

import os

from .basic import *  # noqa: F403

ATTN = os.environ.get("SPARSE_ATTN_BACKEND") or os.environ.get("ATTN_BACKEND", "sdpa")
