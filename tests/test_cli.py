"""The command line against a real HTTP service: what it says, saves and exits with."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from typer.testing import CliRunner

from polypod.assets.derive import FORMATS
from polypod.cli import app
from polypod.cli.batch import IN_FLIGHT, unique_names
from polypod.cli.earlier import find
from polypod.cli.settings import settings_here
from polypod.client import ClientError, JobView
from polypod.settings import Settings
from services.synchuman.model import MODEL as SYNCHUMAN

_spec = importlib.util.spec_from_file_location(
    "small_service", Path(__file__).with_name("small_service.py")
)
assert _spec and _spec.loader
small_service = sys.modules.setdefault("small_service", importlib.util.module_from_spec(_spec))
if not hasattr(small_service, "SmallService"):
    _spec.loader.exec_module(small_service)
SmallService = small_service.SmallService

COMMAND = [sys.executable, "-m", "polypod.cli"]
VIEWS = [f"cat_view_{i}.png" for i in range(4)]


@pytest.fixture
def service():
    with SmallService() as running:
        yield running


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with two photos of the same name in it."""
    monkeypatch.chdir(tmp_path)
    for path in (Path("cat.png"), Path("b/cat.jpg")):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(str(path).encode())
    return tmp_path


@pytest.fixture
def polypod(service, here, monkeypatch):
    """Runs a command in this process."""
    monkeypatch.setenv("POLYPOD_URL", service.url)
    return lambda *args: CliRunner().invoke(app, [str(a) for a in args])


def child(*args: str, **options: Any) -> subprocess.Popen[str]:
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*COMMAND, *args], **{**pipe, "stdin": subprocess.DEVNULL, **options})


def until(what: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.02)
    return found


def names(folder: str | Path = "out") -> list[str]:
    return sorted(path.name for path in Path(folder).iterdir())


# --- generate -------------------------------------------------------------------------------------


def test_a_photo_becomes_its_files(polypod, service):
    done = polypod("generate", "cat.png", "--model", "inflate", "-p", "size=2000", "-o", "out")
    assert done.exit_code == 0, done.stderr
    assert names() == ["cat.glb", "cat_manifest.json", *VIEWS]
    (job,) = service.jobs.values()
    assert Path("out/cat.glb").read_bytes() == job.result()
    assert json.loads(Path("out/cat_manifest.json").read_text())["job_id"] == job.id
    assert Path("out/cat_view_2.png").read_text() == f"view 2 of {job.id}"
    for said in ("out/cat.glb", "cat_view_0.png … ", "12 triangles, watertight", job.id):
        assert said in done.stdout
    assert re.search(r"[\d.]+ s in all, 0\.2 s on the model", done.stdout)
    assert "cat:  40 %  work" in done.stderr
    assert service.requests("POST", "/models/inflate/generate")


def test_a_photo_goes_to_each_of_several_models(polypod, service):
    args = ("-m", "inflate", "-m", "other", "-m", "inflate")
    done = polypod("generate", "cat.png", "b/cat.jpg", *args)
    assert done.exit_code == 0, done.stderr
    made = {f"{name}_{model}.glb" for name in ("cat", "cat_2") for model in ("inflate", "other")}
    assert {name for name in names() if name.endswith(".glb")} == made
    assert len(service.requests("POST", "/models/other/generate")) == 2


def test_several_photos_go_over_one_event_connection(polypod, service):
    done = polypod("generate", "cat.png", "b/cat.jpg", "b/../cat.png", "-p", "seconds=1")
    assert done.exit_code == 0, done.stderr
    assert {f"{name}.glb" for name in ("cat", "cat_2", "cat_3")} <= set(names())
    assert len(service.jobs) == 3
    assert len(service.requests("GET", "/events")) == 1


def test_what_is_asked_for_is_sent(polypod, service, here):
    (here / "m.png").write_bytes(b"a mask")
    arguments = ["-p", "depth=0.5", "-p", "name=a b", "--preset", "high", "--input", "mask=m.png"]
    assert polypod("generate", "cat.png", *arguments).exit_code == 0
    (job,) = service.jobs.values()
    assert job.inputs == {"image": b"cat.png", "mask": b"a mask"}
    assert job.params == {"depth": "0.5", "name": "a b", "preset": "high"}


