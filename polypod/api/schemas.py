"""JSON Schemas of what the API answers, and of what `generate` takes for each model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from polypod.api.jobs import STATUSES
from polypod.model import Input, Model

Schema = dict[str, Any]


def _object(properties: Mapping[str, Any], required: Sequence[str] | None = None) -> Schema:
    needed = list(properties) if required is None else list(required)
    return {"type": "object", "properties": dict(properties), "required": needed}


def _or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
TIME: Schema = _or_null({"type": "string", "format": "date-time"})
ANY_OBJECT: Schema = {"type": "object"}
STATUS: Schema = {"type": "string", "enum": list(STATUSES)}

PROBLEM = _object(
    {
        "type": TEXT,
        "title": TEXT,
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What happened and why."},
        "hint": {"type": "string", "description": "What to do."},
        "error": {"type": "string", "description": "The same as `detail`."},
        "code": {"type": "string", "description": "Stable name of the problem."},
        "queue_length": WHOLE,
        "max_queue_size": WHOLE,
    },
    ["type", "title", "status", "detail", "hint", "error", "code"],
)

ASSET = _object(
    {
        "name": TEXT,
        "kind": {"type": "string", "enum": ["input", "output", "manifest", "derived"]},
        "stage": _or_null(TEXT),
        "size": WHOLE,
        "media_type": TEXT,
        "sha256": TEXT,
        "url": TEXT,
    }
)

JOB = _object(
    {
        "job_id": TEXT,
        "model": TEXT,
        "status": STATUS,
        "position": {**WHOLE, "description": "1 is next to run; 0 is running or finished."},
        "queue_length": WHOLE,
        "progress": {"type": "number", "minimum": 0, "maximum": 100},
        "stage": _or_null(TEXT),
        "message": TEXT,
        "eta_seconds": _or_null(NUMBER),
        "created_at": TIME,
        "started_at": TIME,
        "finished_at": TIME,
        "processing_time": _or_null(NUMBER),
        "download_url": _or_null(TEXT),
        "assets": {"type": "array", "items": {"$ref": "#/components/schemas/Asset"}},
        "facts": ANY_OBJECT,
        "params": ANY_OBJECT,
        "seed": _or_null(WHOLE),
        "until": _or_null(TEXT),
        "parent": _or_null(TEXT),
        "remaining_stages": {"type": "array", "items": TEXT},
        "error": _or_null(_object({"code": TEXT, "message": TEXT, "hint": TEXT})),
        "log": TEXT,
    },
    ["job_id", "model", "status", "position", "queue_length", "progress", "message", "assets"],
)

ACCEPTED = _object(
    {
        "job_id": TEXT,
        "status": STATUS,
        "position": WHOLE,
        "status_url": TEXT,
        "message": TEXT,
        "parent": TEXT,
    },
    ["job_id", "status", "position", "status_url", "message"],
)

QUEUE = _object(
    {"queued": WHOLE, "processing": WHOLE, "max_queue_size": WHOLE, "max_concurrent": WHOLE}
)

HEALTH = _object(
    {
        "status": {"type": "string", "enum": ["healthy", "starting", "degraded"]},
        "model_loaded": {"type": "boolean"},
        "refuses": {
            **_or_null(TEXT),
            "description": "Why no new jobs are taken for now, while all else goes on.",
        },
        "queue": {"$ref": "#/components/schemas/Queue"},
        "slots": {"type": "array", "items": ANY_OBJECT},
        "api": {"type": "integer", "description": "Major version of this API."},
        "version": TEXT,
        "store_id": {**_or_null(TEXT), "description": "Another one with every new data folder."},
        "instance_id": {**TEXT, "description": "Another one with every start of the process."},
    }
)

MODEL_CARD = _object(
    {
        "name": TEXT,
        "title": TEXT,
        "summary": TEXT,
        "version": TEXT,
        "schema_version": {"type": "integer"},
        "digest": TEXT,
        "licence": ANY_OBJECT,
        "needs": ANY_OBJECT,
        "needs_by_preset": {
            **ANY_OBJECT,
            "description": "GB of GPU memory by slot, for a job of each preset.",
        },
        "weights": {
            "type": "array",
            "items": ANY_OBJECT,
            "description": "Each source of weights with its revision or digest.",
        },
        "inputs": ANY_OBJECT,
        "outputs": {"type": "array", "items": TEXT},
        "parameters": {"type": "object", "description": "JSON Schema."},
        "presets": ANY_OBJECT,
        "stages": {"type": "array", "items": ANY_OBJECT},
    }
)

EVENT: Schema = {
    "description": "One server-sent event; the stream is one after the other.",
    **_object(
        {
            "id": {"type": "string", "description": "For `Last-Event-ID`."},
            "event": {
                "type": "string",
                "enum": ["snapshot", "status", "progress", "log", "asset"],
                "description": "`snapshot` and `status` carry the whole job.",
            },
            "data": {"type": "string", "contentMediaType": "application/json"},
        }
    ),
}

IMAGE = _object(
    {"image_id": TEXT, "width": WHOLE, "height": WHOLE, "media_type": TEXT, "size": WHOLE}
)

FINISHED_STAGES: Schema = {
    "type": "array",
    "items": _object(
        {
            "key": TEXT,
            "files": {
                "type": "object",
                "additionalProperties": {"$ref": "#/components/schemas/FileReference"},
            },
            "run": ANY_OBJECT,
        }
    ),
}

COMPONENTS: dict[str, Schema] = {
    "Problem": PROBLEM,
    "Asset": ASSET,
    "Job": JOB,
    "Jobs": _object(
        {
            "jobs": {"type": "array", "items": {"$ref": "#/components/schemas/Job"}},
            "next": _or_null({"type": "string", "description": "Cursor of the next page."}),
        }
    ),
    "Accepted": ACCEPTED,
    "Event": EVENT,
    "Queue": QUEUE,
    "Health": HEALTH,
    "ModelCard": MODEL_CARD,
    "Models": _object(
        {"models": {"type": "array", "items": {"$ref": "#/components/schemas/ModelCard"}}}
    ),
    "Image": IMAGE,
    "Audit": _object(
        {
            "acts": {
                "type": "array",
                "items": _object(
                    {
                        "at": {"type": "string", "format": "date-time"},
                        "who": {
                            "type": "string",
                            "description": "Id of a key, `shell:USER`, or `local` without keys.",
                        },
                        "act": TEXT,
                        "object": TEXT,
                    }
                ),
            }
        }
    ),
    "DispatchedJob": {
        "type": "object",
        "required": ["model", "inputs", "params"],
        "properties": {
            "model": TEXT,
            "inputs": {
                "type": "object",
                "additionalProperties": {"$ref": "#/components/schemas/FileReference"},
            },
            "params": ANY_OBJECT,
            "until": TEXT,
            "parent": TEXT,
            "card": TEXT,
            "priority": {"type": "integer"},
            "stages": FINISHED_STAGES,
        },
    },
    "FileReference": _object(
        {
            "digest": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
            "size": {"type": "integer", "minimum": 0},
            "media_type": TEXT,
            "filename": TEXT,
            "content": {"type": "string", "description": "Base64; only of a job's small inputs."},
        },
        required=("digest", "size", "media_type", "filename"),
    ),
    "FinishedStages": _object({"stages": FINISHED_STAGES}),
    "Withdrawn": _object({"job_id": TEXT, "status": TEXT}),
    "Index": _object({"name": TEXT, "version": TEXT, "models": ANY_OBJECT}),
}


def request_schemas(model: Model) -> dict[str, Schema]:
    """Components for what one model takes: as JSON, as a form, and to continue a job."""
    name = component_name(model)
    parameters, nested = _parameters(model, name)
    until = {"type": "string", "enum": [s.name for s in model.stages], "description": "Stop there."}
    webhook = {
        "type": "string",
        "format": "uri",
        "description": "Gets a signed POST when the job has ended.",
    }
    parameters = {**parameters, "webhook_url": webhook}
    common = {**parameters, "until": until, "model": {"type": "string", "enum": [model.name]}}
    as_json, as_form = dict[str, Schema](), dict[str, Schema]()
    for key, declared in model.inputs.items():
        as_json.update(_input_fields(key, declared, _base64(declared)))
        as_form.update(_input_fields(key, declared, _part(declared)))
    needed = [
        _any_way(key, declared) for key, declared in model.inputs.items() if declared.required
    ]
    closed = {"type": "object", "additionalProperties": False}
    return {
        **nested,
        f"{name}Json": {**closed, "properties": {**as_json, **common}, "allOf": needed},
        f"{name}Form": {**closed, "properties": {**as_form, **common}},
        f"{name}Changes": {**closed, "properties": {**parameters, "until": until}},
    }


def component_name(model: Model) -> str:
    return "".join(part.capitalize() for part in model.name.replace("-", "_").split("_"))


def _parameters(model: Model, name: str) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """The properties of the parameters, and the schemas that they refer to as components."""
    text = json.dumps(model.card["parameters"])
    schema = json.loads(text.replace("#/$defs/", f"#/components/schemas/{name}"))
    nested = {f"{name}{key}": value for key, value in schema.get("$defs", {}).items()}
    return schema["properties"], nested


def _input_fields(name: str, declared: Input, own: Schema) -> dict[str, Schema]:
    fields: dict[str, Schema] = {name: own, f"{name}_url": {"type": "string", "format": "uri"}}
    if declared.kind == "image":
        what = "Id of a picture stored by POST /images, or of a job of yours: the same picture."
        fields[f"{name}_id"] = {"type": "string", "description": what}
    return fields


def _base64(declared: Input) -> Schema:
    what = f"{declared.description} Base64, with or without a data-URL head.".strip()
    text = {"type": "string", "contentEncoding": "base64", "description": what}
    return {"anyOf": [text, ANY_OBJECT, {"type": "array"}]} if declared.kind == "json" else text


def _part(declared: Input) -> Schema:
    return {"type": "string", "format": "binary", "description": declared.description}


def _any_way(name: str, declared: Input) -> Schema:
    return {"oneOf": [{"required": [key]} for key in _input_fields(name, declared, {})]}
