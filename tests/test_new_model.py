"""A model is one folder: one is made up and added to a copy of the house, nothing else changes."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from polypod.assets.glb import read_glb
from polypod.build.declared import ROOT
from tests.bento import environment

COMMIT = "0123456789" * 4
FOLDER = {
    "__init__.py": "",
    "model.py": '''
"""slab: the picture's outline as a flat slab."""

from pathlib import Path

from pydantic import Field

from polypod import kit
from polypod.image import Checkout, Image
from polypod.model import Input, Licence, Model, Setting, Stage


class SlabParams(kit.CutoutParams):
    thickness: float = Field(0.2, gt=0, le=1, description="Depth of the slab.")


MODEL = Model(
    name="slab",
    title="Slab",
    summary="A box as wide and high as the object.",
    folder=Path(__file__).parent,
    params=SlabParams,
    inputs={"image": Input(required=True), "mask": Input()},
    stages=(
        kit.cutout(),
        Stage("slab", inputs=("input.png",), outputs=("mesh.obj",), params=("thickness",)),
        kit.export("mesh.obj"),
    ),
    formats=("glb",),
    presets={"thin": {"thickness": 0.1}, "thick": {}},
    default_preset="thick",
    licence=Licence("MIT"),
    settings=(Setting("colour", ("SLAB_COLOUR",), "0.5 0.5 0.5", "Red, green, blue."),),
    image=Image(checkouts=(Checkout("https://github.com/example/slab", "COMMIT"),)),
)
''',
    "worker.py": """
def load(worker, settings):
    return settings["colour"]


def run(stage, colour, job):
    from PIL import Image

    job.progress(0.5, "Cutting the slab")
    left, top, right, bottom = Image.open(job.inputs["input.png"]).getbbox()
    width, height, depth = (right - left) / 100, (bottom - top) / 100, job.params.thickness
    corners = [(x, y, z) for x in (0, width) for y in (0, height) for z in (0, depth)]
    sides = ("1 2 4 3", "5 7 8 6", "1 5 6 2", "3 4 8 7", "1 3 7 5", "2 6 8 4")
    lines = [f"v {x} {y} {z} {colour}" for x, y, z in corners] + [f"f {side}" for side in sides]
    (job.outputs / "mesh.obj").write_text("\\n".join(lines))
""",
    "service.py": """
from polypod.service import service
from services.slab.model import MODEL

Slab = service(MODEL)
""",
    "requirements.in": "",
    "requirements.lock": "",
    "README.md": "# slab\n",
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone holds, with one folder more."""
    house = tmp_path_factory.mktemp("clone") / "house"
    for name in ("polypod", "services", "requirements", "deploy"):
        shutil.copytree(ROOT / name, house / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("bentofile.yaml", "LICENSE"):
        shutil.copy(ROOT / name, house)
    (house / "services" / "slab").mkdir()
    for name, text in FOLDER.items():
        (house / "services" / "slab" / name).write_text(text.replace("COMMIT", COMMIT))
    source = house / "home" / "slab" / "src" / "slab"  # as `polypod setup slab` leaves it
    source.mkdir(parents=True)
    (source / ".commit").write_text(COMMIT)
    return house


def polypod(house: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "polypod.cli", *arguments],
        cwd=house,
        env=environment(
            house,
            PYTHONPATH=str(house),
            POLYPOD_HOME=str(house / "home"),
            SLAB_COLOUR="1 0 0",
        ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_page_works_as_it_stands(house: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/new-model.md").read_text()
    files = re.findall(r"`services/(cube/\w+\.py)`.*?```python\n(.*?)```", page, re.DOTALL)
    for path, code in files:
        file = house / "services" / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(code)
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.png")
    ((command, *words),) = (
        line.replace("photo.jpg", str(tmp_path / "photo.png")).split()
        for line in page.splitlines()
        if line.startswith("polypod run")
    )
    assert command == "polypod"
    said = polypod(house, *words, "-o", str(tmp_path / "out"))
    (part,) = read_glb(tmp_path / "out" / "photo.glb")
    assert part.vertices.max(0).tolist() == pytest.approx([1, 1, 1])
    assert "serve cube" in said and "make serve" not in said, "the fleet does not have it"


def test_it_makes_a_result_through_service_router_and_client(house: Path, tmp_path: Path) -> None:
    picture = Image.new("RGBA", (200, 300))
    picture.paste((0, 0, 255, 255), (50, 50, 150, 250))
    picture.save(tmp_path / "photo.png")
    photo = tmp_path / "photo.png"
    said = polypod(house, "run", str(photo), "-m", "slab", "-o", str(tmp_path / "out"))
    assert re.search(rf"run {photo} -m slab --preset \w+   another preset", said)
    (part,) = read_glb(tmp_path / "out" / "photo.glb")
    assert part.vertices.max(0).tolist() == pytest.approx([1, 2, 0.2])
    assert part.colors is not None and part.colors[0].tolist() == pytest.approx([1, 0, 0, 1])
    assert len(list((tmp_path / "out").glob("*view*.png"))) == 4


def test_image_settings_and_doctor_know_it(house: Path) -> None:
    dockerfile = polypod(house, "image", "slab")
    assert "https://github.com/example/slab" in dockerfile and "cutout.lock" in dockerfile
    assert "SLAB_COLOUR = 1 0 0  (default 0.5 0.5 0.5)" in polypod(house, "settings", "slab")


def test_no_other_room_names_a_model() -> None:
    """But for `inflate`, which is embedded, and the protocols of other people's clients."""
    names = [path.parent.name for path in (ROOT / "services").glob("*/model.py")]
    said = re.compile(rf"\b({'|'.join(sorted(set(names) - {'inflate'}))})\b", re.IGNORECASE)
    protocols = re.compile(r"\b\w+=inflate\b")  # the setting POLYPOD_COMPAT
    found = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for path in (ROOT / "polypod").rglob("*.py")
        if "compat" not in path.parts
        for line in path.read_text().splitlines()
        if said.search(protocols.sub("", line))
    ]
    assert found == []
