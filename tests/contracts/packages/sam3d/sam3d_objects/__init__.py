"""The released code lacks `sam3d_objects.init`, which its package asks for without the variable."""

import os

if not os.environ.get("LIDRA_SKIP_INIT"):
    raise ModuleNotFoundError("No module named 'sam3d_objects.init'")
