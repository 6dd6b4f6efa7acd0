"""A router before real pods: real sockets, real engines, real worker processes."""

from __future__ import annotations

import contextlib
import time

import pytest

from polypod.api.compat import mounted
from polypod.router.app import create_router, make_engine
from polypod.router.endpoint import Known
from polypod.router.registered import registered
from polypod.settings import Settings
from tests.api.serving import Server, make_picture, until
from tests.models.stub.model import MODEL


class Router(Server):
    def __init__(self, settings, endpoints):
        self.engine = make_engine(endpoints, settings)
        self.app = create_router(self.engine, settings)
        self._serve()

    def endpoints(self):
        return {e["id"]: e for e in self.client.get("/endpoints").json()["endpoints"]}

    def state(self, name):
        return self.endpoints()[name]["state"]


@contextlib.contextmanager
def fleet(tmp_path, pods=1, **settings):
    """A router and its pods."""
    with contextlib.ExitStack() as stack:
        servers = []
        for i in range(pods):
            pod = Server(Settings(data=tmp_path / f"pod{i}"), MODEL)
            stack.callback(pod.stop)
            servers.append(pod)
        known = [Known(f"pod{i}", pod.url) for i, pod in enumerate(servers)]
        router = Router(Settings(data=tmp_path / "router", **settings), known)
        stack.callback(router.stop)
        until(lambda: all(e["state"] == "ready" for e in router.endpoints().values()))
        yield router, *servers


@pytest.fixture(scope="module")
def one_pod(tmp_path_factory):
    with fleet(tmp_path_factory.mktemp("fleet"), max_queue_size=100) as servers:
        yield servers


PICTURE = make_picture()


def test_a_job_comes_home_as_if_it_had_run_here(one_pod):
    router, pod = one_pod
    done = router.done(PICTURE, say="hello from afar", size_bytes=100_000)
    names = [asset["name"] for asset in done["assets"]]
    assert names[:1] == ["image"]
    assert {"prepared.json", "model.glb", "manifest.json"} <= set(names)
    assert "hello from afar" in done["log"]
    assert done["progress"] == 100
    glb = router.client.get(done["download_url"])
    assert glb.content.startswith(b"glTF")
    until(lambda: pod.client.get(f"/job/{done['job_id']}").status_code == 404)
    assert router.client.get(done["download_url"]).content == glb.content


def test_a_manifest_names_the_job_that_was_continued(one_pod):
    router, _ = one_pod
    first = router.done(PICTURE, size_bytes=10)["job_id"]
    answer = router.client.post(f"/job/{first}/continue", json={"size_bytes": 20})
    again = router.ended(answer.json()["job_id"])["job_id"]
    manifest = router.client.get(f"/job/{again}/result/manifest.json").json()
    assert manifest["parent"] == first


def test_the_card_is_the_pods_own(one_pod):
    router, pod = one_pod
    assert router.client.get("/models").json() == pod.client.get("/models").json()


def test_events_pass_through(one_pod):
    router, _ = one_pod
    router.submit(PICTURE, seconds=1, steps=10)  # so that the next waits until it is listened to
    job = router.submit(PICTURE, seconds=0.5, steps=10, say="a line")
    with router.client.stream("GET", f"/job/{job['job_id']}/events") as stream:
        text = "".join(stream.iter_text())
    kinds = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("event:")]
    assert {"snapshot", "status", "progress", "asset", "log"} <= set(kinds)


def test_a_failure_is_told_as_the_pod_tells_it(one_pod):
    router, _ = one_pod
    failed = router.ended(router.submit(PICTURE, fail="bad_input")["job_id"])
    assert (failed["status"], failed["error"]["code"]) == ("failed", "bad_input")
    assert failed["error"]["hint"] == "Send another picture."


def test_a_cancel_reaches_the_pod(one_pod):
    router, pod = one_pod
    job_id = router.submit(PICTURE, seconds=600, steps=1000)["job_id"]
    until(lambda: router.job(job_id)["stage"] == "work")
    assert router.client.post(f"/job/{job_id}/cancel").json()["status"] == "cancelled"
    until(lambda: pod.client.get("/queue").json() | {"max": 0} and _idle(pod))
    assert router.done(PICTURE)["status"] == "completed"


def _idle(pod):
    queue = pod.client.get("/queue").json()
    return queue["queued"] == queue["processing"] == 0


