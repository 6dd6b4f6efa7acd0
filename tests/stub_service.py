"""The BentoML service of the stub model."""

from polypod.service import service
from tests.models.stub.model import MODEL

Stub = service(MODEL)
