import standin
from lib.dataset.mesh_util import poisson  # noqa: F401  what upstream imports, a worker may mend
from tqdm import tqdm  # noqa: F401
from utils.smpl_util import SMPLX  # noqa: F401
from utils.video_utils import write_video  # noqa: F401

standin.fill(globals(), "reconstruct.py")
