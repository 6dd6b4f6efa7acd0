import bpy  # noqa: F401  upstream's module imports it, unguarded, by way of its GLB writer
import standin

standin.fill(globals(), "hy3dpaint/textureGenPipeline.py")
