"""The BentoML service of IDOL."""

from polypod.service import service
from services.idol.model import MODEL

Idol = service(MODEL)
