"""The BentoML service of SiTH."""

from polypod.service import service
from services.sith.model import MODEL

Sith = service(MODEL)