def test_another_format(polypod):
    assert polypod("generate", "cat.png", "--format", "stl").exit_code == 0
    assert Path("out/cat.stl").read_bytes().startswith(b"stl")


def test_an_unknown_format_is_told_before_a_job_is_made(polypod, service):
    refused = polypod("generate", "cat.png", "--format", "fbx")
    assert refused.exit_code == 2 and not service.jobs
    for known in FORMATS:
        assert f"'{known}'" in refused.stderr


def test_a_result_that_cannot_be_saved_is_not_lost(polypod, service, here):
    done = polypod("generate", "cat.png", "--out", "cat.png/out")
    (job,) = service.jobs.values()
    assert done.exit_code == 1
    assert f"polypod download {job.id} --name cat" in done.stderr


def test_stopping_at_a_stage_saves_what_is_there(polypod):
    done = polypod("generate", "cat.png", "--until", "prepare")
    assert done.exit_code == 0
    assert names() == ["cat_prepared.json"]


def test_names_from_the_service_lead_nowhere_else(polypod, service, here):
    assert polypod("generate", "cat.png", "-p", "output_format=/../../x").exit_code == 0
    assert {path.name for path in here.iterdir()} == {"b", "cat.png", "out"}
    polypod("generate", "cat.png", "--detach", "--until", "prepare")
    job = list(service.jobs.values())[1]
    until(lambda: job.status == "completed")
    job.assets = lambda: {"../../../evil.json": b""}
    service.breaks("evil.json", status=200, body=b"{}")
    done = polypod("download", job.id, "--name", "dog")
    assert done.exit_code == 0 and "dog_evil.json" in names(), done.stderr
    assert not (here / "evil.json").exists()


def test_json_for_programs(polypod):
    done = polypod("generate", "cat.png", "cat.png", "--json")
    first, second = json.loads(done.stdout)["jobs"]
    assert (first["status"], first["error"]) == ("completed", None)
    assert first["files"]["result"] == "out/cat.glb" and second["name"] == "cat_2"
    assert first["facts"]["triangles"] == 12
    assert done.stderr == ""


def test_one_that_fails_does_not_stop_the_others(polypod, service):
    service.breaks("/generate", status=422, body=b'{"error": "It is no picture."}')
    done = polypod("generate", "cat.png", "b/cat.jpg")
    assert done.exit_code == 1
    assert "Error: cat: It is no picture." in done.stderr
    assert "out/cat_2.glb" in done.stdout and "cat_2.glb" in names()


def test_a_job_that_fails(polypod):
    done = polypod("generate", "cat.png", "-p", "fail=true")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "Error: cat: It is empty. Try another."
    assert json.loads(polypod("generate", "cat.png", "-p", "fail=true", "--json").stdout)["jobs"][
        0
    ]["error"] == {"message": "It is empty.", "hint": "Try another."}


def test_views_that_cannot_be_made_are_a_note(polypod, service):
    service.breaks("/result/view_1.png", status=422, body=b'{"error": "No surface."}')
    done = polypod("generate", "cat.png")
    assert done.exit_code == 0
    assert "no view_1.png: No surface." in done.stderr
    assert "cat.glb" in names() and "cat_view_1.png" not in names()


def test_more_photos_than_the_queue_takes(here, monkeypatch):
    with SmallService(max_queue_size=1) as service:
        monkeypatch.setenv("POLYPOD_URL", service.url)
        photos = ["cat.png"] * 3
        done = CliRunner().invoke(app, ["generate", *photos, "-p", "seconds=0.3"])
        assert done.exit_code == 0, done.stderr
        assert len(service.jobs) == 3
        assert {"cat.glb", "cat_2.glb", "cat_3.glb"} <= set(names())


@pytest.mark.parametrize("how", ["refused", "detached"])
def test_more_photos_than_are_on_their_way_at_once(here, monkeypatch, how):
    photos, more = ["cat.png"] * (IN_FLIGHT + 1), ["--detach", "-p", "hold=true"]
    with SmallService(max_queue_size=len(photos)) as service:
        monkeypatch.setenv("POLYPOD_URL", service.url)
        if how == "refused":
            service.breaks("/generate", status=422, body=b'{"error": "No."}', times=len(photos))
        done = CliRunner().invoke(app, ["generate", *photos, *(more if how == "detached" else [])])
    assert done.exit_code == (how == "refused")
    assert done.stderr.count("Error: cat") == (len(photos) if how == "refused" else 0)
    assert len(service.jobs) == (0 if how == "refused" else len(photos))


