"""The log of real processes: text as ever, or JSON line by line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.bento import bentoml_serve, wait_until

PROGRAM = """
import logging, sys
from polypod import logs
logging.getLogger("polypod.early").addHandler(logging.StreamHandler())
logs.configure(sys.argv[1])
log = logging.getLogger("polypod.early")
log.info("plain %s", "words")
with logs.about("a" * 32):
    log.warning("two\\nlines")
log.info("job %s is done", "b" * 32)
log.info("given", extra={"job_id": "c"})
logging.getLogger("polypod.other").debug("not this")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("half a character \\ud800")
"""


def lines(how: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return (done.stdout if how == "json" else done.stdout + done.stderr).splitlines()


def test_one_object_a_line_with_the_job() -> None:
    plain, about, named, given, failed = [json.loads(line) for line in lines("json")]
    assert set(plain) == {"time", "level", "logger", "message"}
    assert (plain["level"], plain["logger"], plain["message"]) == (
        *("info", "polypod.early"),
        "plain words",
    )
    assert plain["time"].endswith("+00:00")
    assert (about["level"], about["message"], about["job_id"]) == (
        *("warning", "two\nlines"),
        "a" * 32,
    )
    assert (named["job_id"], given["job_id"]) == ("b" * 32, "c")
    assert "ZeroDivisionError" in failed["traceback"]


def test_text_is_the_default_form() -> None:
    assert any("[polypod.early] plain words" in line for line in lines("text"))


def test_a_service_logs_json_from_its_first_words_to_its_last(tmp_path: Path) -> None:
    with bentoml_serve(tmp_path, POLYPOD_LOG="json") as server:
        with next((Path(__file__).parents[1] / "examples").glob("*.jpg")).open("rb") as photo:
            hook = {"webhook_url": "http://nowhere.invalid/"}
            answer = server.http.post("/generate", files={"image": photo}, data=hook)
        job = answer.json()["job_id"]
        wait_until(lambda: job in server.log)
    found = [json.loads(line) for line in server.log.splitlines()]
    (told,) = [line for line in found if line.get("job_id") == job][:1]
    assert told["logger"] == "polypod.webhooks"
    assert "no server named nowhere.invalid" in told["message"]
