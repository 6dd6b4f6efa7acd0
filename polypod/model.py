"""What a model is: its declaration, from which API schema, form, image and documentation derive.

A declaration is imported by the serving side, so it never imports torch or upstream's packages.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from polypod.errors import BadInput
from polypod.image import Case, Image, Needs, Weights
from polypod.when import When, matches

__all__ = [
    "KIT",
    "Case",
    "Fault",
    "Image",
    "Input",
    "Licence",
    "Model",
    "Needs",
    "Params",
    "Setting",
    "Stage",
    "Weights",
]


KIT = "kit"
"""The worker whose stages polypod offers: `polypod.kit`."""
KIT_FOLDER = Path(__file__).with_name("kit")


class Params(BaseModel):
    """The parameters that every model takes; a model's own come as fields of a subclass."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    output_format: str = Field("glb", description="File format of the main result.")
    with_texture: bool = Field(True, description="Texture the result where the model can.")
    seed: int | None = Field(
        42, ge=0, lt=2**32, description="Seed of every random draw; null draws one at submit."
    )


@dataclass(frozen=True)
class Input:
    """A named file that a job may bring. `image` is always there."""

    kind: Literal["image", "json", "file"] = "image"
    required: bool = False
    description: str = ""
    rules: tuple[str, ...] = ()
    """What a good one is like, and what is refused, a sentence each."""


