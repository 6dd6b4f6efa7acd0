"""The compiled rasteriser, as far as the worker looks at it."""

import os

if not os.environ.get("STANDIN_NOT_COMPILED"):
    rasterize = object()
