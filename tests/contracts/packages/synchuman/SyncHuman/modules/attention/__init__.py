"""Fixes the attention's backend when it is first imported."""

import os

import standin

BACKEND = os.environ.get("ATTN_BACKEND", "flash_attn")

standin.fill(globals(), "SyncHuman/modules/attention/__init__.py")
