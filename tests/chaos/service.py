"""The BentoML services that the chaos tests serve."""

from polypod.service import service
from tests.chaos.model.model import HASTY, MODEL

Chaos = service(MODEL)
Hasty = service(HASTY)
