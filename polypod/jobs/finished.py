"""Finished stages on their way between servers, so that another one goes on after them.

A kept stage's own key holds the owner, who has another name on each pod; on the way it has the key
that it would have without an owner. Who takes it makes that key anew from what it would compute
itself: only what is exactly its own work is taken.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from polypod.jobs.job import FileRef, KeptStage, StageRun
from polypod.model import Model


@dataclass(frozen=True)
class FinishedStage:
    key: str
    files: Mapping[str, FileRef]
    run: StageRun

    @property
    def stage(self) -> str:
        return self.run.stage

    def to_json(self) -> dict[str, Any]:
        files = {name: asdict(ref) for name, ref in self.files.items()}
        return {"key": self.key, "files": files, "run": asdict(self.run)}

    @classmethod
    def from_json(cls, given: Any) -> FinishedStage:
        """Raises KeyError, TypeError, ValueError or AttributeError for anything else."""
        files = {str(name): file_of(ref) for name, ref in given["files"].items()}
        return cls(str(given["key"]), files, run_of(given["run"]))


class _File(BaseModel):
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0, lt=2**53)
    media_type: str = Field(pattern=r"^([A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+(; ?[A-Za-z0-9=.-]+)?)?$")
    filename: str = ""


class _Run(BaseModel):
    stage: str = Field(max_length=100)
    seconds: FiniteFloat = Field(ge=0)
    device: str = Field(max_length=100)
    kept: bool
    peak_memory: int = Field(0, ge=0, lt=2**53)
    peak_gpu_memory: int = Field(0, ge=0, lt=2**53)


def file_of(given: Any) -> FileRef:
    """A file as another server tells of it. Raises ValueError for what no file can be."""
    return FileRef(**_fields(_File, given))


def run_of(given: Any) -> StageRun:
    """A stage's run as another server tells of it. Raises ValueError."""
    return StageRun(**_fields(_Run, given))


def _fields(kind: type[BaseModel], given: Any) -> dict[str, Any]:
    try:
        return kind.model_validate(given).model_dump()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"It tells of what cannot be ({where}: {first['msg']}).") from None


def finished_stages(
    model: Model,
    inputs: Mapping[str, FileRef],
    params: Mapping[str, Any],
    kept: Iterable[KeptStage],
) -> list[FinishedStage]:
    """What a job has done so far, for another server."""
    files, finished = dict(inputs), list[FinishedStage]()
    for each in kept:
        key = _key(model, each.stage, files, params, "")
        finished.append(FinishedStage(key, each.files, each.run))
        files.update(each.files)
    return finished


def stages_to_keep(
    model: Model,
    inputs: Mapping[str, FileRef],
    params: Mapping[str, Any],
    owner: str,
    given: Sequence[FinishedStage],
) -> list[KeptStage]:
    """Those that this server would have computed the same way, under its own keys."""
    by_name = {each.stage: each for each in given}
    files, kept = dict(inputs), list[KeptStage]()
    for stage in model.plan(params, inputs=inputs):
        each = by_name.get(stage.name)
        if each is None or each.key != _key(model, stage.name, files, params, ""):
            break
        if not set(stage.outputs) - set(stage.optional) <= set(each.files) <= set(stage.outputs):
            break
        key = _key(model, stage.name, files, params, owner)
        preset = str(params.get("preset", ""))
        kept.append(
            KeptStage(key, model.name, stage.name, owner, each.files, each.run, preset, time.time())
        )
        files.update(each.files)
    return kept


def _key(
    model: Model, stage: str, files: Mapping[str, FileRef], params: Mapping[str, Any], owner: str
) -> str:
    declared = model.stage(stage)
    digests = {name: files[name].digest for name in declared.inputs if name in files}
    return model.stage_key(declared, digests, params, owner)
