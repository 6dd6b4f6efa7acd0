"""Pods on this computer: a service as a child process, kept running while it is awake.

A pod outlives a router that is killed: the work that it does is not lost. What the next router
needs to know of it is in `<folder>/<id>.json`: that one goes on with the pod, or ends it. A pod
begins to run only after this was written, so there is none that nobody knows of. Where nobody
will come after (`bound`), pods end with the process that started them, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import httpx
import psutil

from polypod.background import Background
from polypod.router.endpoint import Known
from polypod.workers.process import birth, environment

log = logging.getLogger("polypod.pods")

ROOT = Path(__file__).resolve().parents[2]
"""Where `services/` is."""
COMMAND = (sys.executable, "-m", "bentoml", "serve", "services.chosen:Chosen")
HOST = "127.0.0.1"
FIRST_PAUSE_S = 1.0
MOST_PAUSE_S = 60.0
STEADY_S = 60.0
"""A pod that ran this long starts again without a longer pause."""
ADOPT_S = 5.0
"""How long a pod of the last router is given to answer."""
SILENT_S = 60.0
"""A pod that lives but does not answer for so long hangs: it is started again."""
GRACE_S = 8.0
POLL_S = 0.2
ASK_EVERY_S = 5.0

BEGIN = 'read -r go && exec "$@" </dev/null'
BEGIN_BOUND = """
read -r go || exit
exec 3<&0
(
    read -r never <&3
    kill $$
    for tenth in $(seq 100); do kill -0 $$ || exit; sleep 0.1; done
    kill -9 -$$
) 2>/dev/null &
exec "$@" </dev/null 3<&-
"""
"""The pipe, on which nothing more comes, closes when its writer is gone: then the pod is ended."""

PASSED = (
    *("POLYPOD_HOME", "POLYPOD_IMAGE", "POLYPOD_DOCTOR", "POLYPOD_NEEDS"),
    *("POLYPOD_MAX_PIXELS", "POLYPOD_MAX_UPLOAD_BYTES", "POLYPOD_DISK_BUDGET_BYTES"),
)
PREFIXES = ("POLYPOD_SLOT_", "OTEL_")
"""Settings of the router that hold for its pods too."""


@dataclass(frozen=True)
class PodSpec:
    """A pod as it is wanted. `id` names it, its files and its endpoint."""

    id: str
    model: str
    env: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Record:
    """A pod as it is, for this router and the next. `key` is secret: the file has mode 0600."""

    id: str
    spec: str
    pid: int
    birth: str
    port: int
    key: str = field(repr=False)
    store_id: str = ""

    @property
    def known(self) -> Known:
        return Known(self.id, f"http://{HOST}:{self.port}", "local", self.key)

    @property
    def alive(self) -> bool:
        return is_alive(self.pid, self.birth)


class LocalPods:
    """Keeps a process running for each spec that is awake, from `start` to `stop`.

    `folder` is theirs alone; `asleep` names those that run only once they are woken.
    """

    def __init__(
        self,
        specs: Sequence[PodSpec],
        folder: Path,
        asleep: Collection[str] = (),
        *,
        bound: bool = False,
    ) -> None:
        self.ended: dict[str, str] = {}
        """How each pod that was not to end has ended last."""
        self._specs = {spec.id: spec for spec in specs}
        self._asleep = asleep
        self._bound = bound
        self._folder = folder
        self._came: Callable[[Known], object] = lambda _: None
        self._ending: dict[str, asyncio.Task[object]] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._background = Background()
        self._keepers: dict[str, asyncio.Task[object]] = {}

    def left_running(self) -> Iterator[Known]:
        """Pods of a router that was killed, which `start` will go on with if they answer."""
        for record in self._records():
            if self._is_wanted(record) and record.alive:
                yield record.known

    async def start(self, came: Callable[[Known], object]) -> None:
        """`came` is told of each pod when it is started; it is ready when it answers."""
        self._came = came
        left = {known.id for known in self.left_running()}
        for pod in self._specs:
            if pod in left or pod not in self._asleep:
                self.wake(pod)
        for record in self._records():
            if record.id not in self._keepers:
                self._ending[record.id] = self._background.run(self._end(record))

    def wake(self, pod: str) -> None:
        """Starts it and keeps it running; harmless where it is awake."""
        if pod in self._specs and pod not in self._keepers:
            self._keepers[pod] = self._background.run(self._keep(self._specs[pod]))

    def put_to_sleep(self, pod: str) -> None:
        """Ends it until it is woken."""
        if keeper := self._keepers.pop(pod, None):
            self._ending[pod] = self._background.run(self._end_kept(pod, keeper))

    async def stop(self) -> None:
        """Ends all pods, side by side; returns when their processes are gone."""
        await self._background.stop()
        await asyncio.gather(*(self._end(record) for record in self._records()))

    async def dismiss(self, pod: str) -> None:
        """Ends this one for good; harmless where it is not ours."""
        if keeper := self._keepers.pop(pod, None):
            await self._end_kept(pod, keeper)

    async def _end_kept(self, pod: str, keeper: asyncio.Task[object]) -> None:
        keeper.cancel()
        await asyncio.wait([keeper])
        if record := self._read(pod):
            await self._end(record)

    # One pod

    async def _keep(self, spec: PodSpec) -> None:
        if spec.id in self._ending:
            await asyncio.wait([self._ending.pop(spec.id)])
        pause = FIRST_PAUSE_S
        while True:
            begun = time.monotonic()
            why = self.ended[spec.id] = await self._run(spec)
            if time.monotonic() - begun > STEADY_S:
                pause = FIRST_PAUSE_S
            log.warning("pod %s %s; it starts again in %.0f s", spec.id, why, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, MOST_PAUSE_S)

    async def _run(self, spec: PodSpec) -> str:
        """Goes on with the pod, or starts it; returns when it has to be started again: why."""
        try:
            record = await self._adopted(spec) or await self._begun(spec)
        except Exception as error:  # else nothing would be heard of it again
            log.exception("pod %s cannot be started", spec.id)
            return f"cannot be started ({error})"
        self._came(record.known)
        return await self._watch(record)

    async def _adopted(self, spec: PodSpec) -> Record | None:
        """The pod of a router that was killed, if it is the one that is wanted and answers."""
        record = self._read(spec.id)
        if record is None or not record.alive:
            return None
        deadline = time.monotonic() + ADOPT_S
        wanted = self._is_wanted(record)
        while wanted and record.alive and time.monotonic() < deadline:
            store_id = await _store_id(record)
            if store_id:
                if record.store_id in ("", store_id):
                    log.info("pod %s is running already", spec.id)
                    return self._write(replace(record, store_id=store_id))
                break
            await asyncio.sleep(POLL_S)
        await asyncio.to_thread(end, record.pid, record.birth)
        return None

    async def _begun(self, spec: PodSpec) -> Record:
        """Where it is called off meanwhile, it has to be known first, to be ended."""
        beginning = asyncio.ensure_future(asyncio.to_thread(self._begin, spec))
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            await asyncio.wait([beginning])
            raise

    def _begin(self, spec: PodSpec) -> Record:
        """Starts the process; it waits in `sh` until it is written down. Blocking."""
        before = self._read(spec.id)
        port = before.port if before and _is_free(before.port) else _free_port()
        data = self._folder / spec.id
        for folder in (self._folder, data):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = before.key if before else self._key_of(spec.id)
        output = self._folder / f"{spec.id}.log"
        with contextlib.suppress(FileNotFoundError):
            output.replace(output.with_suffix(".log.before"))
        serve = [*COMMAND, "--arg", f"model={spec.model}", "--host", HOST, "--port", str(port)]
        with os.fdopen(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as out:
            process = subprocess.Popen(
                ["/bin/sh", "-c", BEGIN_BOUND if self._bound else BEGIN, "sh", *serve],
                cwd=ROOT,
                env=_environment(spec, data, port, key),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[spec.id] = process
        record = self._write(
            Record(spec.id, digest(spec), process.pid, birth(process.pid), port, key)
        )
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(b"go\n")
            process.stdin.flush()
            if not self._bound:
                process.stdin.close()
        return record

    async def _watch(self, record: Record) -> str:
        """Returns when the pod has to be started again: why."""
        heard = asked = time.monotonic()
        while record.alive:
            now = time.monotonic()
            if not record.store_id or now - asked >= ASK_EVERY_S:
                asked = now
                if store_id := await _store_id(record):
                    heard = now
                    if store_id != record.store_id:
                        record = self._write(replace(record, store_id=store_id))
            if now - heard > SILENT_S:
                await asyncio.to_thread(end, record.pid, record.birth)
                self._reap(record.id)
                return f"did not answer for {SILENT_S:.0f} s"
            await asyncio.sleep(POLL_S)
        return f"ended ({self._reap(record.id)})"

    async def _end(self, record: Record) -> None:
        await asyncio.to_thread(end, record.pid, record.birth)
        self._reap(record.id)
        (self._folder / f"{record.id}.json").unlink(missing_ok=True)

    def _reap(self, pod: str) -> str:
        """How the child has ended, and its last line."""
        process = self._children.pop(pod, None)
        if process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what waits with a pod for our end
        code = process.wait() if process else None
        if process and process.stdin:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        how = "killed" if code is None else f"signal {-code}" if code < 0 else f"status {code}"
        try:
            lines = (self._folder / f"{pod}.log").read_text(errors="replace").split("\n")
        except OSError:
            lines = []
        last = next((line for line in reversed(lines) if line.strip()), "")
        return f"{how}: {last.strip()[:300]}" if last else how

    # Records

    def _is_wanted(self, record: Record) -> bool:
        spec = self._specs.get(record.id)
        return spec is not None and digest(spec) == record.spec

    def _records(self) -> list[Record]:
        found = (self._read(path.stem) for path in sorted(self._folder.glob("*.json")))
        return [record for record in found if record]

    def _read(self, pod: str) -> Record | None:
        try:
            return Record(**json.loads((self._folder / f"{pod}.json").read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            log.warning("the record of pod %s cannot be read: %s", pod, error)
            return None

    def _key_of(self, pod: str) -> str:
        """The key of its last start: finished stages belong to the key that made them."""
        path = self._folder / f"{pod}.key"
        with contextlib.suppress(FileNotFoundError):
            if key := path.read_text():
                return key
        key = secrets.token_urlsafe(32)
        _write_secret(path, key)
        return key

    def _write(self, record: Record) -> Record:
        _write_secret(self._folder / f"{record.id}.json", json.dumps(asdict(record)))
        return record


def digest(spec: PodSpec) -> str:
    """Of what makes a pod: its settings, and the code as it is now. Reads some 2 MB."""
    told = json.dumps([spec.model, _passed() | dict(spec.env)], sort_keys=True)
    made = hashlib.sha256(told.encode())
    for folder in (ROOT / "polypod", ROOT / "services" / spec.model):
        for path in sorted(folder.rglob("*.py")):
            made.update(hashlib.sha256(path.read_bytes()).digest())
    return made.hexdigest()[:16]


def end(pid: int, born: str, grace_s: float = GRACE_S) -> None:
    """Ends the pod with all that came from it; returns when they are gone. Blocking."""
    if not is_alive(pid, born):
        return
    family = _family(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while is_alive(pid, born) and time.monotonic() < deadline:
        family |= _family(pid)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    deadline = max(deadline, time.monotonic() + 2)
    own_way_s = time.monotonic() + 1.5
    while any(_runs(member) for member in family) and time.monotonic() < deadline:
        if time.monotonic() > own_way_s:
            for member in family:
                with contextlib.suppress(psutil.Error):
                    member.kill()
        time.sleep(0.05)


def is_alive(pid: int, born: str) -> bool:
    """Whether this very process runs; one that nobody has collected yet has ended."""
    try:
        if birth(pid) != born:
            return False
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (OSError, psutil.Error, IndexError):
        return False


def _family(pid: int) -> set[psutil.Process]:
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        return {process, *process.children(recursive=True)}
    return set()


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def _store_id(record: Record) -> str:
    """Of the pod that answers at the port and takes the key; empty: none does."""
    headers = {"X-API-Key": record.key}
    with contextlib.suppress(httpx.HTTPError, ValueError, AttributeError):
        async with httpx.AsyncClient(
            base_url=record.known.url, headers=headers, timeout=2, trust_env=False
        ) as http:
            if (await http.get("/queue")).status_code == 200:
                return str((await http.get("/health")).json().get("store_id") or "")
    return ""


def _write_secret(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    new.replace(path)


def _environment(spec: PodSpec, data: Path, port: int, key: str) -> dict[str, str]:
    """The pod is given the hash of its key, and no key of ours."""
    own = {
        "POLYPOD_DATA": str(data.absolute()),
        "POLYPOD_HOST": HOST,
        "POLYPOD_API_KEYS": f"sha256:{hashlib.sha256(key.encode()).hexdigest()}",
        "PORT": str(port),
        "MAX_QUEUE_SIZE": "10",
        "CORS_ORIGINS": "",
    }
    return environment(sys.executable, _passed() | dict(spec.env) | own)


def _passed() -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if name in PASSED or name.startswith(PREFIXES)
    }


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False
