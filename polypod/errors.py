"""What can go wrong in a way that a user can act on.

Every `Problem` becomes one HTTP answer (RFC 9457) and one line in the CLI: what happened and why
(`message`), and what to do (`hint`). Internal details belong in the log, never here.
"""

from __future__ import annotations

import errno
import re
from typing import Any, ClassVar


class Problem(Exception):
    """The base of all errors that are told to the user."""

    status: ClassVar[int] = 500

    def __init__(self, message: str, hint: str = "", **extra: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.extra = extra

    @classmethod
    def code(cls) -> str:
        """The error's stable name, such as `queue_full`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class BadRequest(Problem):
    """The request itself is malformed: not JSON, both `image` and `image_url`, bad base64."""

    status = 400


class Unauthorized(Problem):
    """No API key, or one that is not known."""

    status = 401


class Forbidden(Problem):
    """The caller may not do this."""

    status = 403


class NotFound(Problem):
    """No such job, model, asset or image (or not the caller's)."""

    status = 404


class TooSlow(Problem):
    """The rest of the request did not come, or hardly did."""

    status = 408


class Conflict(Problem):
    """Asked at the wrong time: a result before the job is done, a key used for another request."""

    status = 409


class TooLarge(Problem):
    """More bytes, pixels or frames than are accepted."""

    status = 413


class UnsupportedMedia(Problem):
    """A content type or file format that is not accepted."""

    status = 415


class BadInput(Problem):
    """Well-formed, but cannot be used: an unknown parameter, a value out of range, no picture."""

    status = 422


class TooManyRequests(Problem):
    """The API key has submitted as many jobs as it may for now; `extra`: `retry_after_s`."""

    status = 429


class QueueFull(Problem):
    """No room in the queue; `extra` holds `queue_length`, `max_queue_size`, `retry_after_s`."""

    status = 503


class Unavailable(Problem):
    """The service cannot do this now: disk full, model cannot load, shutting down."""

    status = 503


class DiskFull(Unavailable):
    """There is no room for what must be kept."""


class Busy(Unavailable):
    """More is being sent to this server at once than its memory is for."""


class BudgetFull(Unavailable):
    """The disk budget is used up by what must stay; `extra` holds `used_bytes` and the budget."""


class Timeout(Problem):
    """The answer did not come in time; the job goes on."""

    status = 504


def is_disk_full(error: BaseException) -> bool:
    """Whether the operating system says so: no room left, or none for this user."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
