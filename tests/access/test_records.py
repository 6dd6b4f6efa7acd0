"""Keys and acts in SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio

import pytest

from polypod.access.keys import new_key
from polypod.jobs.store.store import Store

pytestmark = pytest.mark.anyio


async def test_keys_are_read_back_as_they_were_made(store: Store) -> None:
    _, first = new_key("web", ["read", "generate"], at=1.0, submits_per_minute=5, most_queued=9)
    _, second = new_key("boss", ["admin"], at=2.0)
    await store.access.add(second, "shell:ann")
    await store.access.add(first, "shell:ann")
    assert await store.access.keys() == [first, second]


async def test_the_version_changes_with_every_key_made_or_revoked(store: Store) -> None:
    _, key = new_key("web", ["read"], at=1.0)
    seen = [await store.access.version()]
    await store.access.add(key, "ann")
    seen.append(await store.access.version())
    assert await store.access.revoke(key.id, "ann")
    seen.append(await store.access.version())
    assert seen == [(0, 0), (1, 0), (1, 1)]
    assert not await store.access.revoke(key.id, "ann")
    assert not await store.access.revoke("nothing", "ann")
    assert (await store.access.keys())[0].revoked_at is not None


async def test_of_two_that_revoke_one_does(store: Store) -> None:
    _, key = new_key("web", ["read"], at=1.0)
    await store.access.add(key, "ann")
    done = await asyncio.gather(*(store.access.revoke(key.id, who) for who in ("ann", "bob")))
    assert sorted(done) == [False, True]
    assert [act.act for act in await store.access.acts(10)] == ["key revoked", "key created"]


async def test_acts_are_kept_newest_first(store: Store) -> None:
    _, key = new_key("web", ["read"], at=1.0)
    await store.access.add(key, "shell:ann")
    await store.access.note("k1", "job deleted", "j1 of k2")
    await store.access.revoke(key.id, "k1")
    acts = await store.access.acts(10)
    assert [(a.who, a.act, a.object) for a in acts] == [
        ("k1", "key revoked", key.id),
        ("k1", "job deleted", "j1 of k2"),
        ("shell:ann", "key created", f"{key.id} web"),
    ]
    assert await store.access.acts(1) == acts[:1]


async def test_last_uses_are_noted(store: Store) -> None:
    _, key = new_key("web", ["read"], at=1.0)
    await store.access.add(key, "ann")
    await store.access.note_uses({key.id: 55.5, "gone": 1.0})
    assert [k.last_used_at for k in await store.access.keys()] == [55.5]
