"""How a model's environment is made: shell commands in order, seldom changed ones first.

The same commands make an image (`dockerfile`) and a bare machine's environment (`setup`).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from polypod.image import Checkout, Compiled, Home, Hub, Image, Licensed, Step, Url, Wheels
from polypod.model import Model

ALWAYS = ("ca-certificates", "python3", "python3-venv", "tini")
TO_COMPILE = ("build-essential", "git", "ninja-build")
ARGUMENTS = {"UV_PYTHON_PREFERENCE": "only-managed", "MAX_JOBS": "4"}
"""uv's own Python has the headers to compile with; more jobs at once may take all memory."""


@dataclass(frozen=True)
class Layer:
    """Commands that are done together, each only if the one before went well."""

    title: str
    commands: tuple[str, ...]
    secret: bool = False
    """It may read the build secret `HF_TOKEN`."""
    licensed: str = ""
    """Which file it reads of the folder of licensed ones."""
    weights: bool = False
    """It makes weights, or their list: it reads `bake.py`."""
    proof: str = ""
    """A file that is there as long as what it made is there."""
    revision: str = ""
    """Name of the argument by which the build is given a revision that is not declared."""


@dataclass(frozen=True)
class Site:
    """Where the steps run, and with what."""

    home: Home
    lock: str
    """The model's `requirements.lock`."""
    bake: str
    """`bake.py`."""
    uv: str = "uv"
    licensed: str = "/licensed"
    architectures: Sequence[str] = ()


def model_layers(model: Model, site: Site) -> list[Layer]:
    """Environment, sources, compiled parts, weights: in an order that keeps what is slow."""
    image, weights = model.image, model.weights
    layers = [
        *_environment(image, site),
        *(_checkout(checkout, site.home) for checkout in image.checkouts),
        *(_compiled(part, site) for part in image.compiled),
        *(_step(step, image, site.home) for step in image.steps),
    ]
    baked = [
        *(_hub(source, site) for source in weights.hub),
        *(_url(source, site) for source in weights.urls),
        *(_licensed(source, site) for source in weights.licensed),
        *(_step(step, image, site.home) for step in weights.steps),
    ]
    if has_weights(model):
        listing = f"python3 {shlex.quote(site.bake)} list --to {site.home.weights}"
        baked.append(Layer("the list of weights, for the doctor", (listing,)))
    return layers + [replace(layer, weights=True) for layer in baked]


def has_weights(model: Model) -> bool:
    weights = model.weights
    return bool(weights.hub or weights.urls or weights.licensed)


def system_packages(image: Image) -> tuple[str, ...]:
    """By name, each once."""
    tools = TO_COMPILE if image.gpu or image.checkouts or image.compiled else ()
    return tuple(sorted({*ALWAYS, *tools, *image.packages}))


def system_layer(image: Image) -> Layer:
    return Layer(
        "system packages",
        (
            "apt-get update",
            "apt-get install -y --no-install-recommends " + " ".join(system_packages(image)),
            "rm -rf /var/lib/apt/lists/*",
        ),
    )


def revision_argument(repo: str) -> str:
    """`REVISION_TENCENT_HUNYUAN3D_2_1`."""
    return "REVISION_" + "".join(c if c.isalnum() else "_" for c in repo).upper()


def _environment(image: Image, site: Site) -> list[Layer]:
    if not image.python:
        return []
    venv = site.home.venv
    make = f"{shlex.quote(site.uv)} venv --clear --python {image.python} {venv}"
    locked = f"{_install(site)} --require-hashes -r {shlex.quote(site.lock)}"
    return [
        Layer(f"upstream's Python {image.python}", (make,), proof=str(site.home.python)),
        *(_wheels(wheels, site) for wheels in image.wheels),
        Layer("locked requirements, by hash", (locked,)),
    ]


def _install(site: Site) -> str:
    return f"{shlex.quote(site.uv)} pip install --python {site.home.python} --no-deps"


def _wheels(wheels: Wheels, site: Site) -> Layer:
    names = [package.partition("==")[0].partition("[")[0] for package in wheels.packages]
    digests = [wheels.sha256.get(name, "") for name in names]
    lines = [
        package + (f" --hash=sha256:{digest}" if digest else "")
        for package, digest in zip(wheels.packages, digests, strict=True)
    ]
    where = "--no-index --find-links" if wheels.find_links else "--default-index"
    hashed = " --require-hashes" if all(digests) else ""
    pinned = "printf '%s\\n' " + " ".join(shlex.quote(line) for line in lines)
    return Layer(
        f"{', '.join(names)}, of an index of their own",
        (f"{pinned} | {_install(site)}{hashed} {where} {shlex.quote(wheels.index)} -r -",),
    )


