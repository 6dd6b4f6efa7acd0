"""What an API key is. Pure: nothing here reads or writes anything.

A key is 32 random bytes, shown once when it is made. Only its SHA-256 is stored. For passwords that
would be too fast a hash; a key has 256 bits that nobody can guess, however fast guessing is.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from polypod.errors import BadRequest

PREFIX = "pp_"
"""Lets people and secret scanners tell a key from other text."""

GENERATE, READ, DISPATCH, ADMIN = "generate", "read", "dispatch", "admin"
SCOPES = {
    GENERATE: "submit, continue, cancel and delete jobs, store pictures",
    READ: "see jobs, their events and results, the queue",
    DISPATCH: "bring files and jobs as a router does",
    ADMIN: "everything, with everybody's jobs, endpoints and the audit",
}
ANY = ""
"""In place of a scope: any key will do."""

_NAME = re.compile(r"[\w.@ -]{1,64}")


@dataclass(frozen=True)
class Key:
    """A key without its secret."""

    id: str
    """The first 16 digits of the hash: names the key, and owns what is made with it."""
    hash: str = field(repr=False)
    """SHA-256 of the key, in hexadecimal digits."""
    name: str
    scopes: frozenset[str]
    submits_per_minute: int | None = None
    most_queued: int | None = None
    created_at: float = 0.0
    revoked_at: float | None = None
    last_used_at: float | None = None
    from_settings: bool = False
    """One of POLYPOD_API_KEYS: it may do everything, but has its own jobs like any other user, so
    that two programs with keys of their own stay apart as they always were."""

    def may(self, scope: str) -> bool:
        return scope in (ANY, *self.scopes) or ADMIN in self.scopes

    @property
    def sees_all_jobs(self) -> bool:
        return ADMIN in self.scopes and not self.from_settings


def new_key(
    name: str,
    scopes: Iterable[str],
    *,
    at: float,
    submits_per_minute: int | None = None,
    most_queued: int | None = None,
) -> tuple[str, Key]:
    """A new secret, and the key that it is of.

    Raises:
        BadRequest: no name, no scope, or one that there is not.
    """
    wanted = frozenset(scopes)
    unknown = sorted(wanted - SCOPES.keys())
    if unknown or not wanted:
        what = f"There is no scope {unknown[0]!r}." if unknown else "A key needs a scope."
        raise BadRequest(what, f"Scopes: {', '.join(SCOPES)}.")
    if not _NAME.fullmatch(name):
        raise BadRequest(
            "This cannot be the name of a key.",
            "Use up to 64 letters, digits, spaces and any of . _ @ -",
        )
    secret = PREFIX + secrets.token_urlsafe(32)
    key = _named_by_hash(hash_of(secret), name, wanted)
    return secret, replace(
        key, created_at=at, submits_per_minute=submits_per_minute, most_queued=most_queued
    )


def key_from_settings(text: str) -> Key:
    """One of POLYPOD_API_KEYS: the key itself, or `sha256:` and its hash."""
    scheme, _, rest = text.partition(":")
    hashed = scheme == "sha256" and len(rest) == 64
    digest = rest.lower() if hashed else hash_of(text)
    return replace(
        _named_by_hash(digest, "POLYPOD_API_KEYS", frozenset(SCOPES)), from_settings=True
    )


def hash_of(secret: str | bytes) -> str:
    data = secret.encode() if isinstance(secret, str) else secret
    return hashlib.sha256(data).hexdigest()


def _named_by_hash(digest: str, name: str, scopes: frozenset[str]) -> Key:
    return Key(digest[:16], digest, name, scopes)
