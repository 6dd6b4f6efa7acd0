"""What a model's environment is made of: the part of the declaration that images are built from.

Everything that is fetched is pinned: by commit, by exact version and index, by digest. Texts may
name places that differ between an image and a bare machine; `Home.fill` puts them in:

    {home}     the model's own folder       {src}      source checkouts, below it
    {weights}  weights, below it            {venv}     the model environment, below it
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polypod.when import When, matches

CPU_BASE = "debian:bookworm-slim"


@dataclass(frozen=True)
class Home:
    """Where a model's environment lies: `/opt/polypod/NAME` in an image."""

    path: Path

    @property
    def src(self) -> Path:
        return self.path / "src"

    @property
    def weights(self) -> Path:
        return self.path / "weights"

    @property
    def venv(self) -> Path:
        return self.path / "venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    def fill(self, text: str) -> str:
        """`text` with the places that it names."""
        places = {"home": self.path, "src": self.src, "weights": self.weights, "venv": self.venv}
        return re.sub(r"\{(home|src|weights|venv)\}", lambda m: str(places[m[1]]), text)

    def environment(self, image: Image) -> dict[str, str]:
        """What the image's variables are here."""
        return {name: self.fill(value) for name, value in image.env.items()}


@dataclass(frozen=True)
class Checkout:
    """A source repository at a commit. `to` is where it goes: `{src}/NAME` if empty."""

    url: str
    """`https://github.com/owner/name`, without `.git`."""
    commit: str
    """All 40 characters."""
    to: str = ""
    submodules: tuple[str, ...] = ()
    """Paths of the submodules to fetch; git pins their commits."""
    patterns: tuple[str, ...] = ()
    """The folders and files that are needed; empty: all."""

    def __post_init__(self) -> None:
        _check_commit(self.url, self.commit)

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def place(self) -> str:
        return self.to or f"{{src}}/{self.name}"


@dataclass(frozen=True)
class Wheels:
    """Packages that only an index of their own has, each with its exact version.

    They are installed before `requirements.lock`, without what they need: name that in
    `requirements.in`.
    """

    index: str
    """URL that only the build reaches."""
    packages: tuple[str, ...]
    """`torch==2.5.1+cu121`."""
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])
    """Digest of the wheel by package name, where one is known."""
    find_links: bool = False
    """The index is a page of links (kaolin's), not one that pip knows as an index."""

    def __post_init__(self) -> None:
        for package in self.packages:
            if not re.fullmatch(r"[A-Za-z0-9._-]+(\[[a-z,]+\])?==[A-Za-z0-9.+_-]+", package):
                raise ValueError(
                    f"{package!r} from {self.index} is not pinned: write NAME==VERSION."
                )


@dataclass(frozen=True)
class Compiled:
    """A package that is compiled against the installed torch, for the GPUs of `Needs`.

    Its source is a commit, or a folder of a checkout (`{src}/NAME/folder`) where `url` is such a
    place and `commit` is empty.
    """

    name: str
    """Name of the distribution, as `requirements.in` of others would ask for it."""
    url: str
    commit: str = ""
    folder: str = ""
    """Where in the repository its `setup.py` or `pyproject.toml` is."""
    submodules: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Beside `TORCH_CUDA_ARCH_LIST` and `MAX_JOBS`, such as `FORCE_CUDA=1`."""
    args: tuple[str, ...] = ()
    """Further arguments of `uv pip install`."""

    def __post_init__(self) -> None:
        if not self.url.startswith("{src}"):
            _check_commit(self.url, self.commit)


@dataclass(frozen=True)
class Step:
    """A shell command of the build, with the model environment's `python` first on the PATH."""

    command: str
    why: str
    folder: str = "{home}"
    env: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Image:
    """What an image holds below the weights. The default is the CPU base, and nothing else."""

    python: str = ""
    """Upstream's Python (`3.10`); empty: no environment of its own, the serving one runs it."""
    base: str = CPU_BASE
    """`nvidia/cuda:12.1.1-cudnn8-devel-ubuntu22.04`."""
    base_digest: str = ""
    """`sha256:...` of the base, where it is known."""
    packages: tuple[str, ...] = ()
    """System packages of the base's distribution; git, ninja and a C++ compiler are there too."""
    wheels: tuple[Wheels, ...] = ()
    checkouts: tuple[Checkout, ...] = ()
    compiled: tuple[Compiled, ...] = ()
    steps: tuple[Step, ...] = ()
    """After all of the above."""
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the worker, and of every step of the build. `HF_HUB_OFFLINE=1` is always there."""
    imports: tuple[str, ...] = ()
    """Modules that must be importable in the model environment; the doctor tries them."""

    @property
    def gpu(self) -> bool:
        return self.base.startswith("nvidia/")


@dataclass(frozen=True)
class Hub:
    """Files of a Hugging Face repository at a commit."""

    repo: str
    """`owner/name`."""
    revision: str = ""
    """All 40 characters; empty: not known here, so the build must be given one."""
    patterns: tuple[str, ...] = ("*",)
    """Which files (shell patterns over the whole path; `*` also matches `/`)."""
    exclude: tuple[str, ...] = ()
    to: str = ""
    """Folder below `{weights}`; empty: the repository's name."""
    cache: bool = False
    """Laid out as Hugging Face's own cache in `{weights}/TO`, which `HF_HUB_CACHE` then names."""
    gated: bool = False
    """Needs a token of someone who has accepted the licence: build secret `HF_TOKEN`."""
    sha256: Mapping[str, str] = field(default_factory=dict[str, str])
    """Digests known beforehand, by path in the repository; the hub's own are always checked."""

    def __post_init__(self) -> None:
        if self.revision:
            _check_commit(self.repo, self.revision)

    @property
    def place(self) -> str:
        return self.to or self.repo.rpartition("/")[2]


