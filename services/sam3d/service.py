"""The BentoML service of SAM 3D Objects."""

from polypod.service import service
from services.sam3d.model import MODEL

Sam3d = service(MODEL)
