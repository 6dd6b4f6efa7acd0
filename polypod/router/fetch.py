"""Fetching a file from a pod: resumed after cuts, never more of it than announced, checked."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from io import FileIO
from pathlib import Path

import httpx

from polypod.jobs.job import FileRef

CHUNK = 1 << 20
AGAIN_S = (0.2, 1.0, 3.0)
"""Waits after cuts in a row that brought nothing new."""


async def fetch(http: httpx.AsyncClient, ref: FileRef, path: Path) -> None:
    """Writes the pod's file to `path`, in constant memory.

    Raises:
        ValueError: other bytes came than `ref` says, or more, or none.
        httpx.HTTPError: the connection broke too often.
    """
    digest = hashlib.sha256()
    with path.open("xb", buffering=0) as file:
        size = fruitless = 0
        while size < ref.size:
            before = size
            try:
                async for chunk in _rest(http, ref, size):
                    size += len(chunk)
                    if size > ref.size:
                        raise ValueError(f"{ref.filename} is longer than announced.")
                    await asyncio.to_thread(_take, chunk, file, digest.update)
            except httpx.TransportError:
                if size == before and fruitless == len(AGAIN_S):
                    raise
            fruitless = 0 if size > before else fruitless + 1
            if fruitless > len(AGAIN_S):
                raise ValueError(f"{ref.filename} is shorter than announced.")
            if fruitless:
                await asyncio.sleep(AGAIN_S[fruitless - 1])
    if digest.hexdigest() != ref.digest:
        raise ValueError(f"{ref.filename} came with other bytes than announced.")


async def _rest(http: httpx.AsyncClient, ref: FileRef, begin: int) -> AsyncIterator[bytes]:
    headers = {"Accept-Encoding": "identity"}
    if begin:
        headers["Range"] = f"bytes={begin}-"
    async with http.stream("GET", f"/blobs/{ref.digest}", headers=headers) as answer:
        if answer.status_code in (502, 503, 504):
            raise httpx.RemoteProtocolError(f"HTTP {answer.status_code}")
        if answer.status_code != (206 if begin else 200):
            raise ValueError(f"{ref.filename} is answered with HTTP {answer.status_code}.")
        async for chunk in answer.aiter_raw(CHUNK):
            yield chunk


def _take(chunk: bytes, file: FileIO, hash_it: Callable[[bytes], object]) -> None:
    hash_it(chunk)
    rest = memoryview(chunk)
    while rest:
        rest = rest[file.write(rest) :]
