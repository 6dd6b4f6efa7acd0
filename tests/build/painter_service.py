"""The service of a model that needs a GPU, an environment and weights."""

from polypod.service import service
from tests.build.painter import PAINTER

Painter = service(PAINTER)
