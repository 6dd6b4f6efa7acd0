"""The BentoML service of SyncHuman."""

from polypod.service import service
from services.synchuman.model import MODEL

Synchuman = service(MODEL)
