"""The BentoML service of inflate."""

from polypod.service import service
from services.inflate.model import MODEL

Inflate = service(MODEL)
