"""polypod's service of the stub model."""

from benchmarks.models.stub.model import MODEL
from polypod.service import service

Stub = service(MODEL)