def test_names_that_are_no_text_or_look_like_markup(service, here):
    odd, plain = os.fsdecode(b"\xff.png"), ":cat: [red].png"
    for name in (odd, plain):
        (here / name).write_bytes(b"a photo")
    said, complaint = child("generate", odd, plain, "--url", service.url).communicate(timeout=20)
    assert "out/:cat: [red].glb" in said and "out/\\udcff.glb" in said, complaint
    assert {":cat: [red].glb", os.fsdecode(b"\xff.glb")} <= set(names())
    told = child("generate", odd, "--json", "--url", service.url).communicate(timeout=20)[0]
    assert json.loads(told)["jobs"][0]["files"]["result"] == os.fsdecode(b"out/\xff.glb")


def test_a_lost_connection_is_taken_up_again(polypod, service):
    service.breaks("/events", cut=1200, times=3)
    service.breaks("/download", cut=50_000, times=2)
    done = polypod("generate", "cat.png", "-p", "seconds=1", "-p", "size=200000")
    assert done.exit_code == 0, done.stderr
    (job,) = service.jobs.values()
    assert Path("out/cat.glb").read_bytes() == job.result()
    assert len(service.requests("GET", "/events")) > 1


def test_a_service_that_restarts_in_the_middle(here, monkeypatch):
    service = SmallService()
    with service:
        running = child("generate", "cat.png", "-p", "hold=true", "--url", service.url)
        job = until(lambda: next(iter(service.jobs.values()), None))
        until(lambda: service.requests("GET", "/events"))
    job.status, job.progress = "completed", 100
    with service:
        _, said = running.communicate(timeout=30)
        assert running.returncode == 0, said
    assert Path("out/cat.glb").read_bytes() == job.result()


def test_a_job_that_was_deleted_does_not_stop_the_others(here):
    service = SmallService()
    with service:
        photos = ("cat.png", "b/cat.jpg")
        running = child("generate", *photos, "-p", "hold=true", "--url", service.url)
        until(lambda: len(service.jobs) == 2 and service.requests("GET", "/events"))
    (deleted, job) = service.jobs.values()
    del service.jobs[deleted.id]
    job.status, job.progress = "completed", 100
    with service:
        said, complaint = running.communicate(timeout=30)
    assert running.returncode == 1 and "Error: cat: There is no such job." in complaint
    assert "out/cat_2.glb" in said and "The job" not in complaint


def test_detach_and_come_back(polypod, service):
    done = polypod("generate", "cat.png", "--detach", "-p", "hold=true", "-o", "models")
    (job,) = service.jobs.values()
    assert done.stdout == f"cat  {job.id}\n"
    assert not Path("models").exists()
    command = re.search(r"polypod (download .*)", done.stderr)
    assert command and command[1] == f"download {job.id} --name cat -o models"
    releasing = threading.Timer(0.3, service.release)
    releasing.start()
    assert polypod(*command[1].split()).exit_code == 0
    assert names("models") == ["cat.glb", "cat_manifest.json", *VIEWS]
    releasing.join()


def test_wrong_usage(polypod):
    for arguments, said in (
        (["generate", "dog.png"], "There is no file dog.png."),
        (["generate", "b"], "b is a folder"),
        (["generate", "cat.png", "-p", "depth"], "write it like"),
        (["generate", "cat.png", "-o", "cat.png"], "'cat.png' is a file"),
        (["generate", "cat.png", "-i", "mask=none.png"], "There is no file none.png."),
        (["generat"], "Did you mean 'generate'?"),
        (["serve", "inflat"], "There is no model 'inflat'"),
    ):
        done = polypod(*arguments)
        assert done.exit_code == 2
        assert said in re.sub(r"[\s│]+", " ", done.stderr)


