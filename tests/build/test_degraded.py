"""A real service of a GPU model on this machine: it starts, says what is missing, takes no job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from polypod.build import bake
from polypod.image import Home
from tests.bento import Server, bentoml_serve, wait_until
from tests.build.driver import install_driver
from tests.build.painter import PAINTER

SERVICE = "tests.build.painter_service:Painter"
PICTURE = Path(__file__).parents[2] / "examples" / "duck.jpg"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[Server]:
    folder = tmp_path_factory.mktemp("degraded")
    with pytest.MonkeyPatch.context() as patch:
        install_driver(patch, folder / "bin", "NVIDIA L4, 23034, 8.9")
        env = {"POLYPOD_HOME": str(folder / "home"), "PATH": os.environ["PATH"]}
        with bentoml_serve(folder, SERVICE, ready=False, **env) as server:
            wait_until(lambda: answers(server), 60)
            yield server


def answers(server: Server) -> bool:
    try:
        return server.http.get("/health").status_code == 200
    except Exception:
        return False


def submit(server: Server, **fields: str):
    files = {"image": ("duck.jpg", PICTURE.read_bytes(), "image/jpeg")}
    return server.http.post("/generate", files=files, data=fields)


def test_a_service_without_its_model_says_so_and_recovers(server: Server) -> None:
    """One test: the second half is the repair of the first."""
    health = server.http.get("/health").json()
    assert health["status"] == "degraded"
    assert "model environment is missing" in health["reasons"][0]
    assert any("weights are missing" in reason for reason in health["reasons"])
    assert server.http.get("/readyz").status_code == 503
    refused = submit(server)
    assert refused.status_code == 503
    problem = refused.json()
    assert "environment is missing" in problem["error"]
    assert "polypod setup painter" in json.dumps(problem)
    assert server.http.get("/jobs").json()["jobs"] == []

    provide(Home(server.folder / "home" / "painter"))
    wait_until(lambda: server.http.get("/health").json()["reasons"] == [], 60)

    too_large = submit(server)
    assert too_large.status_code == 422
    assert "needs 32 GB of GPU memory" in too_large.json()["error"]
    assert too_large.json()["fits"] == ["output_format ply"]
    card = server.http.get("/models/painter").json()
    assert card["needs_by_preset"] == {"fast": {"gpu": 14}, "best": {"gpu": 32}}


def test_one_job_without_the_model_ends_with_what_to_do(tmp_path: Path) -> None:
    env = os.environ | {"POLYPOD_HOME": str(tmp_path), "BENTOML_HOME": str(tmp_path / "bentoml")}
    command = [sys.executable, "-m", "polypod.cli", "run", str(PICTURE), "-m", "sam3d"]
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1
    assert "The model environment is missing" in done.stderr and "setup sam3d" in done.stderr
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def provide(home: Home) -> None:
    """What `polypod setup` would leave."""
    for checkout in PAINTER.image.checkouts:
        place = Path(home.fill(checkout.place))
        place.mkdir(parents=True)
        (place / ".commit").write_text(checkout.commit)
    bake.main(["list", "--to", str(home.weights)])
    home.python.parent.mkdir(parents=True)
    home.python.symlink_to(sys.executable)
