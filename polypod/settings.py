"""Every setting of a pod or router, read from the environment once (`polypod settings`)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

GIB = 1024**3
MIB = 1024**2


def _slots_from_environment() -> dict[str, str]:
    prefix = "POLYPOD_SLOT_"
    return {k[len(prefix) :].lower(): v for k, v in os.environ.items() if k.startswith(prefix)}


class Settings(BaseSettings):
    """Names without prefix are those that existing clients and images use."""

    model_config = SettingsConfigDict(
        env_prefix="POLYPOD_", extra="ignore", frozen=True, populate_by_name=True
    )

    host: str = Field(
        "127.0.0.1",
        description="Address to listen on; any but loopback needs API keys or POLYPOD_AUTH=off.",
    )
    port: int = Field(
        8000,
        ge=0,
        le=65535,
        validation_alias=AliasChoices("port", "PORT"),
        description="Port to listen on; 0: any free one.",
    )
    public_url: str = Field("", description="Prefix of URLs in answers; empty: relative URLs.")
    data: Path = Field(Path("data"), description="Where jobs and results are kept.")
    database_url: str = Field("", description="PostgreSQL URL; empty: SQLite in the data folder.")

    storage: str = Field(
        "",
        description="Where files are kept: file:///folder or s3://bucket/prefix; empty: in the data"
        " folder. Credentials for S3 come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    )
    storage_endpoint: str = Field("", description="URL of an S3 service; empty: AWS.")
    storage_public_endpoint: str = Field(
        "", description="The same service as clients reach it; empty: POLYPOD_STORAGE_ENDPOINT."
    )
    storage_region: str = Field("", description="Region of the bucket (R2: auto).")
    storage_path_style: bool = Field(
        False, description="Name the bucket in the path, not in the host (MinIO)."
    )
    storage_timeout_s: float = Field(
        30, gt=0, description="How long the S3 service may be silent before it is asked again."
    )
    storage_presign_s: int = Field(
        3600,
        ge=0,
        le=7 * 86400,
        description="Downloads are sent to the bucket, by URLs good for so many seconds; 0: they"
        " come through this server.",
    )
    storage_cache_bytes: int = Field(
        10 * GIB, ge=0, description="Most disk space for local copies of what is in the bucket."
    )

    auth: Literal["on", "off"] = Field("on", description="`off` serves anyone who can connect.")
    api_keys: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="API keys, or their `sha256:` hashes, separated by commas."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        validation_alias=AliasChoices("cors_origins", "CORS_ORIGINS"),
        description="Origins of web pages that may ask, separated by commas.",
    )
    compat: Annotated[dict[str, str], NoDecode] = Field(
        default_factory=dict[str, str],
        description="Which model answers other people's clients, where it is not their own:"
        " sam3d=inflate,hunyuan=inflate.",
    )
    allow_private_urls: bool = Field(
        False,
        description="Let `image_url` and `webhook_url` reach private and loopback addresses.",
    )
    webhook_secret: str = Field(
        "",
        description="Signs webhooks; empty: one that was made with the database"
        " (`polypod webhooks secret`).",
    )
    webhook_timeout_s: float = Field(
        10, gt=0, description="How long a receiver of webhooks may take to answer."
    )
    log: Literal["text", "json"] = Field(
        "text", description="`json`: one JSON object a line, with the job's id."
    )

    max_concurrent: int = Field(
        1,
        ge=1,
        validation_alias=AliasChoices("max_concurrent", "MAX_CONCURRENT"),
        description="Tasks at once per slot, each in a worker of its own.",
    )
    max_queue_size: int = Field(
        10,
        ge=0,
        validation_alias=AliasChoices("max_queue_size", "MAX_QUEUE_SIZE"),
        description="Jobs that may wait; a router takes 10 000 where it is not set.",
    )
    model_idle_timeout_s: float = Field(
        480,
        ge=0,
        validation_alias=AliasChoices("model_idle_timeout_s", "MODEL_IDLE_TIMEOUT"),
        description="Seconds without work until a worker is ended; 0: never.",
    )
    sync_timeout_s: float = Field(
        600,
        gt=0,
        validation_alias=AliasChoices("sync_timeout_s", "SYNC_TIMEOUT"),
        description="Seconds that POST /generate/sync waits for its result.",
    )
    model_python: str = Field(
        "",
        validation_alias=AliasChoices("model_python", "MODEL_PYTHON"),
        description="Interpreter of the model environment; empty: the model's own, else this one.",
    )
    home: Path = Field(
        Path("~/.polypod"),
        description="Where images and `polypod setup` put model environments and weights.",
    )
    image: str = Field("", description="Name of the image that this runs in, for messages.")
    doctor: Literal["on", "off"] = Field(
        "on",
        description="`off` takes jobs although environment, weights or GPU seem to be missing.",
    )
    needs: Literal["on", "off"] = Field(
        "on",
        description="`off` takes jobs that need more GPU memory than there is: figures that are"
        " only claimed may be too high.",
    )
    slots: dict[str, str] = Field(
        default_factory=_slots_from_environment,
        description="Device of each slot: POLYPOD_SLOT_GPU=cuda:0.",
    )

    max_upload_bytes: int = Field(32 * MIB, description="Largest input file, decoded.")
    max_bodies_bytes: int = Field(
        256 * MIB,
        ge=0,
        description="Largest size of all requests together whose bodies are in memory at once; more"
        " waits, then gets 503. Small requests always pass.",
    )
    max_pixels: int = Field(64_000_000, description="Largest picture, width x height.")
    keep_results_s: float = Field(30 * 86400, description="Age at which results are removed.")
    keep_stages_s: float = Field(7 * 86400, description="Age at which stage outputs are removed.")
    keep_inputs_s: float = Field(30 * 86400, description="Age at which inputs are removed.")
    keep_jobs_s: float = Field(365 * 86400, description="Age at which job rows are removed.")
    disk_budget_bytes: int | None = Field(
        None,
        ge=0,
        description="Above this stage outputs, then old results and inputs, are removed; once that"
        " is not enough, new jobs are refused. 0: no limit. Not set: 20 GiB in a folder, no limit"
        " in a bucket.",
    )

    @field_validator("api_keys", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("compat", mode="before")
    @classmethod
    def _pairs(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        if not all(name.strip() and model.strip() for name, _, model in pairs):
            raise ValueError("give PROTOCOL=MODEL, such as sam3d=inflate, separated by commas")
        return {name.strip(): model.strip() for name, _, model in pairs}

    @field_validator("storage")
    @classmethod
    def _known_storage(cls, value: str) -> str:
        if value and not re.fullmatch(
            r"file:///.+|s3://[A-Za-z0-9._-]+(/[A-Za-z0-9._/-]*)?", value
        ):
            raise ValueError("give file:///folder or s3://bucket/prefix")
        return value

    @field_validator("slots")
    @classmethod
    def _known_devices(cls, value: dict[str, str]) -> dict[str, str]:
        for device in value.values():
            if device.startswith("cuda") and not re.fullmatch(r"cuda(:[0-9]+)?", device):
                raise ValueError(f"{device} is no device: give cpu, or cuda:0, cuda:1 and so on")
        return {slot: "cuda:0" if device == "cuda" else device for slot, device in value.items()}

    @field_validator("data", "home")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    def device(self, slot: str) -> str:
        """The device of `slot`: as configured, else `cpu` for the slot `cpu`, else `cuda:0`."""
        return self.slots.get(slot, "cpu" if slot == "cpu" else "cuda:0")