def test_no_service(here):
    with SmallService() as service:
        url = service.url
    for arguments in (["generate", "cat.png"], ["jobs"], ["health"]):
        begun = time.monotonic()
        done = CliRunner().invoke(app, [*arguments, "--url", url])
        assert done.exit_code == 1
        assert f"No service answers at {url}: connection refused. Start it with: make serve" in (
            done.stderr
        )
        assert len(done.stderr.splitlines()) == 1
        assert time.monotonic() - begun < 10
    done = CliRunner().invoke(app, ["jobs", "--json", "--url", url])
    assert "make serve" in json.loads(done.stdout)["hint"]


def test_a_key_is_asked_for(here, monkeypatch):
    with SmallService(key="secret") as service:
        done = CliRunner().invoke(app, ["jobs", "--url", service.url])
        assert done.exit_code == 1 and "POLYPOD_API_KEY" in done.stderr
        monkeypatch.setenv("POLYPOD_API_KEY", "secret")
        assert CliRunner().invoke(app, ["jobs", "--url", service.url]).exit_code == 0


def test_names_of_files():
    photos = ["a/x.png", "b/x.jpg", "x_2.png", "X.webp", "http://h/p/y.png?v=1", ".png"]
    named = ["x", "x_2", "x_2_2", "X_3", "y", ".png"]
    assert [name for _, name in unique_names(photos)] == named


# --- Ctrl-C ---------------------------------------------------------------------------------------


def test_interrupted_without_a_terminal_leaves_the_job_running(service, here):
    running = child("generate", "cat.png", "-p", "hold=true", "--url", service.url)
    until(lambda: service.requests("GET", "/events"))
    running.send_signal(signal.SIGINT)
    _, complaint = running.communicate(timeout=20)
    assert running.returncode == 130
    (job,) = service.jobs.values()
    assert job.status == "processing"
    again = f"polypod download {job.id} --name cat --url {service.url}"
    assert again in complaint and "Traceback" not in complaint


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ended_while_it_saves(service, here, number):
    service.breaks("/download", mute=True, times=9)
    running = child("generate", "cat.png", "-f", "stl", "--url", service.url)
    until(lambda: Path("out").exists() and names())
    running.send_signal(number)
    _, complaint = running.communicate(timeout=20)
    assert running.returncode == 128 + number and "Traceback" not in complaint
    assert names() == []
    if number == signal.SIGINT:
        (job,) = service.jobs.values()
        assert f"download {job.id} --name cat -f stl --url {service.url}" in complaint


@pytest.mark.parametrize(("answer", "status"), [("y\n", "cancelled"), ("\n", "processing")])
def test_interrupted_on_a_terminal_asks(service, here, answer, status):
    with terminal("generate", "cat.png", "-p", "hold=true", "--url", service.url) as (shell, seen):
        until(lambda: "40 %" in seen())
        assert "━" in seen() and "work" in seen()
        os.write(shell.stdin_fd, b"\x03")
        until(lambda: "Cancel the job? [y/N]" in seen())
        os.write(shell.stdin_fd, answer.encode())
        assert shell.process.wait(20) == 130
        until(lambda: "Cancelled." in seen() or "polypod download" in seen())
        (job,) = service.jobs.values()
        assert job.status == status
        assert ("polypod download" in seen()) == (status == "processing")
        assert "Traceback" not in seen()


def test_bars_on_a_terminal(service, here):
    command = ("generate", "cat.png", "b/cat.jpg", "-p", "seconds=1", "--url", service.url)
    with terminal(*command) as (shell, seen):
        assert shell.process.wait(20) == 0
        until(lambda: "out/cat_2.glb" in seen())
        assert re.search(r"cat_2.*40 %.*0:0[01].*work", seen())


class Shell:
    def __init__(self, process: subprocess.Popen[bytes], stdin_fd: int) -> None:
        self.process = process
        self.stdin_fd = stdin_fd


@contextlib.contextmanager
def terminal(*args: str) -> Iterator[tuple[Shell, Callable[[], str]]]:
    """The command on a terminal of its own, and what was seen there so far."""
    leader, follower = pty.openpty()
    env = os.environ | {"TERM": "xterm", "COLUMNS": "120", "LINES": "40"}
    command = [sys.executable, "-c", _ON_A_TERMINAL, *COMMAND, *args]
    process = subprocess.Popen(
        command, stdin=follower, stdout=follower, stderr=follower, env=env, start_new_session=True
    )
    os.close(follower)
    text = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            while data := os.read(leader, 65536):
                text.extend(data)

    def seen() -> str:
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode(errors="replace"))
        return plain.replace("\r", "\n")

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield Shell(process, leader), seen
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join(5)
        os.close(leader)


