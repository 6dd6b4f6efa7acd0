"""The client: `Client` and `AsyncClient`, and what they give and raise.

with polypod.Client("http://127.0.0.1:8000") as client:
    job = client.generate("photo.png")
    job.wait(on_event=lambda event: print(event.job.progress))
    job.download("photo.glb")
"""

from __future__ import annotations

from polypod.client.aio import AsyncClient, AsyncJobHandle
from polypod.client.errors import ApiError, ClientError, Damaged, JobFailed, Unreachable
from polypod.client.sync import Client, JobHandle
from polypod.client.views import (
    AssetView,
    Download,
    ErrorView,
    Event,
    Health,
    JobView,
    ModelCard,
    UploadedImage,
)

__all__ = [
    "ApiError",
    "AssetView",
    "AsyncClient",
    "AsyncJobHandle",
    "Client",
    "ClientError",
    "Damaged",
    "Download",
    "ErrorView",
    "Event",
    "Health",
    "JobFailed",
    "JobHandle",
    "JobView",
    "ModelCard",
    "Unreachable",
    "UploadedImage",
]
