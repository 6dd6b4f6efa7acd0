"""What a façade is: one protocol of other people's clients, spoken by a model that is served here.

Its addresses are those that its clients know. All of them lie below `/compat/NAME`, which is then
the base URL to give to a client; at the root lie those that no route of ours has, and of the others
those requests that only its clients would send (`claims`). `mounted` puts them there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from polypod.api.endpoint import Api, Handler
from polypod.errors import NotFound
from polypod.model import Model

Claim = Callable[[Request, Mapping[str, Any]], bool]


def never(request: Request, fields: Mapping[str, Any]) -> bool:
    return False


@dataclass(frozen=True)
class Facade:
    name: str
    """As in `POLYPOD_COMPAT`."""
    routes: tuple[tuple[str, str, Handler], ...]
    """Method, path and handler, in the words of `polypod.api.app.ROUTES`."""
    claims: Claim = never
    """Whether a body, sent to an address that we have too, comes from one of its clients."""
    forms: bool = False
    """Its clients send forms too; else only JSON is looked at."""
    model: str = ""
    """The model that it serves by default; empty: the one of its own name."""

    def serves(self, api: Api) -> bool:
        return self.model_name(api) in api.engine.models

    def model_name(self, api: Api) -> str:
        return api.settings.compat.get(self.name) or self.model or self.name

    def model_of(self, api: Api) -> Model:
        """The model that answers. NotFound where it is not served; Unavailable before any is."""
        name = self.model_name(api)
        if not api.engine.models:
            return api.model(name)  # in its words
        if name not in api.engine.models:
            served = ", ".join(api.engine.models)
            raise NotFound(
                f"The protocol {self.name} is answered by the model {name}, which is not here.",
                f"Served here: {served}. POLYPOD_COMPAT={self.name}=MODEL lets another answer.",
            )
        return api.engine.models[name]
