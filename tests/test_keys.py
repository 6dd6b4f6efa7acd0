"""Keys in the data folder, before and beside a real service."""

from __future__ import annotations

import re
from pathlib import Path

from typer.testing import CliRunner

from polypod.cli import app
from tests.bento import bentoml_serve


def test_a_key_in_the_store_lets_a_service_listen_elsewhere(tmp_path: Path) -> None:
    data = ["--data", str(tmp_path / "data")]
    made = CliRunner().invoke(app, ["keys", "create", "web", *data])
    assert made.exit_code == 0, made.output
    secret = made.stdout.strip()
    with bentoml_serve(tmp_path, POLYPOD_HOST="0.0.0.0") as server:
        for path in ("/jobs", "/docs", "/metrics"):
            assert server.http.get(path).status_code == 401, path
            answer = server.http.get(path, headers={"X-API-Key": secret})
            assert answer.status_code == 200, path
        assert server.http.get("/health").status_code == 200
        assert secret not in server.log
    listed = CliRunner().invoke(app, ["keys", "list", "--json", *data])
    assert '"last_used_at": null' not in listed.stdout


def test_the_list_shows_ids_and_times_whole_however_narrow_it_is(tmp_path: Path) -> None:
    data = ["--data", str(tmp_path)]
    limits = ["--per-minute", "20", "--most-queued", "50"]
    CliRunner().invoke(app, ["keys", "create", "web", *limits, *data])
    listed = CliRunner(env={"COLUMNS": "60"}).invoke(app, ["keys", "list", *data])
    assert re.search(r"[0-9a-f]{16} .* \d{4}-\d\d-\d\d \d\d:\d\d", listed.stdout)


def test_a_key_is_revoked_by_name_once(tmp_path: Path) -> None:
    data = ["--data", str(tmp_path)]
    CliRunner().invoke(app, ["keys", "create", "web", *data])
    assert CliRunner().invoke(app, ["keys", "revoke", "web", *data]).exit_code == 0
    again = CliRunner().invoke(app, ["keys", "revoke", "web", *data])
    assert again.exit_code == 1 and "is revoked already" in again.stderr


def test_a_wrong_folder_is_told_and_not_made(tmp_path: Path) -> None:
    for words in (["list"], ["revoke", "web"], ["audit"]):
        done = CliRunner().invoke(app, ["keys", *words, "--data", str(tmp_path / "none")])
        assert done.exit_code == 1
        assert "There is no polypod database" in done.stderr
    assert not (tmp_path / "none").exists()