_ON_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


# --- looking after jobs ---------------------------------------------------------------------------


def release_when_followed(service, job_id):
    until(lambda: job_id in service.hub.watched())
    service.release()


def test_job_follow_cancel_and_list(polypod, service):
    polypod("generate", "cat.png", "--detach", "-p", "hold=true")
    (job,) = service.jobs.values()
    shown = polypod("job", job.id)
    assert shown.exit_code == 0 and "processing" in shown.stdout
    with ThreadPoolExecutor(1) as beside:
        beside.submit(release_when_followed, service, job.id)
        followed = polypod("job", job.id, "--follow")
    assert followed.exit_code == 0
    assert f"polypod download {job.id}" in followed.stdout
    assert "| step 3" in followed.stderr
    polypod("generate", "cat.png", "--detach", "-p", "hold=true")
    second = list(service.jobs.values())[1]
    assert "cancelled" in polypod("cancel", second.id).stdout
    assert polypod("job", second.id).exit_code == 1
    polypod("generate", "cat.png", "--detach", "-p", "hold=true")
    third = list(service.jobs.values())[2]
    some = polypod("cancel", "nothing", third.id)
    assert some.exit_code == 1 and "There is no such job" in some.stderr
    assert re.search(f"{third.id} .*cancelled", some.stdout)
    listed = polypod("jobs").stdout
    assert re.search(f"{second.id} .*cancelled", listed)
    assert listed.index(second.id) < listed.index(job.id)
    (only,) = json.loads(polypod("jobs", "--status", "completed", "--json").stdout)
    assert only["job_id"] == job.id
    assert json.loads(polypod("job", job.id, "--json").stdout)["status"] == "completed"


def test_download_of_one_asset_and_of_no_job(polypod, service):
    polypod("generate", "cat.png")
    (job,) = service.jobs.values()
    assert polypod("download", job.id, "--asset", "view_3.png", "-o", "x").exit_code == 0
    assert names("x") == ["view_3.png"]
    done = polypod("download", "none")
    assert done.exit_code == 1 and "There is no such job." in done.stderr


def test_download_waits_for_an_asset(polypod, service):
    polypod("generate", "cat.png", "--detach", "-p", "hold=true")
    (job,) = service.jobs.values()
    with ThreadPoolExecutor(1) as beside:
        beside.submit(release_when_followed, service, job.id)
        done = polypod("download", job.id, "--asset", "model.glb")
    assert done.exit_code == 0 and names() == ["model.glb"], done.stderr


def test_health_and_models(polypod, service):
    health = polypod("health")
    assert health.exit_code == 0 and "healthy" in health.stdout and "1.2.3" in health.stdout
    assert json.loads(polypod("health", "--json").stdout)["model_loaded"] is True
    assert "Blows a silhouette up." in polypod("models").stdout
    card = polypod("models", "inflate").stdout
    assert "mask (optional)" in card and "number 0 …" in card and "draft | high" in card
    missing = polypod("models", "none")
    assert missing.exit_code == 1 and "There is no such model here." in missing.stderr
    service.breaks("/health", status=503, body=b'{"status": "degraded", "reasons": ["No GPU."]}')
    ill = polypod("health")
    assert ill.exit_code == 1 and "No GPU." in ill.stdout
    service.heals()
    full_disk = b'{"status": "healthy", "refuses": "The disk budget is used up."}'
    service.breaks("/health", status=200, body=full_disk)
    full = polypod("health")
    assert full.exit_code == 0 and "The disk budget is used up." in full.stdout


# --- settings, help, completion -------------------------------------------------------------------