@dataclass(frozen=True)
class Url:
    """A file of its own."""

    url: str
    to: str
    """File below `{weights}`."""
    sha256: str = ""
    """Or its first 8 characters or more, where only these are published (torchvision's names)."""
    md5: str = ""
    """Where only that is published."""
    size: int = 0
    """Bytes, where known."""

    def __post_init__(self) -> None:
        _check_digest(self.url, self.sha256)


@dataclass(frozen=True)
class Licensed:
    """A file that may not be passed on: whoever builds the image gets it and supplies it."""

    name: str
    """Path below the folder that the builder names."""
    where: str
    """Where to get it, and what to accept there, in words."""
    to: str = ""
    """File below `{weights}`; empty: `name`."""
    sha256: str = ""
    """Checked before anything is built; empty where nobody tells it."""

    def __post_init__(self) -> None:
        _check_digest(self.name, self.sha256)

    @property
    def place(self) -> str:
        return self.to or self.name


@dataclass(frozen=True)
class Weights:
    """What is baked in below `{weights}`. At run time nothing is downloaded."""

    hub: tuple[Hub, ...] = ()
    urls: tuple[Url, ...] = ()
    licensed: tuple[Licensed, ...] = ()
    steps: tuple[Step, ...] = ()
    """Once all are there: unpacking, altering configuration files."""

    @property
    def gated(self) -> bool:
        return any(source.gated for source in self.hub)

    def describe(self) -> list[dict[str, str]]:
        """Each source with its revision or digest, for cards and manifests."""
        return [
            *({"source": h.repo, "revision": h.revision} for h in self.hub),
            *({"source": u.url, "sha256": u.sha256 or u.md5} for u in self.urls),
            *({"source": x.name, "sha256": x.sha256} for x in self.licensed),
        ]


@dataclass(frozen=True)
class Case:
    """What certain jobs need: those whose parameters match `when`."""

    when: When
    vram_gb: Mapping[str, float]
    """By worker; one that is not named needs what it always needs, one with 0 is not used."""
    source: str = ""

    def matches(self, params: Mapping[str, Any]) -> bool:
        return matches(self.when, params)


@dataclass(frozen=True)
class Needs:
    """What the model needs; all of it stands on the card. GB are 1024**3 bytes."""

    vram_gb: Mapping[str, float] = field(default_factory=dict[str, float])
    """GPU memory by worker, with everything that it keeps loaded."""
    cases: tuple[Case, ...] = ()
    """Jobs that need more or less than that; the first that matches counts."""
    architectures: tuple[str, ...] = ()
    """Compute capabilities that extensions are compiled for (`8.0`): `TORCH_CUDA_ARCH_LIST`."""
    cuda: str = ""
    """Least CUDA version that the driver must know (`12.1`)."""
    driver: str = ""
    """Least driver version (`525.60.13`)."""
    cpu_cores: int = 1
    memory_gb: float = 2
    disk_gb: float = 1
    """Of the container, with image and weights."""
    source: str = ""
    """Where the figures come from: proved, or only claimed, and by whom."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """The same for single figures by name (`vram_gb`, `memory_gb`), where they differ."""

    def vram_for(self, params: Mapping[str, Any]) -> dict[str, float]:
        """GB by worker for a job with these resolved parameters."""
        case = self._case(params)
        return {**self.vram_gb, **(case.vram_gb if case else {})}

    def source_for(self, params: Mapping[str, Any]) -> str:
        """Where these figures come from."""
        case = self._case(params)
        return (case.source if case else "") or self.sources.get("vram_gb", self.source)

    def _case(self, params: Mapping[str, Any]) -> Case | None:
        return next((case for case in self.cases if case.matches(params)), None)


def _check_digest(what: str, sha256: str) -> None:
    if sha256 and not re.fullmatch(r"[0-9a-f]{8,64}", sha256):
        raise ValueError(f"{what}: {sha256!r} is no SHA-256, nor the beginning of one.")


def _check_commit(what: str, commit: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ValueError(f"{what}: {commit!r} is no commit. Branches and tags move: give all 40.")