def test_a_cancel_during_the_hand_over_leaves_nothing_on_the_pod(one_pod):
    router, pod = one_pod
    for number in range(20):
        job_id = router.submit(PICTURE, seconds=600, steps=1000)["job_id"]
        if number % 2:
            until(lambda: router.endpoints()["pod0"]["jobs"])
        assert router.client.post(f"/job/{job_id}/cancel").json()["status"] == "cancelled"
    until(lambda: not router.endpoints()["pod0"]["jobs"])
    until(lambda: _idle(pod) and not pod.history())
    assert router.done(PICTURE)["status"] == "completed"


def test_two_jobs_at_most_are_on_an_endpoint(one_pod):
    router, pod = one_pod
    jobs = [router.submit(PICTURE, seconds=600, steps=1000)["job_id"] for _ in range(5)]
    until(lambda: len(router.endpoints()["pod0"]["jobs"]) == 2)
    until(lambda: "work" in [router.job(job)["stage"] for job in jobs[:2]])
    assert [router.job(j)["status"] for j in jobs[2:]] == ["queued"] * 3
    assert pod.client.get("/queue").json()["queued"] <= 1
    for job in jobs:
        router.client.post(f"/job/{job}/cancel")


def test_a_bad_request_is_refused_by_the_router(one_pod):
    router, _ = one_pod
    answer = router.client.post(
        "/generate", files={"image": ("a.png", PICTURE)}, data={"secnods": "1"}
    )
    assert answer.status_code == 422
    assert "Did you mean 'seconds'?" in answer.json()["error"]


def test_a_lost_endpoints_jobs_go_on_elsewhere(tmp_path):
    with fleet(tmp_path, pods=2) as (router, first, second):
        jobs = [router.submit(PICTURE, seconds=2, steps=20)["job_id"] for _ in range(3)]
        until(lambda: all(e["jobs"] for e in router.endpoints().values()))
        first.stop()
        done = [router.ended(job) for job in jobs]
        assert [job["status"] for job in done] == ["completed"] * 3
        until(lambda: router.state("pod0") == "lost")
        assert second.client.get("/health").json()["status"] == "healthy"


def test_a_new_router_follows_what_runs_instead_of_starting_it_again(tmp_path):
    with fleet(tmp_path) as (router, pod):
        job_id = router.submit(PICTURE, seconds=3, steps=30)["job_id"]
        until(lambda: router.job(job_id)["stage"] == "work")
        router.stop()
        again = Router(Settings(data=tmp_path / "router"), [Known("pod0", pod.url)])
        try:
            done = again.ended(job_id)
        finally:
            again.stop()
        assert done["status"] == "completed"
        assert "prepared.json" in {a["name"] for a in done["assets"]}


def test_a_new_router_follows_what_runs_where_no_more_jobs_are_sent(tmp_path):
    """An endpoint that was being drained is so still, and is forgotten when its job is done."""
    with fleet(tmp_path, pods=2) as (router, first, second):
        for fixed in ("pod0", "pod1"):
            router.client.delete(f"/endpoints/{fixed}")
        until(lambda: not router.endpoints())
        router.client.post("/endpoints", json={"id": "again", "url": second.url})
        job_id = router.submit(PICTURE, seconds=3, steps=30)["job_id"]
        until(lambda: router.job(job_id)["stage"] == "work")
        assert router.client.delete("/endpoints/again").json()["state"] == "draining"
        router.stop()
        anew = Router(Settings(data=tmp_path / "router"), [Known("pod0", first.url)])
        try:
            until(lambda: anew.endpoints()["again"]["jobs"] == [job_id])
            there = anew.endpoints()
            assert (there["again"]["state"], there["pod0"]["jobs"]) == ("draining", [])
            assert anew.ended(job_id)["status"] == "completed"
            until(lambda: "again" not in anew.endpoints())
            until(lambda: list(registered(tmp_path / "router")) == [])
        finally:
            anew.stop()


def test_both_documents_name_every_route_of_a_router(one_pod):
    router, _ = one_pod
    document = router.client.get("/docs.json").json()
    assert router.client.get("/openapi.json").json() == document
    routes = {route.path for route in router.app.routes}
    pages = {path for path in routes if path.startswith(("/docs", "/openapi", "/static"))}
    facades = {path for _, path, _ in mounted.with_facades(())}
    assert routes - pages - facades <= document["paths"].keys()


