from __future__ import annotations

import hashlib
import re

import pytest

from polypod.access.keys import SCOPES, Key, key_from_settings, new_key
from polypod.errors import BadRequest


def made(*scopes: str) -> Key:
    return new_key("web", scopes, at=1.0)[1]


def test_a_key_is_random_and_only_its_hash_is_kept() -> None:
    secret, key = new_key("web", ["read"], at=1.0, submits_per_minute=3, most_queued=4)
    other, _ = new_key("web", ["read"], at=1.0)
    assert re.fullmatch(r"pp_[A-Za-z0-9_-]{43}", secret)
    assert secret != other
    assert key.hash == hashlib.sha256(secret.encode()).hexdigest()
    assert key.id == key.hash[:16]
    assert secret not in repr(vars(key))
    assert key.hash not in repr(key)
    assert (key.submits_per_minute, key.most_queued, key.created_at) == (3, 4, 1.0)


def test_a_scope_is_itself_and_admin_is_all() -> None:
    assert [made("read").may(s) for s in SCOPES] == [False, True, False, False]
    assert [made("generate", "dispatch").may(s) for s in SCOPES] == [True, False, True, False]
    assert all(made("admin").may(s) for s in SCOPES)
    assert made("read").may("")
    assert made("admin").sees_all_jobs and not made("generate", "read").sees_all_jobs


def test_a_key_of_the_settings_may_everything_with_its_own_jobs() -> None:
    digest = hashlib.sha256(b"alpha").hexdigest()
    plain, hashed = key_from_settings("alpha"), key_from_settings(f"sha256:{digest.upper()}")
    assert plain == hashed
    assert plain.hash == digest
    assert all(plain.may(scope) for scope in SCOPES)
    assert not plain.sees_all_jobs


@pytest.mark.parametrize(
    ("name", "scopes"),
    [("web", []), ("web", ["root"]), ("", ["read"]), ("a\nb", ["read"]), ("x" * 65, ["read"])],
)
def test_what_cannot_be_a_key_is_refused(name: str, scopes: list[str]) -> None:
    with pytest.raises(BadRequest):
        new_key(name, scopes, at=1.0)
