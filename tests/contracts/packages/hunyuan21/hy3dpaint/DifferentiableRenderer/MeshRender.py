import standin

standin.fill(globals(), "hy3dpaint/DifferentiableRenderer/MeshRender.py")
meshVerticeInpaint = object()  # of the other compiled extension
