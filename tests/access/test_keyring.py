from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from polypod.access.keyring import Keyring
from polypod.access.keys import hash_of, new_key
from polypod.errors import TooManyRequests
from polypod.jobs.store.store import Store

pytestmark = pytest.mark.anyio


async def until(true: Callable[[], object], limit_s: float = 2) -> None:
    deadline = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.02)


async def test_keys_made_and_revoked_elsewhere_are_noticed(database_url: str) -> None:
    here, elsewhere = await Store.open(database_url), await Store.open(database_url)
    secret, key = new_key("web", ["read"], at=1.0)
    ring = Keyring()
    async with ring.following(here.access):
        assert not ring.asks
        await elsewhere.access.add(key, "ann")
        await until(lambda: ring.find(secret.encode()) == key)
        assert ring.asks
        await elsewhere.access.revoke(key.id, "ann")
        await until(lambda: ring.find(secret.encode()) is None)
        assert ring.asks, "to revoke the last key must not open the door"
    for store in (here, elsewhere):
        await store.close()


async def test_the_whole_hash_is_compared_not_only_the_id(store: Store) -> None:
    """As if somebody had found a text whose hash begins like a key's."""
    secret, key = new_key("web", ["read"], at=1.0)
    await store.access.add(replace(key, hash=key.hash[:16] + "0" * 48), "ann")
    ring = Keyring([f"sha256:{hash_of('other')[:16]}{'0' * 48}"])
    async with ring.following(store.access):
        assert ring.find(secret.encode()) is None
        assert ring.find(b"other") is None
        assert ring.find(key.hash.encode()) is None
        assert ring.find(b"") is None


async def test_uses_are_noted_when_it_ends(store: Store) -> None:
    secret, key = new_key("web", ["read"], at=1.0)
    await store.access.add(key, "ann")
    ring = Keyring(["given"])
    async with ring.following(store.access):
        assert ring.find(secret.encode()) and ring.find(b"given")
    (kept,) = await store.access.keys()
    assert kept.last_used_at is not None and time.time() - kept.last_used_at < 60


async def test_a_key_of_the_settings_stays_whatever_the_store_says(store: Store) -> None:
    secret, key = new_key("web", ["read"], at=1.0)
    await store.access.add(key, "ann")
    ring = Keyring([secret])
    async with ring.following(store.access):
        found = ring.find(secret.encode())
        assert found is not None and found.from_settings


async def test_keys_stay_known_while_the_database_does_not_answer(sqlite_url: str) -> None:
    store = await Store.open(sqlite_url)
    secret, key = new_key("web", ["read"], at=1.0)
    await store.access.add(key, "ann")
    ring = Keyring()
    async with ring.following(store.access):
        await store.close()
        await asyncio.sleep(1.2)  # one poll fails meanwhile
        assert ring.find(secret.encode()) == key


async def nobody_else(key_id: str) -> float:
    return 0.0


async def test_submits_are_counted_per_key() -> None:
    ring = Keyring()
    _, limited = new_key("a", ["generate"], at=1.0, submits_per_minute=2)
    _, other = new_key("b", ["generate"], at=1.0, submits_per_minute=1)
    _, free = new_key("c", ["generate"], at=1.0)
    for key in (limited, limited, other, free, free, free):
        await ring.count_submit(key, nobody_else)
    with pytest.raises(TooManyRequests, match="2 jobs a minute") as caught:
        await ring.count_submit(limited, nobody_else)
    assert 1 <= caught.value.extra["retry_after_s"] <= 31


async def test_what_is_too_much_for_all_is_refused_and_for_one_is_not_asked() -> None:
    _, key = new_key("a", ["generate"], at=1.0, submits_per_minute=1)
    asked = list[str]()

    async def too_many_elsewhere(key_id: str) -> float:
        asked.append(key_id)
        return 41.5

    ring = Keyring()
    with pytest.raises(TooManyRequests, match="1 job a minute") as caught:
        await ring.count_submit(key, too_many_elsewhere)
    assert caught.value.extra["retry_after_s"] == 42
    with pytest.raises(TooManyRequests):
        await ring.count_submit(key, too_many_elsewhere)
    assert asked == [key.id]


async def test_where_the_database_does_not_answer_this_servers_count_holds(
    postgres_url: str,
) -> None:
    _, key = new_key("a", ["generate"], at=1.0, submits_per_minute=1)
    store = await Store.open(postgres_url)
    await store.routers.join("a")
    await store.close()
    ring = Keyring()
    await ring.count_submit(key, store.routers.count_submit)
    with pytest.raises(TooManyRequests):
        await ring.count_submit(key, store.routers.count_submit)
