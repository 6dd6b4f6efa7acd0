"""The BentoML service of the relay model."""

from benchmarks.models.relay.model import MODEL
from polypod.service import service

Relay = service(MODEL)