def test_endpoints_are_registered_and_drained(tmp_path):
    with fleet(tmp_path, pods=2) as (router, first, _):
        assert router.client.delete("/endpoints/pod1").status_code == 202
        until(lambda: "pod1" not in router.endpoints())
        answer = router.client.post("/endpoints", json={"url": first.url, "id": "pod0"})
        assert answer.status_code == 409
        login, key = "http://me:word@127.0.0.1:1", {"url": first.url, "api_key": "\u00e9"}
        for wrong in ({"url": "ftp://x"}, {"url": "http://["}, {"url": login}, {}, key):
            answer = router.client.post("/endpoints", json=wrong)
            assert answer.status_code == 422, wrong
            assert "This is no endpoint" in answer.json()["error"]
        assert not (tmp_path / "router/endpoints.json").exists(), "nothing of these is kept"
        assert router.client.delete("/endpoints/nobody").status_code == 404


def test_a_router_is_no_endpoint_of_its_own(tmp_path):
    """It would hand a job to itself, and wait for itself."""
    with fleet(tmp_path) as (router, _):
        asked = {"url": router.url, "id": "self"}
        assert router.client.post("/endpoints", json=asked).status_code == 201
        until(lambda: router.endpoints()["self"]["reason"] == "It is this router itself.")
        jobs = [router.submit(PICTURE)["job_id"] for _ in range(3)]
        assert {router.ended(job)["status"] for job in jobs} == {"completed"}


def test_a_pod_whose_disk_budget_is_used_up_gets_no_jobs_until_it_has_room(tmp_path):
    with fleet(tmp_path, pods=2) as (router, first, second):
        fill(first, 1)
        jobs = [router.submit(PICTURE)["job_id"] for _ in range(2)]
        assert {router.ended(job)["status"] for job in jobs} == {"completed"}
        until(lambda: "disk budget" in (router.endpoints()["pod0"]["reason"] or ""))
        assert router.state("pod0") == "ready"

        fill(second, 1)
        until(lambda: all(e["reason"] for e in router.endpoints().values()))
        waiting = router.submit(PICTURE)["job_id"]
        assert router.job(waiting)["status"] == "queued"
        fill(first, 1 << 40)
        assert router.ended(waiting)["status"] == "completed"


def fill(pod, budget_bytes):
    """It has a picture that was stored just now, and this disk budget."""
    pod.client.post("/images", content=PICTURE, headers={"Content-Type": "image/png"})
    pod.engine.budget._most = budget_bytes
    pod.on_loop(lambda: pod.engine.budget.look(time.time()))


def test_what_waits_behind_another_goes_to_an_endpoint_that_has_nothing_to_do(tmp_path):
    """Its preparing, which ran ahead, is not done again; the pod that it leaves keeps nothing."""
    with fleet(tmp_path, pods=2) as (router, first, second):
        assert router.client.delete("/endpoints/pod1").status_code in (200, 202, 204)
        until(lambda: "pod1" not in router.endpoints())
        long, waiting = (router.submit(PICTURE, seconds=30, steps=60)["job_id"] for _ in range(2))
        until(lambda: set(router.endpoints()["pod0"]["jobs"]) == {long, waiting})
        lives = router.engine.queue.lives
        until(lambda: all("prepare" in lives[job].finished for job in (long, waiting)))
        there = first.engine.queue.lives
        until(lambda: "work" in (there[long].at, there[waiting].at))
        if there[waiting].at == "work":  # it came to the pod before the other
            long, waiting = waiting, long
        answer = router.client.post("/endpoints", json={"id": "again", "url": second.url})
        assert answer.status_code < 300, answer.text
        until(lambda: router.endpoints()["again"]["jobs"] == [waiting])
        until(lambda: router.job(waiting)["stage"] == "work")
        until(lambda: first.client.get(f"/job/{waiting}").status_code == 404)
        assert router.endpoints()["pod0"]["jobs"] == [long], "what is worked on stays"
        kept = second.engine.queue.lives[waiting].runs
        assert [(run.stage, run.kept) for run in kept] == [("prepare", True)]
        for job in (long, waiting):
            router.client.post(f"/job/{job}/cancel")
