import standin
from utils.smpl_util import SMPLX  # noqa: F401

standin.fill(globals(), "lib/dataset/mesh_util.py")
