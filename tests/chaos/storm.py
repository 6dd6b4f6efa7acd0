"""Clients under which a server is killed: they submit, follow, download, cancel, and never give up.

Each order is submitted under one key until it is accepted, and every answer is compared with what
the stub makes of its seed. What must never happen is written down in `faults`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from PIL import Image

from tests.models.stub.worker import write_glb

ENDS = ("completed", "failed", "cancelled")
POLL_S = 0.05
RETRY_S = 0.2
SIDE = 200
"""Pixels; of noise, so that an upload takes more than one packet and more than one write."""


@dataclass(eq=False)
class Order:
    """One job as its client knows it."""

    key: str
    seed: int
    params: dict[str, Any]
    cancels: bool
    job_id: str = ""
    status: str = ""
    downloads: int = 0
    cancelled: bool = False
    """Whether a cancel was answered."""

    @cached_property
    def picture(self) -> bytes:
        noise = random.Random(self.seed).randbytes(SIDE * SIDE * 3)
        out = io.BytesIO()
        Image.frombytes("RGB", (SIDE, SIDE), noise).save(out, "PNG", compress_level=1)
        return out.getvalue()

    @cached_property
    def digests(self) -> dict[str, str]:
        """SHA-256 of what the job must leave, by asset."""
        picture = hashlib.sha256(self.picture).hexdigest()
        prepared = json.dumps({"image": picture}).encode()
        with TemporaryDirectory() as folder:
            glb = Path(folder) / "model.glb"
            write_glb(glb, self.params["size_bytes"], self.seed)
            made = glb.read_bytes()
        return {
            "prepared.json": hashlib.sha256(prepared).hexdigest(),
            "model.glb": hashlib.sha256(made).hexdigest(),
        }


@dataclass
class Storm:
    """`with Storm(url, seed) as storm:` the clients are at work; `calm()` lets them finish."""

    url: str
    seed: int
    clients: int = 5
    orders: list[Order] = field(default_factory=list[Order])
    faults: list[str] = field(default_factory=list[str])
    submitting: threading.Event = field(default_factory=threading.Event)
    """Set whenever a client is about to send a picture; clear it to wait for the next."""

    def __enter__(self) -> Storm:
        self._calm = threading.Event()
        self._abandoned = threading.Event()
        self._threads = [
            threading.Thread(target=self._client, args=(number,)) for number in range(self.clients)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._calm.set()
        self._abandoned.set()
        for thread in self._threads:
            thread.join()

    def calm(self, limit_s: float = 60) -> None:
        """No new orders; returns when every order has ended."""
        self._calm.set()
        deadline = time.monotonic() + limit_s
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        open_ = [order for order in self.orders if order.status not in ENDS]
        assert not open_, f"not ended after {limit_s} s: {open_}"

    def ended(self) -> int:
        return sum(order.status in ENDS for order in self.orders)

    def count(self, status: str) -> int:
        return sum(order.status == status for order in self.orders)

    def _client(self, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        with httpx.Client(base_url=self.url, trust_env=False, timeout=10) as http:
            while not self._calm.is_set():
                order = self._new_order(chance, number)
                self.orders.append(order)
                with contextlib.suppress(_Abandoned):
                    _Client(self, http, chance, order).see_through()

    def _new_order(self, chance: random.Random, number: int) -> Order:
        """One in five wants what an earlier one wanted, so that they share its stages."""
        key = f"{number}-{chance.getrandbits(64):x}"
        earlier = self.orders[-3:]
        if earlier and chance.random() < 0.2:
            same = chance.choice(earlier)
            return Order(key, same.seed, same.params, cancels=False)
        params = {
            "prepare_seconds": round(chance.uniform(0, 0.15), 2),
            "seconds": round(chance.uniform(0, 0.3), 2),
            "size_bytes": chance.choice([0, 100_000, 2_000_000]),
        }
        return Order(key, chance.getrandbits(31), params, cancels=chance.random() < 0.15)


class _Abandoned(Exception):
    """The test is over."""


class _Client:
    """One order's client."""

    def __init__(
        self, storm: Storm, http: httpx.Client, chance: random.Random, order: Order
    ) -> None:
        self._storm = storm
        self._http = http
        self._chance = chance
        self._order = order

    def see_through(self) -> None:
        self._submit()
        while self._order.status not in ENDS:
            self._look()
            if self._order.cancels and self._chance.random() < 0.1:
                self._cancel()
            elif self._chance.random() < 0.2:
                self._download("model.glb")
            time.sleep(POLL_S)
        if self._chance.random() < 0.3:
            self._submit()
        if self._order.status == "completed":
            while not self._order.downloads:
                self._download("model.glb")
            self._download("prepared.json")

    def _submit(self) -> None:
        """Until it is accepted; always the same job."""
        order = self._order
        data = {"seed": order.seed, **order.params}
        while True:
            self._storm.submitting.set()
            answer = self._ask(
                "POST",
                "/generate",
                headers={"Idempotency-Key": order.key},
                data={name: str(value) for name, value in data.items()},
                files={"image": ("noise.png", order.picture, "image/png")},
            )
            if answer is not None and answer.status_code == 202:
                break
            if answer is not None and answer.status_code != 503:
                self._fault(f"a submit was answered with {answer.status_code}: {answer.text}")
                raise _Abandoned
            time.sleep(RETRY_S)
        job_id = answer.json()["job_id"]
        if order.job_id not in ("", job_id):
            self._fault(f"one key made two jobs, {order.job_id} and {job_id}")
        order.job_id = job_id

    def _look(self) -> None:
        answer = self._ask("GET", f"/job/{self._order.job_id}")
        if answer is None or answer.status_code == 503:
            return
        if answer.status_code != 200:
            self._fault(f"an accepted job is gone: {answer.status_code} {answer.text}")
            raise _Abandoned
        self._heard(answer.json())

    def _cancel(self) -> None:
        answer = self._ask("POST", f"/job/{self._order.job_id}/cancel")
        if answer is not None and answer.status_code == 200:
            self._order.cancelled = True
            self._heard(answer.json())
            if self._order.status not in ENDS:
                self._fault(f"a cancel was answered with {self._order.status}")

    def _heard(self, shown: dict[str, Any]) -> None:
        order, status = self._order, shown["status"]
        if order.status in ENDS and status != order.status:
            self._fault(f"{order.status} became {status}")
        if status == "failed" or (status == "cancelled" and not order.cancels):
            self._fault(f"{status}: {shown['error']}")
        if status == "completed":
            kept = {asset["name"]: asset["sha256"] for asset in shown["assets"]}
            for name, digest in order.digests.items():
                if kept.get(name) != digest:
                    self._fault(f"completed with another {name}: {kept.get(name)}")
        order.status = status

    def _download(self, name: str) -> None:
        """What is served is right, whenever; a broken connection shows by its length."""
        answer = self._ask("GET", f"/job/{self._order.job_id}/result/{name}")
        if answer is None or answer.status_code in (409, 503):
            return
        if answer.status_code != 200:
            self._fault(f"{name} cannot be had: {answer.status_code} {answer.text}")
            raise _Abandoned
        if hashlib.sha256(answer.content).hexdigest() != self._order.digests[name]:
            self._fault(f"{name} was served with other content ({len(answer.content)} bytes)")
        self._order.downloads += name == "model.glb"

    def _ask(self, method: str, path: str, **more: Any) -> httpx.Response | None:
        """The whole answer; None where there was none."""
        if self._storm._abandoned.is_set():
            raise _Abandoned
        try:
            return self._http.request(method, path, **more)
        except httpx.TransportError:
            time.sleep(RETRY_S)
            return None

    def _fault(self, what: str) -> None:
        self._storm.faults.append(f"job {self._order.job_id} (key {self._order.key}): {what}")