def test_every_setting_is_listed_and_secrets_are_not(monkeypatch):
    monkeypatch.setenv("POLYPOD_API_KEYS", "hunter2,hunter3")
    monkeypatch.setenv("POLYPOD_DATABASE_URL", "postgresql://me:hunter4@db/polypod")
    monkeypatch.setenv("MAX_QUEUE_SIZE", "77")
    done = CliRunner().invoke(app, ["settings"])
    assert done.exit_code == 0 and "hunter" not in done.stdout
    assert "MAX_QUEUE_SIZE = 77  (default 10)" in done.stdout
    assert "postgresql://me:(hidden)@db/polypod" in done.stdout
    listed = json.loads(CliRunner().invoke(app, ["settings", "--json"]).stdout)
    assert len(listed) == len(Settings.model_fields)
    assert {"name", "value", "default", "description"} == set(listed[0])
    known = {"PORT", "POLYPOD_DATA", "MAX_CONCURRENT", "SYNC_TIMEOUT", "MODEL_IDLE_TIMEOUT"}
    assert known <= {entry["name"] for entry in listed}


def test_a_models_own_settings_are_listed_with_it(monkeypatch, tmp_path):
    monkeypatch.setenv("POLYPOD_HOME", str(tmp_path))
    monkeypatch.setenv("ENABLE_TEXTURE", "false")
    monkeypatch.setenv("HUNYUAN_DEVICE", "cuda:1")
    listed = json.loads(CliRunner().invoke(app, ["settings", "hunyuan21", "--json"]).stdout)
    own = {entry["name"]: entry["value"] for entry in listed[len(Settings.model_fields) :]}
    assert own["ENABLE_TEXTURE"] == "false"
    assert own["TEXTURE_DEVICE or HUNYUAN_DEVICE"] == "cuda:1"
    assert own["HUNYUAN_PATH"] == f"{tmp_path}/hunyuan21/src/Hunyuan3D-2.1"
    wrong = CliRunner().invoke(app, ["settings", "hunyuan"])
    assert wrong.exit_code == 1 and "Did you mean 'hunyuan21'?" in wrong.stderr


def test_a_listed_name_is_the_one_that_works(monkeypatch):
    """Setting the variable under its listed name changes the value that is listed."""
    monkeypatch.setenv("POLYPOD_COMPAT", "sam3d=inflate")
    listed = {setting.name: setting for setting in settings_here()}
    assert listed["POLYPOD_COMPAT"].value == "sam3d=inflate"
    for setting in listed.values():
        assert setting.description, setting.name
        if not setting.default.isdecimal():
            continue
        with monkeypatch.context() as patched:
            patched.setenv(setting.name, "7")
            assert {s.name: s.value for s in settings_here()}[setting.name] == "7"


def test_a_setting_that_is_not_valid(monkeypatch):
    monkeypatch.setenv("MAX_CONCURRENT", "many")
    done = CliRunner().invoke(app, ["settings"])
    assert done.exit_code == 1
    assert "MAX_CONCURRENT is not valid" in done.stderr and "Traceback" not in done.output


@pytest.mark.parametrize("command", [["up"], ["serve"]])
def test_a_port_that_cannot_be(command, monkeypatch):
    assert CliRunner().invoke(app, [*command, "--port", "70000"]).exit_code == 2
    monkeypatch.setenv("PORT", "70000")
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1 and "PORT is not valid" in done.stderr


