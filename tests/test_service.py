"""The service as a user of BentoML meets it: served, stopped, killed and built for real."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.bento import (
    BENTOML,
    INFLATE,
    ROOT,
    Server,
    all_gone,
    bentoml_serve,
    environment,
    is_free,
    wait_until,
)

PHOTO = next((ROOT / "examples").glob("*.jpg"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # PORT is somebody else's: what the command line says wins.
    with bentoml_serve(tmp_path_factory.mktemp("served"), PORT="9") as running:
        yield running


def test_our_routes_are_at_the_root(server: Server) -> None:
    assert server.http.get("/health").json()["status"] == "healthy"
    assert server.http.get("/models").status_code == 200
    nothing = server.http.get("/nothing")
    assert (nothing.status_code, nothing.json()["code"]) == (404, "not_found")


def test_a_photograph_becomes_a_model(server: Server) -> None:
    with PHOTO.open("rb") as photo:
        answer = server.http.post("/generate/sync", files={"image": photo}, timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.content[:4] == b"glTF"


def test_docs_show_our_routes_and_bentomls_and_load_nothing_from_elsewhere(server: Server) -> None:
    page = server.http.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "//" not in page.text.replace("<!DOCTYPE", "")
    for script in ("static_content/swagger-ui-bundle.js", "static_content/swagger-ui.css"):
        assert script in page.text
        assert server.http.get(f"/{script}").status_code == 200

    document = server.http.get("/docs.json").json()
    assert {"/generate", "/job/{job_id}", "/livez", "/metrics"} <= document["paths"].keys()
    assert "post" in document["paths"]["/generate"]
    schemas = document["components"]["schemas"]
    for reference in _references(document):
        assert reference.removeprefix("#/components/schemas/") in schemas


def test_metrics_join_bentomls_and_name_routes_not_jobs(server: Server) -> None:
    for path in ("/job/abc123", "/job/abc124", "/job/abc123/events", "/made-up/1", "/made-up/2"):
        server.http.get(path)
    text = server.http.get("/metrics").text
    assert "polypod_queue_capacity 10.0" in text
    assert "polypod_model_loaded" in text
    assert 'bentoml_service_request_total{endpoint="/job/{job_id}"' in text
    assert "abc123" not in text
    assert "made-up" not in text
    samples = [line.rpartition(" ")[0] for line in text.splitlines() if line[0] != "#"]
    assert len(samples) == len(set(samples)), "each figure is there once"


def test_alive_and_ready(server: Server) -> None:
    assert server.http.get("/livez").status_code == 200
    assert server.http.get("/readyz").status_code == 200


def test_other_names_for_this_machine_are_refused_everywhere(server: Server) -> None:
    for path in ("/health", "/metrics", "/docs", "/docs.json", "/schema.json"):
        answer = server.http.get(path, headers={"Host": "polypod.example.com"})
        assert answer.status_code == 403, path


def test_ctrl_c_ends_it_cleanly_with_a_stream_open(tmp_path: Path) -> None:
    with bentoml_serve(tmp_path) as server:
        with PHOTO.open("rb") as photo:
            answer = server.http.post("/generate", files={"image": photo})
        job = answer.json()["job_id"]
        family = server.family()
        received: list[str] = []
        opened = threading.Event()

        def follow() -> None:
            with server.http.stream("GET", f"/events?jobs={job}", timeout=60) as stream:
                for line in stream.iter_lines():
                    received.append(line)
                    opened.set()
            received.append("ended")

        follower = threading.Thread(target=follow)
        follower.start()
        assert opened.wait(20)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(15) == 0
        follower.join(10)
        assert received[-1] == "ended", "the stream ended as a stream ends, not as a broken line"
        assert all_gone(family)
        assert is_free(server.port)
        assert "Traceback" not in server.log


def test_nothing_outlives_the_parent(tmp_path: Path) -> None:
    with bentoml_serve(tmp_path) as server:
        family = server.family()
        assert len(family) >= 3, "parent, API process, worker"
        server.process.kill()
        wait_until(lambda: all_gone(family), 10)
        assert is_free(server.port)


def test_a_second_server_on_the_same_data_waits_then_refuses(server: Server) -> None:
    with bentoml_serve(server.folder, ready=False) as second:
        assert second.process.wait(60) == 1
        assert "Another polypod server already works on this data folder." in second.log
        assert "Traceback" not in second.log
    assert server.http.get("/readyz").status_code == 200


def test_a_routers_database_is_not_a_pods(tmp_path: Path) -> None:
    database = {"POLYPOD_DATABASE_URL": "postgresql://me:hunter2@db/polypod"}
    with bentoml_serve(tmp_path, ready=False, **database) as server:
        assert server.process.wait(60) == 1
        assert "which is for routers" in server.log and "hunter2" not in server.log
        assert "Traceback" not in server.log


def test_it_listens_elsewhere_only_with_keys(tmp_path: Path) -> None:
    with bentoml_serve(tmp_path, INFLATE, "--host", "0.0.0.0", ready=False) as server:
        assert server.process.wait(60) == 1
        assert "Not listening on 0.0.0.0 without API keys" in server.log
        assert "POLYPOD_API_KEYS" in server.log.splitlines()[-1]

    keys = {"POLYPOD_API_KEYS": "correct-horse", "POLYPOD_HOST": "0.0.0.0"}
    with bentoml_serve(tmp_path, **keys) as server:
        http = server.http
        for path in ("/metrics", "/docs", "/docs.json", "/schema.json", "/jobs", "/"):
            assert http.get(path).status_code == 401, path
            assert http.get(path, headers={"X-API-Key": "wrong"}).status_code == 401
            answer = http.get(path, headers={"Authorization": "Bearer correct-horse"})
            assert answer.status_code == 200, path
        for path in ("/health", "/livez", "/readyz"):
            assert http.get(path).status_code == 200, path


def test_a_taken_port_and_a_bad_setting_are_told_in_words(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = _bentoml(tmp_path, "serve", INFLATE, PORT=str(port))
        assert told.returncode == 1
        assert f"Cannot listen on 127.0.0.1, port {port}" in told.stderr
        assert "Traceback" not in told.stderr
    told = _bentoml(tmp_path, "serve", INFLATE, MAX_QUEUE_SIZE="many")
    assert told.returncode == 1
    assert "Setting max_queue_size" in told.stderr


def test_built_and_served_from_another_folder(tmp_path: Path) -> None:
    built = _bentoml(tmp_path, "build", cwd=ROOT)
    assert built.returncode == 0, built.stderr
    bento = (tmp_path / "bentoml/bentos/inflate/latest").read_text()
    folder = tmp_path / "bentoml/bentos/inflate" / bento
    files = {str(p.relative_to(folder / "src")) for p in (folder / "src").rglob("*") if p.is_file()}
    assert {"polypod/service.py", "services/inflate/worker.py"} <= files
    assert not [name for name in files if name.split("/")[0] in ("tests", "docs", "data", "out")]
    assert not [name for name in files if "__pycache__" in name]
    requirements = (folder / "env/python/requirements.txt").read_text()
    assert requirements.count("--hash=sha256:") > 1000
    info = yaml.safe_load((folder / "bento.yaml").read_text())
    assert info["args"] == {"model": "inflate"}
    assert "/generate" in info["schema"]["paths"]
    assert "/generate" in yaml.safe_load((folder / "apis/openapi.yaml").read_text())["paths"]

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with bentoml_serve(tmp_path, "inflate:latest", cwd=elsewhere, POLYPOD_DATA="") as server:
        assert server.http.get("/health").json()["status"] == "healthy"
        assert str(folder) in server.api().cwd()
        assert (elsewhere / "data/polypod.db").exists(), "beside the user, not inside the bento"


def test_the_bento_of_any_model_is_built_by_its_name(tmp_path: Path) -> None:
    told = _bentoml(tmp_path, "build", "--arg", "model=inflat", cwd=ROOT)
    assert told.returncode == 1
    assert "no model 'inflat'" in told.stderr
    assert "Did you mean 'inflate'?" in told.stderr


def test_importing_the_service_starts_nothing_and_reports_to_nobody(tmp_path: Path) -> None:
    code = """if True:
        import json, sys
        from bentoml._internal.utils.analytics import usage_stats
        asked_before = usage_stats.do_not_track()
        from services.inflate.service import Inflate
        heavy = ["fastapi", "sqlalchemy", "alembic", "trimesh", "scipy", "cv2", "numpy", "PIL",
                 "prometheus_client", "polypod.jobs.engine", "torch"]
        print(json.dumps([asked_before, usage_stats.do_not_track(), Inflate.import_string,
                          [name for name in heavy if name in sys.modules]]))
    """
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ran.stdout) == [False, True, INFLATE, []]
    assert not (tmp_path / "data").exists()


def _bentoml(
    folder: Path, *arguments: str, cwd: Path = ROOT, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BENTOML, *arguments],
        cwd=cwd,
        env=environment(folder, **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _references(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name == "$ref":
                yield inner
            else:
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)
