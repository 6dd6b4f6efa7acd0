"""What was administrated here, for those who administrate."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from polypod.access.keys import ADMIN
from polypod.access.records import Act
from polypod.api.endpoint import Api, needs
from polypod.api.jobs import DEFAULT_LIMIT, page_size


@needs(ADMIN)
async def list_acts(api: Api, request: Request) -> Response:
    """GET /audit: the newest administrative acts."""
    limit = page_size(request.query_params.get("limit", str(DEFAULT_LIMIT)))
    acts = await api.engine.store.access.acts(limit)
    return JSONResponse({"acts": [_shown(act) for act in acts]})


def _shown(act: Act) -> dict[str, Any]:
    at = datetime.fromtimestamp(act.at, timezone.utc).isoformat(timespec="milliseconds")
    return vars(act) | {"at": at.replace("+00:00", "Z")}
