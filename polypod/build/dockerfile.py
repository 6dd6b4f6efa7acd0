"""The Dockerfile of a model, and what its build reads: pure text from the declaration.

Layers stand in the order of how seldom they change, so that a changed line of code re-uploads
megabytes: base, system packages, model environment, weights, serving environment, code.
"""

from __future__ import annotations

import re
from pathlib import Path

from polypod.build import licensed, steps
from polypod.build.declared import CUTOUT_LOCK
from polypod.build.steps import Layer, Site
from polypod.image import Home
from polypod.model import Model

ROOT = "/opt/polypod"
APP = f"{ROOT}/app"
BUILD = f"{ROOT}/build"
SERVING = f"{ROOT}/serving"
SERVING_PYTHON = "3.11"
LICENSED = "licensed"
"""Name of the build context that holds licensed files."""


def dockerfile(model: Model, serving_lock: str) -> str:
    """The whole text. `serving_lock`: the text of `requirements/serving.lock`."""
    site = image_site(model)
    base = model.image.base + (f"@{model.image.base_digest}" if model.image.base_digest else "")
    parts = [
        f"# {model.title}, made by `polypod image {model.name}`: change the declaration instead.",
        f"FROM {base}",
        _variables({"DEBIAN_FRONTEND": "noninteractive", "PATH": f"{ROOT}/bin:$PATH"}),
        _run(steps.system_layer(model.image)),
        _uv(serving_lock),
        *_model(model, site),
        "# serving environment: the same for every model",
        f"COPY src/requirements/serving.lock {BUILD}/serving.lock",
        _run(_serving()),
        *(_remover() if model.removes_backgrounds else ()),
        "# code",
        f"COPY src {APP}",
        _run(_code()),
        f"ARG IMAGE={image_name(model)}\n" + _variables(_settings(model)),
        _label(model),
        f"WORKDIR {APP}",
        "EXPOSE 8000",
        f'ENTRYPOINT ["tini", "--", "{ROOT}/bin/entry"]',
        'CMD ["serve"]',
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def image_site(model: Model) -> Site:
    return Site(
        home=Home(Path(ROOT, model.name)),
        lock=f"{BUILD}/requirements.lock",
        bake=f"{BUILD}/bake.py",
        architectures=model.needs.architectures,
    )


def _model(model: Model, site: Site) -> list[str]:
    lock = f"COPY src/services/{model.name}/requirements.lock {site.lock}"
    bake = f"COPY src/polypod/build/bake.py {site.bake}"
    layers = steps.model_layers(model, site)
    weights = [layer for layer in layers if layer.weights]
    environment = layers[: len(layers) - len(weights)]
    return [
        *([lock] if model.image.python else []),
        *(_run(layer) for layer in environment),
        *([bake] if weights else []),
        *(_run(layer) for layer in weights),
    ]


def _uv(serving_lock: str) -> str:
    """uv, by the hashes of the serving lock; it installs all the rest."""
    found = re.search(r"^uv==.*(?:\n[ \t]+.*)*", serving_lock, re.MULTILINE)
    if not found:
        raise ValueError("requirements/serving.lock does not hold uv: run `make lock`.")
    pinned = " ".join(re.sub(r"\\\n|#.*", " ", found[0]).split())
    made = Layer(
        "uv, which installs the rest",
        (
            f"mkdir -p {BUILD} {ROOT}/bin",
            f"echo '{pinned}' > {BUILD}/uv.lock",
            f"python3 -m venv {ROOT}/uv",
            f"{ROOT}/uv/bin/pip install -q --no-cache-dir --no-deps --require-hashes"
            f" -r {BUILD}/uv.lock",
            f"ln -s {ROOT}/uv/bin/uv {ROOT}/bin/uv",
        ),
    )
    settings = {"UV_PYTHON_INSTALL_DIR": f"{ROOT}/python", "UV_LINK_MODE": "copy"}
    arguments = {**steps.ARGUMENTS, "UV_NO_CACHE": "1"}
    told = (f"ARG {name}={value}" for name, value in arguments.items())
    return "\n".join((_run(made), _variables(settings), *told))


def _serving() -> Layer:
    return Layer(
        "", (f"uv venv --python {SERVING_PYTHON} {SERVING}", _install_serving("serving.lock"))
    )


def _remover() -> list[str]:
    install = (_install_serving(CUTOUT_LOCK),)
    return [
        f"COPY src/requirements/{CUTOUT_LOCK} {BUILD}/{CUTOUT_LOCK}",
        _run(Layer("the background remover, in the serving environment", install)),
    ]


def _install_serving(lock: str) -> str:
    return (
        f"uv pip install --python {SERVING}/bin/python --compile-bytecode --no-deps"
        f" --require-hashes -r {BUILD}/{lock}"
    )


def _code() -> Layer:
    python, bin_ = f"{SERVING}/bin/python", f"{ROOT}/bin"
    polypod = f'#!/bin/sh\\nexec {python} -m polypod.cli "$@"\\n'
    serve = '#!/bin/sh\\nexec tini -s -- polypod serve "$@"\\n'
    return Layer(
        "",
        (
            f'echo {APP} > "$({python} -c "import site; print(site.getsitepackages()[0])")'
            '/polypod.pth"',
            f"printf '{polypod}' > {SERVING}/bin/polypod",
            f"ln -s {SERVING}/bin/polypod {bin_}/polypod",
            f"printf '{serve}' > {ROOT}/serve",
            f"cp {APP}/polypod/build/entry.sh {bin_}/entry",
            f"chmod 755 {SERVING}/bin/polypod {bin_}/entry {ROOT}/serve",
            f"{python} -m compileall -q {APP}/polypod {APP}/services",
            "mkdir -p /data && chmod 1777 /data",
        ),
    )


def _settings(model: Model) -> dict[str, str]:
    return {
        "POLYPOD_HOST": "0.0.0.0",  # noqa: S104  refused without keys: lifetime.check_address
        "POLYPOD_HOME": ROOT,
        "POLYPOD_DATA": "/data",
        "POLYPOD_MODEL": model.name,
        "POLYPOD_IMAGE": "$IMAGE",
        "SYNC_TIMEOUT": "90",
        "BENTOML_HOME": "/tmp/bentoml",  # noqa: S108
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONUNBUFFERED": "1",
    }


def _label(model: Model) -> str:
    files = model.weights.licensed
    return f'LABEL {licensed.LABEL}="{licensed.names(files)}"' if files else ""


def image_name(model: Model) -> str:
    return f"polypod-{model.name}"


def _run(layer: Layer) -> str:
    mounts: list[str] = []
    if layer.secret:
        mounts.append("--mount=type=secret,id=HF_TOKEN")
    if layer.licensed:
        mounts.append(f"--mount=type=bind,from={LICENSED},target=/licensed")
    lines = [f"# {layer.title}"] if layer.title else []
    if layer.revision:
        lines.append(f"ARG {layer.revision}")
    lines.append(
        "RUN " + " \\\n    && ".join([" ".join([*mounts, layer.commands[0]]), *layer.commands[1:]])
    )
    return "\n".join(lines)


def _variables(values: dict[str, str]) -> str:
    return "ENV " + " \\\n    ".join(f'{name}="{value}"' for name, value in values.items())
