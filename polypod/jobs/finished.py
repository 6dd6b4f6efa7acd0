"""Finished stages on their way between servers, so that another one goes on after them.

A kept stage's own key holds the owner, who has another name on each pod; on the way it has the key
that it would have without an owner. Who takes it makes that key anew from what it would compute
itself: only what is exactly its own work is taken.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from polypod.jobs.job import FileRef, KeptStage, StageRun
from polypod.model import Model

_DIGEST = re.compile(r"[0-9a-f]{64}")


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
        files = {str(name): FileRef(**ref) for name, ref in given["files"].items()}
        if not all(_DIGEST.fullmatch(ref.digest) and ref.size >= 0 for ref in files.values()):
            raise ValueError("no SHA-256")
        return cls(str(given["key"]), files, StageRun(**given["run"]))


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
    for stage in model.plan(params):
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
