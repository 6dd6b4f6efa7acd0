"""What can go wrong for a client, in words that its user can act on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polypod.client.views import JobView


def without_login(url: str) -> str:
    """An address as it may be shown."""
    return re.sub(r"(?<=://)[^/]*@", "", url)


class ClientError(Exception):
    """The base: what happened and why (`message`), and what to do (`hint`)."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint


class ApiError(ClientError):
    """The service refused: HTTP `status`, and the problem document's `code`, message and hint.

    `extra` is the whole problem document, such as `queue_length` of a full queue.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        hint: str = "",
        *,
        retry_after_s: float | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.extra: Mapping[str, Any] = extra or {}


class Unreachable(ClientError):
    """No answer from `url`: nothing listens there, or the network lost it for too long."""

    def __init__(self, url: str, reason: str) -> None:
        self.url = without_login(url)
        super().__init__(f"No answer from {self.url}: {reason}.", "Is the service running there?")
        self.reason = reason


class Damaged(ClientError):
    """A file arrived with other bytes than the service announced."""


class JobFailed(ClientError):
    """The job ended without a result; `job` is its last state."""

    def __init__(self, job: JobView) -> None:
        error = job.error
        why = error.message if error else f"it was {job.status}"
        super().__init__(f"Job {job.id} has no result: {why}", error.hint if error else "")
        self.job = job