def _checkout(checkout: Checkout, home: Home) -> Layer:
    to = home.fill(checkout.place)
    return Layer(
        f"source of {checkout.name}",
        (
            *_fetch(checkout.url, checkout.commit, to, checkout.submodules, checkout.patterns),
            f"rm -rf {to}/.git",
            f"echo {checkout.commit} > {to}/.commit",
        ),
        proof=f"{to}/.commit",
    )


def _fetch(
    url: str, commit: str, to: str, submodules: Sequence[str], patterns: Sequence[str] = ()
) -> tuple[str, ...]:
    git = f"git -C {to}"
    only = " ".join(shlex.quote(pattern) for pattern in patterns)
    sparse = [  # by hand: the command for it is not in git 2.34, which Ubuntu 22.04 has
        f"{git} config core.sparseCheckout true",
        f"mkdir -p {to}/.git/info && printf '%s\\n' {only} > {to}/.git/info/sparse-checkout",
    ]
    thin = " --filter=blob:none" if only else ""
    paths = " ".join(submodules)
    more = [f"{git} submodule update -q --init --recursive --depth 1 {paths}"] if paths else []
    return (
        f"rm -rf {to}",
        f"git init -q {to}",
        f"{git} remote add origin {url}",
        *(sparse if only else ()),
        f"{git} fetch -q --depth 1{thin} origin {commit}",
        f"{git} checkout -q --detach {commit}",
        *more,
    )


def _compiled(part: Compiled, site: Site) -> Layer:
    home = site.home
    build = f"{home.path}/build/{part.name}"
    fetched = part.commit != ""
    source = build if fetched else home.fill(part.url)
    env = {"TORCH_CUDA_ARCH_LIST": ";".join(site.architectures), **part.env}
    if fetched:  # on the same disk: flash_attn moves the wheel that it fetches to uv's cache
        env = {"UV_CACHE_DIR": f"{build}.cache", **env}
    args = "".join(f" {shlex.quote(argument)}" for argument in part.args)
    folder = f"{source}/{part.folder}" if part.folder else source
    compile_it = f"{_install(site)} --no-build-isolation{args} {folder}"
    return Layer(
        f"{part.name}, compiled",
        (
            *(_fetch(part.url, part.commit, build, part.submodules) if fetched else ()),
            f"{_exports(env, home)} && {compile_it}",
            *((f"rm -rf {build} {build}.cache",) if fetched else ()),
        ),
    )


def _step(step: Step, image: Image, home: Home) -> Layer:
    env = {name: home.fill(value) for name, value in {**image.env, **step.env}.items()}
    run = f"cd {home.fill(step.folder)} && {home.fill(step.command)}"
    return Layer(step.why, (f"{_exports(env, home)} && {run}",))


def _exports(env: Mapping[str, str], home: Home) -> str:
    path = f'PATH="{home.venv}/bin:$PATH"'
    return " ".join(["export", path, *(f"{k}={shlex.quote(v)}" for k, v in env.items() if v)])


def _hub(source: Hub, site: Site) -> Layer:
    asked = "" if source.revision else revision_argument(source.repo)
    plan = asdict(source) | {"to": source.place}
    return Layer(
        f"weights of {source.repo}",
        (_bake("hub", plan, site, f' --revision "${asked}"' if asked else ""),),
        secret=source.gated,
        revision=asked,
    )


def _url(source: Url, site: Site) -> Layer:
    return Layer(f"weights {source.to}", (_bake("url", asdict(source), site),))


def _licensed(source: Licensed, site: Site) -> Layer:
    command = _bake("licensed", asdict(source), site, f" --from {shlex.quote(site.licensed)}")
    return Layer(f"licensed {source.name}, as supplied", (command,), licensed=source.name)


def _bake(kind: str, plan: Mapping[str, object], site: Site, more: str = "") -> str:
    source = shlex.quote(json.dumps(plan))
    return f"python3 {shlex.quote(site.bake)} {kind} {source} --to {site.home.weights}{more}"
