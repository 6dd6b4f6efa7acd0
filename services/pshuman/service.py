"""The BentoML service of pshuman."""

from polypod.service import service
from services.pshuman.model import MODEL

Pshuman = service(MODEL)
