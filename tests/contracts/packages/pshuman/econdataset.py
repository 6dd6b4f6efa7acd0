import standin
from lib.common.imutils import econ_process_image  # noqa: F401
from lib.pymaf.utils.imutils import process_image  # noqa: F401

standin.fill(globals(), "econdataset.py")