def test_help_is_light_and_has_an_example_everywhere():
    code = (
        "import sys\nfrom polypod.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'bentoml', 'numpy', 'httpx', 'pydantic_settings', 'asyncio', 'psutil'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "HEAVY []" in done.stdout
    commands = re.findall(r"│ (\w+) ", done.stdout)
    assert {"generate", "run", "serve", "job", "jobs", "cancel", "download"} <= set(commands)
    for command in app.registered_commands:
        assert command.epilog and command.epilog.startswith("Example:")


def test_version():
    running = child("--version")
    assert running.communicate(timeout=20)[0].startswith("polypod 0.")
    assert running.returncode == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell):
    def complete(**variables: str) -> str:
        done = child(env=os.environ | {"_POLYPOD_COMPLETE": f"complete_{shell}"} | variables)
        return done.communicate(timeout=20)[0]

    words = {
        "COMP_WORDS": "polypod gen",
        "COMP_CWORD": "1",
        "_TYPER_COMPLETE_ARGS": "polypod gen",
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    said = complete(**words)
    assert "generate" in said and "health" not in said
    source = child(env=os.environ | {"_POLYPOD_COMPLETE": f"source_{shell}"})
    assert "_POLYPOD_COMPLETE" in source.communicate(timeout=20)[0]


# --- a service of our own -------------------------------------------------------------------------


@pytest.fixture
def egg(here, monkeypatch):
    """A photo of an egg; temporary files and processes of this test can be told by their place."""
    Image = pytest.importorskip("PIL.Image")
    Draw = pytest.importorskip("PIL.ImageDraw")
    picture = Image.new("RGB", (200, 200), "white")
    Draw.Draw(picture).ellipse((60, 40, 140, 170), fill=(200, 90, 30))
    picture.save(here / "egg.png")
    (here / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(here / "tmp"))
    return here


def processes_of(folder: Path) -> list[str]:
    """Commands of living processes whose data folder is in `folder`."""
    found: list[str] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get("POLYPOD_DATA", "").startswith(str(folder)):
                found.append(" ".join(process.cmdline()))
    return found


def test_run_makes_a_model_and_leaves_nothing_running(egg):
    running = child("run", "egg.png", "-p", "resolution=64", "-o", "my models")
    said, complaint = running.communicate(timeout=120)
    assert running.returncode == 0, complaint
    egg_views, out = [f"egg_view_{i}.png" for i in range(4)], Path("my models")
    assert names(out) == ["egg.glb", "egg_manifest.json", *egg_views]
    assert (out / "egg.glb").read_bytes().startswith(b"glTF")
    assert (out / "egg_view_0.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "egg_manifest.json").read_text())["model"]
    assert "open 'my models/egg.glb'" in said and "watertight" in said and "make serve" in said
    assert processes_of(egg) == [] and names("tmp") == []


def test_run_skips_the_first_stage_where_it_is_kept(egg, started_once):
    with started_once("inflate", Path("kept")) as run:
        assert run("egg.png", "-p", "resolution=64", "-p", "seed=7").exit_code == 0
        done = run("egg.png", "--skip-stage1", "-p", "texture_size=256")
        assert done.exit_code == 0 and "Going on from inflate of job" in done.stderr, done.stderr
        assert "again" not in done.stderr
        told = json.loads(Path("out/egg_manifest.json").read_text())
        kept = {run["stage"]: run["kept"] for run in told["stages"]}
        assert kept == {"cutout": True, "inflate": True, "texture": False, "export": False}
        assert (told["parameters"]["resolution"], told["parameters"]["texture_size"]) == (64, 256)

        done = run("egg.png", "--skip_stage1", "-p", "resolution=96")
        assert "inflate of this picture has resolution 64, not 96" in done.stderr
        assert done.exit_code == 1

        Path("other.png").write_bytes(Path("egg.png").read_bytes() + b" ")
        done = run("other.png", "--skip-stage1")
        assert "No earlier job with this picture got as far as inflate" in done.stderr
        assert done.exit_code == 1

    with contextlib.closing(sqlite3.connect("kept/pods/inflate-1/polypod.db")) as pod, pod:
        pod.execute("DELETE FROM kept_files")
        pod.execute("DELETE FROM kept_stages")
    running = child("run", "egg.png", "--skip-stage1", "-p", "texture_size=512", "--data", "kept")
    _, complaint = running.communicate(timeout=120)
    assert "is gone" in complaint  # cancelled at once, or noted where it was faster
    assert processes_of(egg) == []


def test_the_newest_fitting_job_is_gone_on_from(here):
    """Also one that failed after its first part: a router knows that by what it has left."""
    picture = hashlib.sha256(Path("cat.png").read_bytes()).hexdigest()
    image = {"name": "image", "kind": "input", "url": "", "sha256": picture}
    views = {"name": "color_0.png", "kind": "output", "url": "", "stage": "multiview"}
    names = ["cutout", "multiview", "latent", "texture", "export"]
    first = SYNCHUMAN.resolve({"stage1_steps": 30, "texture_size": 512})

    class History:
        def jobs(self, model):
            for job_id, status, params, assets, left in (
                ("other picture", "completed", first, [{**image, "sha256": "0" * 64}], []),
                ("running", "processing", first, [image, views], names[2:]),
                ("failed before", "failed", first, [image], names),
                ("failed after", "failed", {**first, "seed": 7}, [image, views], names),
                ("completed", "completed", first, [image], []),
            ):
                raw = {"job_id": job_id, "status": status, "params": params, "assets": assets}
                yield JobView.parse({**raw, "remaining_stages": left, "model": model})

    found = find(History(), SYNCHUMAN, "cat.png", {"texture_size": 2048, "preset": "ultra"})
    assert (found.job, found.stage) == ("failed after", "multiview")
    assert (found.params["seed"], found.params["stage1_steps"]) == (7, 30)
    assert (found.params["texture_size"], found.params["preset"]) == (2048, "ultra")
    assert "stage2_steps" not in found.params  # the preset's
    assert find(History(), SYNCHUMAN, "cat.png", {"seed": 43}).job == "completed"
    with pytest.raises(ClientError, match="stage1_steps 30, not 50"):
        find(History(), SYNCHUMAN, "cat.png", {"stage1_steps": 50})


def test_run_says_at_once_where_nothing_can_be_kept(egg):
    for arguments, words in (
        (["egg.png"], "needs --data"),
        (["egg.png", "--data", "kept"], "Nothing is kept in kept"),
        (["http://example.org/egg.png", "--data", "kept"], "name a file"),
    ):
        done = CliRunner().invoke(app, ["run", *arguments, "--skip-stage1"])
        assert done.exit_code == 2 and words in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["starting", "working"])
def test_run_that_is_interrupted_leaves_nothing_running(egg, number, when):
    running = child("run", "egg.png", "-p", "resolution=64", "--data", "kept")
    until(lambda: processes_of(egg), 60)
    if when == "working":
        until(lambda: list(Path("kept").glob("pods/*/workers/*")), 60)
    running.send_signal(number)
    _, complaint = running.communicate(timeout=60)
    assert running.returncode == 128 + number, complaint
    assert processes_of(egg) == [] and "Traceback" not in complaint


@pytest.mark.parametrize("place", ["", "pods/inflate-1", "pods/inflate-1/polypod.db/x"])
def test_run_tells_why_it_does_not_start(egg, place):
    """Neither the router nor the pod can: a file, or a folder, is where the other should be."""
    blocked = egg / "blocked" / place if place else egg / "blocked"
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("in the way")
    running = child("run", "egg.png", "--data", "blocked")
    _, complaint = running.communicate(timeout=120)
    assert running.returncode == 1
    told = "The service" if place else "The data folder"
    assert told in complaint and "Traceback" not in complaint
    assert "blocked" in complaint or "database" in complaint
    assert processes_of(egg) == []


def test_run_that_is_killed_leaves_nothing_running(egg):
    running = child("run", "egg.png", "-p", "resolution=64", "--data", "kept")
    until(lambda: list(Path("kept").glob("pods/*/workers/*")), 60)
    running.kill()
    running.communicate(timeout=60)
    until(lambda: processes_of(egg) == [], 60)


def test_serve_until_interrupted(egg):
    running = child("serve", "inflate", "--port", "0", "--data", "kept", bufsize=1)
    try:
        assert running.stderr
        told = re.search(r"http://127.0.0.1:\d+", running.stderr.readline())
        assert told
        until(lambda: _answers(told[0]), 60)
        done = CliRunner().invoke(app, ["generate", "egg.png", "--url", told[0]])
        assert done.exit_code == 0, done.stderr
        running.send_signal(signal.SIGINT)
        _, complaint = running.communicate(timeout=60)
        assert "Traceback" not in complaint
    finally:
        running.kill()
        running.communicate()
    until(lambda: processes_of(egg) == [])
    assert Path("kept/polypod.db").exists()


def _answers(url: str) -> bool:
    return CliRunner().invoke(app, ["health", "--url", url]).exit_code == 0


def test_run_whose_service_dies_starts_it_again(egg):
    running = child("run", "egg.png", "-p", "resolution=64", "--data", "kept")
    assert running.stderr
    while "egg:" not in running.stderr.readline():
        assert running.poll() is None
    pod = json.loads(Path("kept/pods/inflate-1.json").read_text())["pid"]
    psutil.Process(pod).kill()
    said, complaint = running.communicate(timeout=120)
    assert running.returncode == 0, complaint
    assert "out/egg.glb" in said
    assert processes_of(egg) == []
