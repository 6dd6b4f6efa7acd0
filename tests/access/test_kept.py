from __future__ import annotations

from pathlib import Path

import pytest

from polypod.access.kept import keys_were_made
from polypod.access.keys import new_key
from polypod.errors import Forbidden
from polypod.jobs.store.store import Store
from polypod.lifetime import check_address
from polypod.settings import Settings

pytestmark = pytest.mark.anyio


async def test_a_server_listens_elsewhere_once_a_key_was_made(database_url: str) -> None:
    settings = Settings(database_url=database_url, host="0.0.0.0")
    with pytest.raises(Forbidden, match="without API keys") as caught:
        check_address(settings)
    assert "polypod keys create" in caught.value.hint
    store = await Store.open(database_url)
    _, key = new_key("web", ["read"], at=1.0)
    await store.access.add(key, "ann")
    check_address(settings)
    await store.access.revoke(key.id, "ann")
    check_address(settings)  # it serves nobody then
    await store.close()


def test_to_look_for_keys_makes_no_database(tmp_path: Path) -> None:
    assert not keys_were_made(Settings(data=tmp_path / "none"))
    assert not (tmp_path / "none").exists()
