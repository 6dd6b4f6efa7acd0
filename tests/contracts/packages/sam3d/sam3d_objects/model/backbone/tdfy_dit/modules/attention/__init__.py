"""Fixes the attention's backend when it is first imported."""

import os

BACKEND = os.environ.get("ATTN_BACKEND", "sdpa")
