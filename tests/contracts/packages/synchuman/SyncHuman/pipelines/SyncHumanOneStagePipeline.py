import rembg  # noqa: F401  upstream's module imports it, for pictures without transparency
import standin

standin.fill(globals(), "SyncHuman/pipelines/SyncHumanOneStagePipeline.py")
