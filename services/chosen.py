"""The service of the model that `--arg model=NAME` names: what the root bentofile.yaml builds."""

from polypod.service import chosen

Chosen = chosen()
