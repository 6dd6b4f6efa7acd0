"""The BentoML service of hunyuan21."""

from polypod.service import service
from services.hunyuan21.model import MODEL

Hunyuan21 = service(MODEL)