@dataclass(frozen=True)
class Stage:
    """One step of a job: takes files and parameters, leaves files.

    `inputs` names inputs of the model and outputs of earlier stages, by file name; `params` the
    parameters that it is handed. Both are part of the key under which its outputs are kept, so
    what is not declared here does not reach it. Raise `version` when its results change.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What it is handed beside them, the same for every job."""
    assets: tuple[str, ...] = ()
    """The outputs that users see as assets of the job, as soon as the stage is done."""
    optional: tuple[str, ...] = ()
    """The outputs that it may leave out."""
    slot: str = "gpu"
    worker: str = ""
    """The process that holds its loaded state; empty: one per slot, named like it."""
    version: str = "1"
    share: float = 1.0
    """Its part of the progress bar, relative to the other stages."""
    limit_s: float = 900.0
    silence_s: float = 120.0
    """Seconds without a word and without CPU time after which the worker counts as hung."""
    when: tuple[When, ...] = ()
    """The jobs that run it: those whose resolved parameters match one of these; empty: all."""
    only_with: str = ""
    """Input of the model without which a job leaves the stage out."""
    lighter: str = ""
    """What needs less memory, told when it runs out: presets and parameters, in a sentence."""

    @property
    def worker_name(self) -> str:
        return self.worker or self.slot

    def wanted(self, params: Mapping[str, Any]) -> bool:
        """Whether a job with these parameters runs it; one older than what `when` asks for: no."""
        return not self.when or any(matches(when, params) for when in self.when)

    def handed(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """What the worker gets of a job's resolved parameters."""
        return {**self.fixed, **{name: params[name] for name in self.params}}


@dataclass(frozen=True)
class Setting:
    """What whoever runs the model may set in the environment; `load` gets it in its settings."""

    name: str
    env: tuple[str, ...]
    """Variables; the first that is set counts."""
    default: str = ""
    """May name places, as the texts of `Image` do."""
    description: str = ""
    changes_results: bool = False
    """What was kept under another value is not used again."""


@dataclass(frozen=True)
class Fault:
    """A failure of upstream's code that is known, and what it means to the user."""

    pattern: str
    """Regular expression that finds it in the error's message."""
    message: str
    """What happened, in words."""
    hint: str
    """What to do."""
    code: str = ""
    """`not_installed`, `no_gpu`, `bad_input`...; empty: as the worker classified it."""


@dataclass(frozen=True)
class Licence:
    """What the licence of code and weights allows, shown before the first job and in manifests."""

    code: str
    weights: str = ""
    commercial: bool = True
    """Whether the whole, as it runs here, may serve a business."""
    regions_excluded: tuple[str, ...] = ()
    """Where it may not be used: `EU`, `UK`, `KR`."""
    url: str = ""
    note: str = ""
    parts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Third parties with a licence of their own: name, and what it says."""


@dataclass(frozen=True)
class Model:
    """The declaration of one model. `folder` is `services/NAME/`, which also holds `worker.py`."""

    name: str
    title: str
    summary: str
    folder: Path
    params: type[Params]
    stages: tuple[Stage, ...]
    formats: tuple[str, ...]
    """Formats that the model itself writes (`output_format`); others are converted on demand."""
    licence: Licence
    needs: Needs = field(default_factory=Needs)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    default_preset: str = ""
    inputs: Mapping[str, Input] = field(default_factory=lambda: {"image": Input(required=True)})
    version: str = "1"
    upstream: str = ""
    """Repository and commit of the upstream code, `owner/name@commit`; empty: ours."""
    image: Image = field(default_factory=Image)
    weights: Weights = field(default_factory=Weights)
    notes: Mapping[str, str] = field(default_factory=dict[str, str])
    """What whoever opens a file must know (axes, units), by the asset's name; in the manifest."""
    faults: tuple[Fault, ...] = ()
    settings: tuple[Setting, ...] = ()
    devices: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """By slot, variables that name its device too; `POLYPOD_SLOT_<NAME>` goes before them."""
    adapt: Callable[[Model], Model] | None = None
    """Makes of the model what `chosen` leaves of it, such as fewer stages."""
    chosen: Mapping[str, str] = field(default_factory=dict[str, str])
    """Values of the settings that differ from the defaults."""

    def configured(self, environ: Mapping[str, str]) -> Model:
        """The model as this environment wants it."""
        given: dict[str, str] = {}
        for setting in self.settings:
            value = next((environ[name] for name in setting.env if environ.get(name)), "")
            if value and value != setting.default:
                given[setting.name] = value
        model = replace(self, chosen=given)
        return model.adapt(model) if model.adapt else model

    def setting(self, name: str) -> str:
        return self.chosen.get(name, next(s.default for s in self.settings if s.name == name))

    def slot_devices(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The devices that the model's own variables name, by slot; `cuda` is the first one."""
        named: dict[str, str] = {}
        for slot, names in self.devices.items():
            device = next((environ[name] for name in names if environ.get(name)), "")
            if device:
                named[slot] = "cuda:0" if device == "cuda" else device
        return named

    def stage(self, name: str) -> Stage:
        return next(s for s in self.stages if s.name == name)

    def resolve(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All parameters with their values: those given, over the preset's, over the defaults.

        Raises:
            BadInput: for an unknown parameter or preset (naming the nearest valid one) or a value
                that is out of range.
        """
        fields = self.params.model_fields
        values = dict(given)
        preset = values.pop("preset", None) or self.default_preset
        if preset and (not isinstance(preset, str) or preset not in self.presets):
            raise BadInput(
                f"Unknown preset {preset!r}.{nearest(str(preset), self.presets)}",
                f"Use one of: {', '.join(self.presets) or 'none; this model has no presets'}.",
            )
        for name in values:
            if name not in fields:
                raise BadInput(
                    f"Unknown parameter {name!r} for model {self.name}."
                    f"{nearest(name, [*fields, *self.inputs])}",
                    f"Parameters of this model: {', '.join(fields)}"
                    + (", preset." if self.presets else "."),
                    parameter=name,
                )
        try:
            resolved = self.params(**{**self.presets.get(preset, {}), **values})
        except ValidationError as error:
            raise _bad_value(error) from error
        if resolved.output_format not in self.formats:
            raise BadInput(
                f"output_format {resolved.output_format!r} is not one that {self.name} writes.",
                f"Use one of: {', '.join(self.formats)}; any other is converted on download, "
                "with `download?format=`.",
                parameter="output_format",
            )
        return resolved.model_dump() | ({"preset": preset} if self.presets else {})

    def plan(
        self, params: Mapping[str, Any], until: str = "", inputs: Collection[str] | None = None
    ) -> tuple[Stage, ...]:
        """The stages that a job with these resolved parameters runs, up to and with `until`.

        `inputs`: names of those that it brings; None: it may bring any.
        """
        if until and until not in (names := [s.name for s in self.stages]):
            raise BadInput(
                f"Unknown stage {until!r}.{nearest(until, names)}",
                f"`until` is one of: {', '.join(names)}.",
                parameter="until",
            )
        planned: list[Stage] = []
        for stage in self.stages:
            brought = not stage.only_with or inputs is None or stage.only_with in inputs
            if brought and stage.wanted(params):
                planned.append(stage)
            if stage.name == until:
                break
        return tuple(planned)

    @property
    def removes_backgrounds(self) -> bool:
        """Whether the kit's cut-out is among its stages, so that the serving side needs rembg."""
        return any((stage.worker, stage.name) == (KIT, "cutout") for stage in self.stages)

    def result_name(self, params: Mapping[str, Any]) -> str:
        """The asset that is the main result of a job with these resolved parameters."""
        return f"model.{params['output_format']}"

    def vram_gb(self, params: Mapping[str, Any], until: str = "") -> dict[str, float]:
        """GPU memory by slot that a job needs: the most that one of its workers takes there.

        Workers of one slot give way to each other, so it is never their sum.
        """
        figures = self.needs.vram_for(params)
        by_slot: dict[str, float] = {}
        for stage in self.plan(params, until):
            needed = figures.get(stage.worker_name, 0.0)
            by_slot[stage.slot] = max(needed, by_slot.get(stage.slot, 0.0))
        return {slot: gb for slot, gb in by_slot.items() if gb}

    @cached_property
    def code_digest(self) -> str:
        """SHA-256 of what makes the results: model side, lock, upstream commit, image, weights."""
        image, weights = asdict(self.image), asdict(self.weights)
        made_of = {k: image[k] for k in ("python", "wheels", "checkouts", "compiled", "steps")}
        digest = hashlib.sha256(self.upstream.encode())
        digest.update(digest_of({"image": made_of, "weights": weights}).encode())
        digest.update(digest_of(self._keyed).encode() if self._keyed else b"")
        for path in self._model_side():
            digest.update(b"\0" + (path.read_bytes() if path.exists() else b""))
        return digest.hexdigest()

    def _code_of(self, stage: Stage) -> str:
        """The same for a stage's own; the kit's stages stay kept when the model's code changes."""
        if stage.worker_name != KIT:
            return self.code_digest
        return digest_of({"kit": _kit_digest(), **self._keyed})

    @property
    def _keyed(self) -> dict[str, str]:
        return {s.name: self.setting(s.name) for s in self.settings if s.changes_results}

    def _model_side(self) -> list[Path]:
        """The files of the folder that make the results: `worker.py`, what it imports, the lock."""
        serving = {"__init__.py", "model.py", "service.py"}
        code = sorted(path for path in self.folder.glob("*.py") if path.name not in serving)
        return [*code, self.folder / "requirements.lock"]

    def stage_key(
        self, stage: Stage, digests: Mapping[str, str], params: Mapping[str, Any], owner: str
    ) -> str:
        """The name under which the outputs of a stage are kept; equal work has an equal key."""
        return digest_of(
            {
                "model": self.name,
                "stage": stage.name,
                "version": stage.version,
                "code": self._code_of(stage),
                "inputs": dict(digests),
                "params": stage.handed(params),
                "owner": owner,
            }
        )

    @cached_property
    def card(self) -> dict[str, Any]:
        """What clients and routers are told about the model (JSON), with its digest."""
        schema = self.params.model_json_schema()
        schema["properties"]["output_format"]["enum"] = list(self.formats)
        if self.presets:
            schema["properties"]["preset"] = {
                "type": "string",
                "enum": list(self.presets),
                "default": self.default_preset,
                "description": "Values for several parameters at once; those given win.",
            }
        card = {
            "schema_version": 1,
            "name": self.name,
            "title": self.title,
            "summary": self.summary,
            "version": self.version,
            "upstream": self.upstream,
            "licence": asdict(self.licence),
            "needs": asdict(self.needs),
            "needs_by_preset": self._needs_by_preset(),
            "weights": self.weights.describe(),
            "inputs": {name: asdict(value) for name, value in self.inputs.items()},
            "outputs": list(self.formats),
            "notes": dict(self.notes),
            "parameters": schema,
            "presets": {name: dict(values) for name, values in self.presets.items()},
            "default_preset": self.default_preset,
            "stages": [
                {
                    "name": s.name,
                    "slot": s.slot,
                    "worker": s.worker_name,
                    "share": s.share,
                    "assets": list(s.assets),
                    "when": [dict(when) for when in s.when],
                    "only_with": s.only_with,
                }
                for s in self.stages
            ],
        }
        return card | {"digest": digest_of(card | {"code": self.code_digest})}

    def _needs_by_preset(self) -> dict[str, dict[str, float]]:
        """GB by slot for a job of each preset that changes nothing else."""
        return {name: self.vram_gb(self.resolve({"preset": name})) for name in self.presets}


@cache
def _kit_digest() -> str:
    """SHA-256 of the kit's code."""
    files = sorted(KIT_FOLDER.glob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of the canonical JSON of `value`."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def nearest(name: str, valid: Any) -> str:
    """` Did you mean 'depth'?`, or nothing when no valid name is near."""
    match = difflib.get_close_matches(name, list(valid), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""


def _bad_value(error: ValidationError) -> BadInput:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    return BadInput(
        f"Parameter {name!r}: {first['msg']} (got {first.get('input')!r:.80}).",
        "GET /models shows every parameter with its range.",
        parameter=name,
    )
