import open3d  # noqa: F401  upstream's module imports it and never uses it
import standin

standin.fill(globals(), "SyncHuman/utils/postprocessing_utils.py")
