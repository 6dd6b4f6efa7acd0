"""The SQL of keys and administrative acts."""

from __future__ import annotations

from sqlalchemy import bindparam, func, insert, select, update

from polypod.jobs.store.tables import api_keys, audit

_this_key = api_keys.c.id == bindparam("key_id")

KEYS = select(*(c for c in api_keys.c if c.name != "full_at")).order_by(api_keys.c.created_at)
KEYS_VERSION = select(func.count(), func.count(api_keys.c.revoked_at)).select_from(api_keys)
INSERT_KEY = insert(api_keys)
REVOKE_KEY = (
    update(api_keys)
    .where(_this_key, api_keys.c.revoked_at.is_(None))
    .values(revoked_at=bindparam("at"))
)
NOTE_KEY_USE = update(api_keys).where(_this_key).values(last_used_at=bindparam("at"))

INSERT_ACT = insert(audit)
ACTS = (
    select(audit.c.at, audit.c.who, audit.c.act, audit.c.object)
    .order_by(audit.c.id.desc())
    .limit(bindparam("most"))
)
