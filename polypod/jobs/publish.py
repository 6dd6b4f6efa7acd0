"""From a worker's folder to kept files: outputs become blobs, a finished job gets its manifest."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from polypod import __version__
from polypod.assets.blobs import media_type_of
from polypod.assets.storage import BlobStore
from polypod.jobs.job import Asset, FileRef, Job, StageRun
from polypod.model import Model, Stage

log = logging.getLogger("polypod.jobs")

MANIFEST = "manifest.json"


class MissingOutput(Exception):
    """The stage ended well but left out a file that it declares."""


def keep_outputs(blobs: BlobStore, stage: Stage, folder: Path) -> dict[str, FileRef]:
    """The declared outputs in `folder` as blobs, by name. Blocking; durable on return.

    Raises:
        MissingOutput: when one that is not optional is not there.
    """
    files: dict[str, FileRef] = {}
    for name in stage.outputs:
        path = folder / name
        if path.is_symlink() or not path.is_file():
            if name not in stage.optional:
                raise MissingOutput(name)
            continue
        files[name] = blobs.put_file(path, media_type_of(name), name)
    return files


def keep_result(
    blobs: BlobStore, stage: Stage, folder: Path, job: Job, model: Model, run: StageRun
) -> tuple[dict[str, FileRef], Asset]:
    """The outputs of the last stage, and the manifest that names them: in one go, as the job's end
    waits for both. `job` is as it was before the stage."""
    files = keep_outputs(blobs, stage, folder)
    assets = (*job.assets, *output_assets(stage, files))
    done = replace(job, assets=assets, stages=(*job.stages, run))
    return files, keep_manifest(blobs, done, model)


def output_assets(stage: Stage, files: Mapping[str, FileRef]) -> list[Asset]:
    """The outputs that users see."""
    return [Asset(n, files[n], "output", stage.name) for n in stage.assets if n in files]


def keep_manifest(blobs: BlobStore, job: Job, model: Model) -> Asset:
    text = json.dumps(manifest(job, model), indent=2, ensure_ascii=False)
    return Asset(MANIFEST, blobs.put_bytes(text.encode(), "application/json", MANIFEST), "manifest")


def manifest(job: Job, model: Model) -> dict[str, Any]:
    """What makes the result reproducible. No secret and no path is in it."""
    return {
        "polypod": __version__,
        "job_id": job.id,
        "parent": job.parent or None,
        "model": {
            "name": model.name,
            "version": model.version,
            "upstream": model.upstream or None,
            "code_digest": model.code_digest,
            "weights": model.card.get("weights", []),
            "licence": model.card["licence"],
        },
        "parameters": dict(job.params),
        "seed": job.params.get("seed"),
        "until": job.until or None,
        "inputs": _files(job.inputs),
        "stages": [_stage(run) for run in job.stages],
        "outputs": _outputs(job, model),
    }


def _outputs(job: Job, model: Model) -> dict[str, Any]:
    files = _files({a.name: a.file for a in job.assets if a.kind == "output"})
    notes = model.notes
    return {n: told | ({"note": notes[n]} if n in notes else {}) for n, told in files.items()}


def _files(files: Mapping[str, FileRef]) -> dict[str, Any]:
    return {
        name: {"sha256": ref.digest, "size": ref.size, "media_type": ref.media_type}
        for name, ref in files.items()
    }


def _stage(run: StageRun) -> dict[str, Any]:
    return {
        "stage": run.stage,
        "seconds": round(run.seconds, 4),
        "device": run.device,
        "kept": run.kept,
        "peak_memory_bytes": run.peak_memory,
        "peak_gpu_memory_bytes": run.peak_gpu_memory,
    }
