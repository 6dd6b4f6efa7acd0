"""What makes a webhook believable: HMAC-SHA256 over its time and its body."""

from __future__ import annotations

import hashlib
import hmac
import time

HEADER = "X-Polypod-Signature"
"""`t=1700000000,v1=5257a8...`: Unix seconds, and the HMAC in hexadecimal digits."""


def sign(body: bytes, secret: str, at: float) -> str:
    """The value of the signature header for a body sent at `at` (Unix seconds)."""
    return f"t={int(at)},v1={_digest(body, secret, str(int(at)))}"


def verify(
    body: bytes, header: str, secret: str, tolerance_s: float = 300, now: float | None = None
) -> bool:
    """Whether `body`, exactly as it came, was signed with `secret` at most `tolerance_s` ago.

    `header` is the value of `X-Polypod-Signature`; of several `v1` one must fit, so that a secret
    can be changed without a gap. `now` is the time in Unix seconds; None: the clock's.
    """
    parts = [part.strip().partition("=") for part in header.split(",")]
    times = [value for name, _, value in parts if name == "t"]
    if len(times) != 1 or not (times[0].isascii() and times[0].isdigit() and len(times[0]) < 20):
        return False
    if abs((time.time() if now is None else now) - int(times[0])) > tolerance_s:
        return False
    right = _digest(body, secret, times[0]).encode()
    given = [value.encode() for name, _, value in parts if name == "v1"]
    return any([hmac.compare_digest(right, one) for one in given])  # looks at all of them


def _digest(body: bytes, secret: str, at: str) -> str:
    return hmac.new(secret.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
