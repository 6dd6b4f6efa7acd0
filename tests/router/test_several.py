"""Several routers on one PostgreSQL and one storage: real processes, really killed and stopped."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import psycopg
import pytest
from sqlalchemy.engine import make_url

from tests.api.serving import make_picture
from tests.bento import ROOT, environment, free_port, wait_until
from tests.cable import Cable
from tests.webhooks.receiver import Receiver

PICTURE = make_picture()
LIMIT_S = 60
TAKEOVER_S = 15
ENDS = ("completed", "failed", "cancelled")


class Router:
    """`polypod up` with a data folder of its own."""

    def __init__(self, site, name):
        self.data = site.folder / name
        self.cable = site.cables[name]
        self.port = free_port()
        self._log = (site.folder / f"{name}.log").open("ab")
        command = ("up", "--port", self.port, "--data", self.data, "--fleet", site.fleet)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "polypod.cli", *map(str, command)],
            cwd=ROOT,
            env=environment(
                site.folder,
                POLYPOD_DATABASE_URL=site.url_through(self.cable),
                POLYPOD_STORAGE=f"file://{site.folder}/files",
                POLYPOD_ALLOW_PRIVATE_URLS="1",
            ),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self.http = httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}", timeout=LIMIT_S, trust_env=False
        )

    def health(self):
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/health", timeout=2).json()
        assert self.process.poll() is None
        return {}

    def is_up(self):
        return self.health().get("endpoints", {}).get("ready") == 2

    def leads(self):
        return self.health().get("router", {}).get("leads")

    def submit(self, **params):
        form = {"seed": str(next(SEEDS)), **{k: str(v) for k, v in params.items()}}
        answer = self.http.post("/generate", files={"image": ("a.png", PICTURE)}, data=form)
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]

    def job(self, job_id):
        return self.http.get(f"/job/{job_id}").json()

    def ended(self, job_id):
        return wait_until(
            lambda: (job := self.job(job_id))["status"] in ENDS and job, limit_s=LIMIT_S
        )

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        assert self.process.wait(LIMIT_S) == 0

    def kill(self):
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
            self.process.wait()
        self.http.close()
        self._log.close()


class Site:
    """A database, a storage, two pods; routers come and go."""

    def __init__(self, folder, database):
        self.folder, self.database = folder, database
        self.runs_file = folder / "runs"
        ports = [free_port(), free_port()]
        self.pods = [self._pod(port) for port in ports]
        self.fleet = folder / "fleet.yaml"
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        fleet = {"models": {"stub": {"provider": "fixed", "url": urls}}}
        self.fleet.write_text(json.dumps(fleet))
        self.pod_clients = [httpx.Client(base_url=url, trust_env=False) for url in urls]
        self.routers = {}
        url = make_url(database)
        where = str(url.query.get("host") or url.host), url.port or 5432
        self.cables = {name: Cable(*where) for name in ("a", "b")}
        for cable in self.cables.values():
            cable.__enter__()

    def url_through(self, cable):
        url = make_url(self.database).set(host="127.0.0.1", port=cable.port, query={})
        return url.render_as_string(hide_password=False)

    def _pod(self, port):
        command = [sys.executable, "-m", "tests.router.pod", str(port)]
        return subprocess.Popen(
            [*command, str(self.folder / f"pod-{port}")],
            cwd=ROOT,
            env=environment(self.folder, STUB_RUNS=str(self.runs_file)),
        )

    def pair(self):
        """The router that leads and another one, both well."""
        for name in ("a", "b"):
            router = self.routers.get(name)
            if router is None or router.process.poll() is not None:
                self.routers[name] = Router(self, name)
        routers = list(self.routers.values())
        wait_until(lambda: all(r.is_up() for r in routers), LIMIT_S)
        wait_until(lambda: sum(bool(r.leads()) for r in routers) == 1, LIMIT_S)
        return sorted(routers, key=lambda router: not router.leads())

    def runs(self, stage="work"):
        """How often each seed was run."""
        text = self.runs_file.read_text() if self.runs_file.exists() else ""
        lines = [line.split() for line in text.splitlines()]
        return Counter(int(seed) for name, seed in lines if name == stage)

    def close(self):
        for router in self.routers.values():
            router.kill()
        for pod in self.pods:
            pod.terminate()
            pod.wait(LIMIT_S)
        for cable in self.cables.values():
            cable.__exit__()


@pytest.fixture(scope="module")
def site(postgres_server, tmp_path_factory):
    name = f"polypod_{uuid.uuid4().hex}"
    admin = postgres_server.render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    url = postgres_server.set(database=name).render_as_string(hide_password=False)
    made = Site(tmp_path_factory.mktemp("site"), url)
    yield made
    made.close()
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def seeds():
    yield from range(1, 1_000_000)


SEEDS = seeds()


def events(router, job_id):
    """The kinds of the events of a job until it ends."""
    with router.http.stream("GET", f"/job/{job_id}/events") as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("event:")]
    return Counter(line.partition(": ")[2] for line in lines)


def test_a_job_is_everybodys(site):
    """Submitted where nobody leads, it is done; every router tells of it, and has its files."""
    leader, other = site.pair()
    job_id = other.submit(seconds=1, steps=10, say="a line")
    with ThreadPoolExecutor() as pool:
        heard = [pool.submit(events, router, job_id) for router in (leader, other)]
    for kinds in (one.result() for one in heard):
        assert {"snapshot", "status", "progress", "log", "asset"} <= kinds.keys()
    done = [router.job(job_id) for router in (leader, other)]
    assert done[0] == done[1]
    assert done[0]["status"] == "completed" and "a line" in done[0]["log"]
    files = [router.http.get(done[0]["download_url"]).content for router in (leader, other)]
    assert files[0] == files[1] and files[0].startswith(b"glTF")
    assert site.runs()[done[0]["seed"]] == 1
    assert leader.http.delete(f"/job/{job_id}").status_code == 204
    assert other.http.get(f"/job/{job_id}").status_code == 404


def test_the_queue_is_one(site):
    leader, other = site.pair()
    jobs = [router.submit(seconds=600, steps=600) for router in (leader, other) * 4]
    try:
        is_seen_alike(leader, other, jobs)
    finally:
        for i, job_id in enumerate(jobs):  # by the one that it was not submitted to
            answer = (other, leader)[i % 2].http.post(f"/job/{job_id}/cancel").json()
            assert answer["status"] == "cancelled"
    for job_id in jobs:
        assert [r.job(job_id)["status"] for r in (leader, other)] == ["cancelled"] * 2
    wait_until(lambda: all(is_idle(pod) for pod in site.pod_clients), LIMIT_S)


def is_seen_alike(leader, other, jobs):
    wait_until(lambda: leader.http.get("/queue").json()["processing"] == 4, LIMIT_S)
    for router in (leader, other):
        wait_until(lambda r=router: r.http.get("/queue").json() == leader.http.get("/queue").json())
    shown = [router.http.get("/jobs").json()["jobs"] for router in (leader, other)]
    assert [(job["job_id"], job["position"]) for job in shown[0]] == [
        (job["job_id"], job["position"]) for job in shown[1]
    ]
    assert sorted(job["position"] for job in shown[1][:8]) == [0, 0, 0, 0, 1, 2, 3, 4]
    on_endpoints = [
        sorted(job for e in r.http.get("/endpoints").json()["endpoints"] for job in e["jobs"])
        for r in (leader, other)
    ]
    # the first four, but for one that the leader heard of after a later one of its own
    processing = sorted(job["job_id"] for job in shown[0][:8] if job["position"] == 0)
    assert on_endpoints[0] == on_endpoints[1] == processing
    assert set(processing) <= set(jobs) and jobs[0] in processing


def is_idle(pod):
    queue = pod.get("/queue").json()
    return queue["queued"] == queue["processing"] == 0


def test_an_endpoint_that_is_registered_at_one_is_known_to_all(site):
    leader, other = site.pair()
    body = {"url": str(site.pod_clients[0].base_url), "id": "third"}
    for router in (other, leader):
        assert router.http.post("/endpoints", json=body).status_code == 201
        for each in (leader, other):
            wait_until(lambda r=each: "third" in endpoints(r), LIMIT_S)
        assert router.http.delete("/endpoints/third").status_code == 202
        for each in (leader, other):
            wait_until(lambda r=each: "third" not in endpoints(r), LIMIT_S)


def endpoints(router):
    return {e["id"]: e for e in router.http.get("/endpoints").json()["endpoints"]}


def test_fifty_jobs_at_each_are_done_once_each(site):
    routers = site.pair()
    before = site.runs("prepare")
    with ThreadPoolExecutor(8) as pool:
        made = [pool.submit(router.submit, until="prepare") for router in routers * 50]
    jobs = [one.result() for one in made]
    done = [routers[i // 2 % 2].ended(job_id) for i, job_id in enumerate(jobs)]
    assert {job["status"] for job in done} == {"completed"}
    runs = site.runs("prepare") - before
    assert runs == Counter(job["seed"] for job in done)
    with psycopg.connect(site.database) as connection:
        count = "SELECT count(*) FROM assets WHERE kind = 'manifest' GROUP BY job"
        assert {row[0] for row in connection.execute(count)} == {1}


def lose(router, how):
    if how == "cut off":
        router.cable.cut()
    else:
        router.signal(signal.SIGKILL if how == "killed" else signal.SIGSTOP)


def find(router, how):
    """It is back, if it can be."""
    if how == "cut off":
        router.cable.mend()
    elif how == "stopped":
        router.signal(signal.SIGCONT)


@pytest.mark.parametrize("how, seconds", [("killed", 3), ("stopped", 10), ("cut off", 10)])
def test_another_router_takes_over_what_the_lost_one_led(site, how, seconds):
    """It follows what runs, or has ended meanwhile, instead of starting it again."""
    leader, other = site.pair()
    with Receiver() as receiver:
        prepared = site.runs("prepare").total()
        job_id = other.submit(seconds=seconds, steps=100, webhook_url=receiver.url())
        others = [leader.submit(seconds=seconds, steps=100), *(leader.submit() for _ in range(5))]
        wait_until(lambda: other.job(job_id)["stage"] == "work", LIMIT_S)
        # four have places on the two pods, so that nothing is on its way to one in that moment
        wait_until(lambda: site.runs("prepare").total() == prepared + 4, LIMIT_S)
        wait_until(lambda: leader.job(others[0])["stage"] == "work", LIMIT_S)
        lost_at = time.monotonic()
        lose(leader, how)
        try:
            wait_until(other.leads, TAKEOVER_S)
            wait_until(lambda: other.job(job_id)["status"] != "queued", TAKEOVER_S)
            took_s = time.monotonic() - lost_at
        finally:
            find(leader, how)
        print(f"taken over and followed on after {took_s:.1f} s ({how})")
        assert took_s < TAKEOVER_S
        if how != "killed":
            wait_until(lambda: not leader.leads(), LIMIT_S)
            assert leader.job(job_id)["status"] in ("processing", "completed")
            events(leader, job_id)
        done = [other.ended(job) for job in (job_id, *others)]
        assert {job["status"] for job in done} == {"completed"}
        for stage in ("prepare", "work"):
            assert [site.runs(stage)[job["seed"]] for job in done] == [1] * len(done)
        assert len([a for a in done[0]["assets"] if a["name"] == "model.glb"]) == 1
        if how != "killed":
            wait_until(lambda: leader.job(job_id) == other.job(job_id), LIMIT_S)  # once it is told
            assert other.leads() and not leader.leads()
        assert len(receiver.wait()) == 1


def test_what_runs_where_no_more_jobs_are_sent_is_followed_by_the_next(site):
    leader, other = site.pair()
    job_id = leader.submit(seconds=12, steps=100)
    wait_until(lambda: leader.job(job_id)["stage"] == "work", LIMIT_S)
    where = next(e["id"] for e in endpoints(leader).values() if e["jobs"] == [job_id])
    assert leader.http.delete(f"/endpoints/{where}").status_code == 202
    wait_until(lambda: endpoints(other)[where]["state"] == "draining", LIMIT_S)
    leader.kill()
    wait_until(other.leads, TAKEOVER_S)
    done = other.ended(job_id)
    assert (done["status"], site.runs()[done["seed"]]) == ("completed", 1)
    wait_until(lambda: where not in endpoints(other), LIMIT_S)
    other.end()


def test_an_orderly_stop_gives_the_jobs_up_at_once(site):
    leader, other = site.pair()
    job_id = leader.submit(seconds=5, steps=50)
    wait_until(lambda: other.job(job_id)["stage"] == "work", LIMIT_S)
    leader.end()
    ended_at = time.monotonic()
    wait_until(other.leads, LIMIT_S)
    assert time.monotonic() - ended_at < 4, "it did not wait for the lease"
    done = other.ended(job_id)
    assert done["status"] == "completed" and site.runs()[done["seed"]] == 1


def test_a_keys_rate_is_that_of_all_routers_together(site):
    """The last test here: from the first key on, every request needs one."""
    routers = site.pair()
    made = subprocess.run(
        [sys.executable, "-m", "polypod.cli", "keys", "create", "web", "--per-minute=3", "--json"],
        cwd=ROOT,
        env=environment(site.folder, POLYPOD_DATABASE_URL=site.database),
        check=True,
        stdout=subprocess.PIPE,
    )
    for router in routers:
        wait_until(lambda r=router: r.http.get("/jobs").status_code == 401, LIMIT_S)
        router.http.headers["x-api-key"] = json.loads(made.stdout)["key"]
    answers = [
        router.http.post("/generate", files={"image": ("a.png", PICTURE)}).status_code
        for router in routers * 3
    ]
    assert Counter(answers) == {202: 3, 429: 3}
