"""JSON Schemas of what the routes for other people's clients take and answer."""

from __future__ import annotations

from typing import Any

from polypod.api.compat.protocol import (
    EXECUTION_TIMEOUT_RANGE_MS,
    STATES,
    TIMED_OUT,
    TTL_RANGE_MS,
)

Schema = dict[str, Any]


def _object(properties: Schema, *optional: str) -> Schema:
    needed = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": needed}


def _whole(between: tuple[int, int]) -> Schema:
    return {
        "type": "integer",
        "minimum": between[0],
        "maximum": between[1],
        "description": "Milliseconds.",
    }


_TEXT: Schema = {"type": "string"}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_STATE: Schema = {"type": "string", "enum": [*STATES.values(), TIMED_OUT]}

COMPONENTS: dict[str, Schema] = {
    "RunPodState": _object({"id": _TEXT, "status": _STATE}),
    "RunPodJob": _object(
        {
            "id": _TEXT,
            "status": _STATE,
            "delayTime": {**_COUNT, "description": "Milliseconds in the queue."},
            "executionTime": {**_COUNT, "description": "Milliseconds at work."},
            "output": {"type": "object", "description": "Of a completed job: files by URL."},
            "error": {"type": "string", "description": "Why it failed, and what to do."},
        },
        *("delayTime", "executionTime", "output", "error"),
    ),
    "RunPodStream": _object(
        {
            "status": _STATE,
            "stream": {
                "type": "array",
                "items": _object({"output": {"$ref": "#/components/schemas/Asset"}}),
            },
        }
    ),
    "RunPodPurge": _object({"removed": _COUNT, "status": {"type": "string", "const": "completed"}}),
    "RunPodHealth": _object(
        {
            "jobs": _object(
                {
                    "completed": _COUNT,
                    "failed": _COUNT,
                    "inProgress": _COUNT,
                    "inQueue": _COUNT,
                    "retried": _COUNT,
                }
            ),
            "workers": _object({"idle": _COUNT, "running": _COUNT}),
        }
    ),
    "RunPodError": _object(
        {"error": _TEXT, "hint": _TEXT, "code": _TEXT},
    ),
}


def order(input_schema: Schema) -> Schema:
    """The body of `run` and `runsync`."""
    policy = {
        "type": "object",
        "properties": {
            "executionTimeout": _whole(EXECUTION_TIMEOUT_RANGE_MS),
            "ttl": _whole(TTL_RANGE_MS),
            "lowPriority": {"type": "boolean"},
        },
        "additionalProperties": False,
    }
    webhook = {"type": "string", "format": "uri", "description": "Called when the job has ended."}
    properties = {"input": input_schema, "policy": policy, "webhook": webhook}
    return _object(properties, "policy", "webhook")
