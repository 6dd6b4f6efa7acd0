"""Files in S3, over HTTP: a real client, a strict server in another process, faults between."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from polypod.assets.bucket import PART, Bucket, BucketSpec
from polypod.assets.s3 import DOUBT_S, GRACE_S, NEARLY_S, OWNER, STALE_S, S3Blobs
from polypod.errors import Unavailable
from tests.faulty_proxy import FaultyProxy
from tests.s3server import ACCESS_KEY, ENVIRONMENT, ROOT, SECRET_KEY, S3Server, s3_server

MIB = 1 << 20
DAY = 86400.0


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(server: S3Server, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new, empty bucket."""
    name = f"b-{hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:20]}"
    server.client().create_bucket(Bucket=name)
    yield name


@pytest.fixture
def proxy(server: S3Server) -> Iterator[FaultyProxy]:
    with FaultyProxy(server.port) as running:
        yield running


Make = Callable[..., S3Blobs]


@pytest.fixture
def make(proxy: FaultyProxy, bucket: str, tmp_path: Path) -> Make:
    """S3Blobs on the bucket, through the proxy; each with a cache of its own unless told.

    Those with equal specs share a client, which takes its credentials when it is made.
    """

    buckets: dict[BucketSpec, Bucket] = {}

    def make(
        cache: str = "",
        cache_bytes: int = 1 << 30,
        presign_s: int = 0,
        settle_s: float = 0.5,
        **other: Any,
    ):
        wanted = {
            "name": bucket,
            "prefix": "pods/",
            "endpoint": proxy.url,
            "path_style": True,
            "connect_timeout_s": 1.0,
            "read_timeout_s": 5.0,
            "attempts": 4,
        }
        spec = BucketSpec(**{**wanted, **other})
        if spec not in buckets:
            buckets[spec] = Bucket(spec)
        root = tmp_path / (cache or f"cache-{len(list(tmp_path.iterdir()))}")
        return S3Blobs(buckets[spec], root, cache_bytes, presign_s, settle_s)

    return make


@pytest.fixture
def blobs(make: Make) -> S3Blobs:
    return make()


def content(size: int, seed: int = 0) -> bytes:
    """Bytes that do not repeat."""
    return hashlib.shake_128(f"{seed}".encode()).digest(size)


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def key_of(digest: str) -> str:
    return f"pods/blobs/{digest[:2]}/{digest}"


def keys(server: S3Server, bucket: str) -> list[str]:
    answer = server.client().list_objects_v2(Bucket=bucket)
    return [entry["Key"] for entry in answer.get("Contents", [])]


def uploads(server: S3Server, bucket: str) -> list[Any]:
    return server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])


def lose_copy(blobs: S3Blobs, digest: str) -> None:
    blobs.cache.drop(digest)


# --- putting and getting


def test_what_is_put_is_in_the_bucket_and_comes_back(
    make: Make, server: S3Server, bucket: str, tmp_path: Path
) -> None:
    blobs = make()
    ref = blobs.put_bytes(b"solid", "model/stl", "a.stl")
    assert (ref.digest, ref.size, ref.media_type) == (digest_of(b"solid"), 5, "model/stl")
    there = server.client().get_object(Bucket=bucket, Key=key_of(ref.digest))
    assert (there["Body"].read(), there["ContentType"]) == (b"solid", "model/stl")

    (path := tmp_path / "model.glb").write_bytes(content(3 * MIB))
    glb = blobs.put_file(path)
    assert (glb.media_type, glb.filename, glb.size) == ("model/gltf-binary", "model.glb", 3 * MIB)
    empty = blobs.put_bytes(b"")
    with blobs.writer() as writer:
        writer.write(b"one ")
        writer.write(memoryview(b"two"))
        assert (writer.size, writer.digest) == (7, digest_of(b"one two"))
        streamed = writer.commit("text/plain", "a.txt")
    with blobs.writer() as writer:
        writer.write(b"never committed")

    other = make()
    assert other.path(ref.digest).read_bytes() == b"solid"
    assert other.path(glb.digest).read_bytes() == content(3 * MIB)
    assert other.path(empty.digest).read_bytes() == b""
    assert b"".join(other.stream(streamed.digest)) == b"one two"
    assert b"".join(other.stream(empty.digest)) == b""
    listed = {digest: size for digest, size, _ in other.digests()}
    assert listed == {r.digest: r.size for r in (ref, glb, empty, streamed)}


@pytest.mark.parametrize("size", [PART, PART + 1, 3 * PART + 5])
def test_large_files_go_in_parts(
    make: Make, proxy: FaultyProxy, server: S3Server, bucket: str, tmp_path: Path, size: int
) -> None:
    blobs = make()
    (path := tmp_path / "big.ply").write_bytes(content(size))
    ref = blobs.put_file(path)
    parts = -(-size // PART) if size > PART else 0
    assert proxy.count("PUT", "partNumber") == parts
    assert uploads(server, bucket) == []
    other = make()
    assert other.path(ref.digest).read_bytes() == content(size)
    assert b"".join(make().stream(ref.digest)) == content(size)


def test_a_range_is_streamed_without_a_copy(make: Make, proxy: FaultyProxy) -> None:
    data = content(5 * MIB)
    ref = make().put_bytes(data)
    other = make()
    for start, stop in ((0, 1), (5, 4 * MIB), (MIB, None), (5 * MIB - 1, 5 * MIB), (7, 7)):
        assert b"".join(other.stream(ref.digest, start, stop)) == data[start:stop]
    assert other.cache.bytes == 0
    other.path(ref.digest)
    asked = len(proxy.requests)
    assert b"".join(other.stream(ref.digest, 5, 4 * MIB)) == data[5 : 4 * MIB]
    assert b"".join(other.stream(ref.digest)) == data
    assert len(proxy.requests) == asked  # from the copy


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "AB" * 32, "ab" * 31, "ab" * 32])
def test_what_is_not_there_is_a_key_error(blobs: S3Blobs, digest: str) -> None:
    with pytest.raises(KeyError):
        blobs.path(digest)
    with pytest.raises(KeyError):
        next(blobs.stream(digest))
    with pytest.raises(KeyError):
        next(blobs.stream(digest, 2, 5))


def test_equal_content_is_uploaded_once(make: Make, proxy: FaultyProxy) -> None:
    first, second = make(), make()
    with ThreadPoolExecutor(8) as threads:
        refs = list(threads.map(first.put_bytes, [b"the same"] * 8))
    assert len({ref.digest for ref in refs}) == 1
    second.put_bytes(b"the same")
    assert proxy.count("PUT", "/blobs/") == 1
    asked = len(proxy.requests)
    assert first.put_bytes(b"the same").digest == refs[0].digest
    assert len(proxy.requests) == asked  # it has just seen it there


def test_renew_tells_whether_content_is_kept(make: Make) -> None:
    ref = make().put_bytes(b"kept")
    assert make().renew(ref.digest)
    assert not make().renew(digest_of(b"never put"))


def test_many_threads_put_fetch_and_lose_the_same(make: Make) -> None:
    """With a cache that holds next to nothing, every answer is right."""
    blobs, other = make(cache_bytes=100_000), make(cache_bytes=100_000)
    datas = [content(60_000, seed) for seed in range(4)]

    def work(n: int) -> None:
        for i in range(6):
            data = datas[(n + i) % 4]
            mine = blobs if n % 2 else other
            ref = mine.put_bytes(data)
            assert b"".join(mine.stream(ref.digest)) == data
            lose_copy(mine, ref.digest)
            assert b"".join(mine.stream(ref.digest, 9, 70)) == data[9:70]

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(6)))
    assert {digest for digest, _, _ in blobs.digests()} == {digest_of(data) for data in datas}


def test_one_fetch_at_a_time_for_each_digest(make: Make, proxy: FaultyProxy) -> None:
    ref = make().put_bytes(content(2 * MIB))
    other = make()
    with ThreadPoolExecutor(6) as threads:
        paths = set(threads.map(other.path, [ref.digest] * 6))
    assert len(paths) == 1 and paths.pop().read_bytes() == content(2 * MIB)
    assert proxy.count("GET", ref.digest) == 1


PUT_IN_CHILD = """
import sys
from pathlib import Path
from polypod.assets.bucket import Bucket, BucketSpec
from polypod.assets.s3 import S3Blobs
_, endpoint, bucket, root, source = sys.argv
spec = BucketSpec(bucket, "pods/", endpoint, path_style=True)
print(S3Blobs(Bucket(spec), Path(root), 1 << 30).put_file(Path(source)).digest)
"""


def test_two_processes_put_the_same(
    make: Make, proxy: FaultyProxy, server: S3Server, bucket: str, tmp_path: Path
) -> None:
    data = content(PART + 77)
    children: list[subprocess.Popen[str]] = []
    for n in range(2):
        (path := tmp_path / f"source-{n}").write_bytes(data)
        command = [sys.executable, "-c", PUT_IN_CHILD, proxy.url, bucket]
        command += [str(tmp_path / f"child-{n}"), str(path)]
        children.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
    answers = {child.communicate(timeout=60)[0].strip() for child in children}
    assert answers == {digest_of(data)}
    assert b"".join(make().stream(digest_of(data))) == data
    assert uploads(server, bucket) == []


# --- faults


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503, "code": "SlowDown", "times": 2},
        {"kind": "status", "status": 500, "code": "InternalError"},
        {"kind": "cut request", "after": 100_000},
        {"kind": "stall request", "after": 100_000},
        {"kind": "damage request", "after": 100_000},
        {"kind": "lose response"},
        {"kind": "no response"},
    ],
    ids=lambda fault: f"{fault['kind']} {fault.get('code', '')}".strip(),
)
@pytest.mark.parametrize("size", [3 * MIB, 2 * PART + 1], ids=["whole", "parts"])
def test_a_put_survives(
    make: Make, proxy: FaultyProxy, fault: dict[str, Any], size: int, tmp_path: Path
) -> None:
    blobs, data = make(read_timeout_s=1.0), content(size)
    path = "partNumber=2" if size > PART else "/blobs/"
    proxy.fail(**fault, method="PUT", path=path)
    assert blobs.put_bytes(data).size == size
    assert b"".join(make().stream(digest_of(data))) == data
    assert proxy.count("PUT", path) >= 2


@pytest.mark.parametrize("method", ["POST", "DELETE", "HEAD"])
def test_every_other_request_survives_too(
    make: Make, proxy: FaultyProxy, method: str, server: S3Server, bucket: str
) -> None:
    blobs = make()
    blobs.check("me")
    proxy.fail("status", method)
    proxy.fail("lose response", method, "uploadId=" if method == "POST" else "")
    ref = blobs.put_bytes(content(PART + 1))
    assert blobs.delete(ref.digest)
    assert key_of(ref.digest) not in keys(server, bucket)
    assert uploads(server, bucket) == []


def test_a_listing_survives(make: Make, proxy: FaultyProxy) -> None:
    blobs = make()
    ref = blobs.put_bytes(b"listed")
    proxy.fail("status", "GET", "list-type=2", times=2, status=500, code="InternalError")
    assert [digest for digest, _, _ in blobs.digests()] == [ref.digest]


@pytest.mark.parametrize("kind", ["cut response", "stall response"])
def test_reading_goes_on_where_it_broke_off(make: Make, proxy: FaultyProxy, kind: Any) -> None:
    data = content(6 * MIB)
    ref = make().put_bytes(data)
    proxy.fail(kind, "GET", "/blobs/", times=2, after=2 * MIB + 12345)
    assert b"".join(make(read_timeout_s=1.0).stream(ref.digest)) == data
    ranges = [r for method, path, r in proxy.requests if method == "GET" and ref.digest in path]
    step = 2 * MIB + (12345 if kind == "cut response" else 0)  # a silent one gives no partial chunk
    assert ranges == ["", f"bytes={step}-{6 * MIB - 1}", f"bytes={2 * step}-{6 * MIB - 1}"]
    proxy.fail(kind, "GET", "/blobs/", after=MIB)
    assert make(read_timeout_s=1.0).path(ref.digest).read_bytes() == data


def test_the_end_of_patience_is_told_in_words_and_leaves_nothing(
    make: Make, proxy: FaultyProxy, server: S3Server, bucket: str, caplog: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    blobs = make(attempts=2)
    proxy.fail("status", "PUT", times=99)
    with pytest.raises(Unavailable, match="asked too often") as told:
        blobs.put_bytes(content(PART + 1))
    assert told.value.extra["retry_after_s"] and bucket in told.value.message
    assert uploads(server, bucket) == [] and keys(server, bucket) == []
    text = f"{told.value.message} {told.value.hint} {caplog.text}"
    assert SECRET_KEY not in text and ACCESS_KEY not in text and "Signature" not in text


def test_reading_gives_up_with_words(make: Make, proxy: FaultyProxy) -> None:
    ref = make().put_bytes(content(3 * MIB))
    blobs = make(attempts=2)
    proxy.fail("cut response", "GET", "/blobs/", times=99, after=1000)
    with pytest.raises(Unavailable, match="connection broke off"):
        blobs.path(ref.digest)
    with pytest.raises(Unavailable, match="connection broke off"):
        list(blobs.stream(ref.digest))
    assert list((blobs.cache._folder.root / "tmp").iterdir()) == []


def test_a_put_that_failed_is_done_by_the_next(make: Make, proxy: FaultyProxy) -> None:
    blobs = make(attempts=1)
    proxy.fail("status", "PUT", status=500, code="InternalError")
    with pytest.raises(Unavailable, match="failed inside"):
        blobs.put_bytes(b"again")
    ref = blobs.put_bytes(b"again")
    assert make().path(ref.digest).read_bytes() == b"again"


def test_a_storage_that_is_gone_is_told(make: Make) -> None:
    blobs = make(endpoint="http://127.0.0.1:9", attempts=1)
    with pytest.raises(Unavailable, match=r"at 127\.0\.0\.1\) failed.*cannot be reached"):
        blobs.put_bytes(b"x")
    with pytest.raises(Unavailable, match="cannot be reached"):
        blobs.check("me")


# --- damage


def damage(server: S3Server, bucket: str, digest: str, data: bytes) -> None:
    server.client().put_object(Bucket=bucket, Key=key_of(digest), Body=data)


def test_a_damaged_object_is_noticed_and_replaced_by_the_next_put(
    make: Make, server: S3Server, bucket: str, caplog: Any
) -> None:
    data = content(3 * MIB)
    ref = make().put_bytes(data)
    damage(server, bucket, ref.digest, content(3 * MIB, seed=1))
    blobs = make()
    with pytest.raises(KeyError):
        blobs.path(ref.digest)
    assert "damaged" in caplog.text
    came = 0
    with pytest.raises(Unavailable, match="damaged"):
        for chunk in blobs.stream(ref.digest):
            came += len(chunk)
    assert came < 3 * MIB  # never the whole
    blobs.put_bytes(data)
    assert make().path(ref.digest).read_bytes() == data


def test_an_object_of_another_size_is_replaced(make: Make, server: S3Server, bucket: str) -> None:
    ref = make().put_bytes(b"all of it")
    damage(server, bucket, ref.digest, b"half")
    make().put_bytes(b"all of it")
    assert make().path(ref.digest).read_bytes() == b"all of it"


def test_damage_on_the_way_is_asked_for_again(make: Make, proxy: FaultyProxy) -> None:
    ref = make().put_bytes(content(MIB))
    proxy.fail("damage response", "GET", "/blobs/", after=1000)
    assert make().path(ref.digest).read_bytes() == content(MIB)


# --- presigned URLs


def test_a_presigned_url_works_whole_and_in_ranges(make: Make) -> None:
    data = content(2 * MIB)
    blobs = make(presign_s=600)
    ref = blobs.put_bytes(data, "model/gltf-binary")
    url = blobs.url(ref.digest, 'attachment; filename="hat-1.glb"', "model/gltf-binary")
    assert url and SECRET_KEY not in url
    whole = httpx.get(url, trust_env=False)
    assert (whole.status_code, whole.content) == (200, data)
    assert whole.headers["content-disposition"] == 'attachment; filename="hat-1.glb"'
    assert whole.headers["content-type"] == "model/gltf-binary"
    part = httpx.get(url, headers={"range": "bytes=5-9"}, trust_env=False)
    assert (part.status_code, part.content) == (206, data[5:10])
    assert httpx.get(url.replace("hat-1", "hat-2"), trust_env=False).status_code == 403


def test_a_presigned_url_expires(make: Make) -> None:
    blobs = make(presign_s=1)
    url = blobs.url(blobs.put_bytes(b"soon gone").digest, "inline", "text/plain")
    assert url and httpx.get(url, trust_env=False).status_code == 200
    deadline = time.monotonic() + 10
    while httpx.get(url, trust_env=False).status_code != 403:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_urls_are_signed_for_the_public_endpoint(make: Make, server: S3Server) -> None:
    blobs = make(presign_s=60, public_endpoint=server.url)
    ref = blobs.put_bytes(b"seen from outside")
    url = blobs.url(ref.digest, "inline", "text/plain")
    assert url and url.startswith(server.url + "/")
    assert httpx.get(url, trust_env=False).content == b"seen from outside"


def test_presigning_can_be_off(blobs: S3Blobs) -> None:
    assert blobs.url(blobs.put_bytes(b"x").digest, "inline", "text/plain") is None


# --- the cache


def test_the_cache_keeps_to_its_bound_and_to_what_was_used_last(make: Make) -> None:
    blobs = make(cache="cache", cache_bytes=3 * MIB)
    refs = [blobs.put_bytes(content(MIB, seed)) for seed in range(3)]
    list(blobs.stream(refs[0].digest))  # a use
    refs.append(blobs.put_bytes(content(MIB, 3)))
    folder = blobs.cache._folder
    held = {digest for digest, _, _ in folder.digests()}
    assert held == {refs[i].digest for i in (0, 2, 3)} and blobs.cache.bytes == 3 * MIB
    again = make(cache="cache", cache_bytes=2 * MIB)  # another start, with less room
    assert {d for d, _, _ in folder.digests()} == {refs[i].digest for i in (0, 3)}
    assert again.path(refs[1].digest).read_bytes() == content(MIB, 1)
    assert again.cache.bytes == 2 * MIB


def test_a_path_that_was_given_out_stays(make: Make) -> None:
    blobs = make(cache_bytes=0)
    refs = [blobs.put_bytes(content(MIB, seed)) for seed in range(3)]
    assert blobs.cache.bytes == 0
    paths = [blobs.path(ref.digest) for ref in refs]
    assert [path.read_bytes() for path in paths] == [content(MIB, seed) for seed in range(3)]


def test_a_stream_goes_on_when_its_copy_goes(make: Make) -> None:
    blobs = make()
    ref = blobs.put_bytes(content(3 * MIB))
    stream = blobs.stream(ref.digest)
    first = next(stream)
    lose_copy(blobs, ref.digest)
    assert first + b"".join(stream) == content(3 * MIB)


def test_a_file_stays_while_it_is_uploaded(make: Make, proxy: FaultyProxy) -> None:
    blobs = make(cache_bytes=0, read_timeout_s=20)
    fault = proxy.fail("no response", "PUT", "/blobs/")
    with ThreadPoolExecutor(1) as thread:
        upload = thread.submit(blobs.put_bytes, content(MIB))
        deadline = time.monotonic() + 10
        while fault.times:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        blobs.cache.make_room(1 << 40)
        assert blobs.cache.bytes == MIB
        proxy.stopping.set()  # ends the stall with a reset; the next attempt passes
        upload.result()
    assert blobs.cache.bytes == 0


# --- sweeping


def sweep(blobs: S3Blobs, unused_since: float | None = None) -> int:
    """As the sweeper does where the database names nothing."""
    before = time.time() + 60 if unused_since is None else unused_since
    old = [digest for digest, _, put_at in blobs.digests() if put_at <= before]
    return sum(blobs.delete(digest, before) for digest in old)


def age_mark(server: S3Server, bucket: str, digest: str, seconds: float) -> None:
    server.age(bucket, f"pods/marks/{digest}", seconds)


def test_a_sweep_marks_first_and_removes_after_the_grace(
    make: Make, server: S3Server, bucket: str
) -> None:
    blobs = make(presign_s=600)
    ref = blobs.put_bytes(b"unused")
    url = blobs.url(ref.digest, "inline", "text/plain")
    assert url
    for _ in range(2):
        assert sweep(blobs) == 0
        assert httpx.get(url, trust_env=False).status_code == 200
    age_mark(server, bucket, ref.digest, blobs.grace_s - 60)
    assert sweep(blobs) == 0
    age_mark(server, bucket, ref.digest, 120)
    assert sweep(blobs) == 1
    assert key_of(ref.digest) not in keys(server, bucket)
    assert sweep(blobs) == 0
    with pytest.raises(KeyError):
        blobs.path(ref.digest)
    age_mark(server, bucket, ref.digest, DAY)
    assert sweep(blobs) == 0 and keys(server, bucket) == []  # the mark has gone too


def test_the_grace_is_longer_than_a_url_lives(make: Make) -> None:
    assert make(presign_s=7 * 86400).grace_s > 7 * 86400 + NEARLY_S
    assert make().grace_s == GRACE_S


def test_what_was_put_lately_is_not_even_marked(make: Make, server: S3Server, bucket: str) -> None:
    blobs = make()
    ref = blobs.put_bytes(b"new")
    assert not blobs.delete(ref.digest, unused_since=time.time() - 60)
    assert keys(server, bucket) == [key_of(ref.digest)]


def test_a_put_takes_the_mark_away(make: Make, server: S3Server, bucket: str) -> None:
    sweeper, other = make(), make()
    ref = sweeper.put_bytes(b"wanted again")
    assert sweep(sweeper) == 0
    age_mark(server, bucket, ref.digest, GRACE_S / 2)
    other.put_bytes(b"wanted again")
    assert keys(server, bucket) == [key_of(ref.digest)]
    assert sweep(sweeper) == 0  # marked anew


def test_a_mark_that_nobody_heeded_for_long_counts_no_more(
    make: Make, server: S3Server, bucket: str
) -> None:
    """Content that was named by a job in between has its full grace once more."""
    blobs = make()
    ref = blobs.put_bytes(b"kept by a job meanwhile")
    assert sweep(blobs) == 0
    age_mark(server, bucket, ref.digest, GRACE_S + STALE_S - NEARLY_S / 2)
    assert sweep(blobs) == 0 and sweep(blobs) == 0
    age_mark(server, bucket, ref.digest, GRACE_S)
    assert sweep(blobs) == 1


def test_puts_in_the_very_moment_of_the_removal_are_not_lost(
    make: Make, server: S3Server, bucket: str
) -> None:
    """A sweep has seen the old mark and is about to remove; two routers put the same meanwhile."""
    sweeper, first, second = make(), make("first", settle_s=4), make("second", settle_s=4)
    ref = sweeper.put_bytes(b"contested")
    assert sweep(sweeper) == 0
    age_mark(server, bucket, ref.digest, GRACE_S + 60)
    mark = f"marks/{ref.digest}"
    with ThreadPoolExecutor(2) as threads:
        putting = [threads.submit(first.put_bytes, b"contested")]
        deadline = time.monotonic() + 10
        while (found := sweeper.bucket.stat(mark)) and not found.size:  # `first` waits from now on
            assert time.monotonic() < deadline
            time.sleep(0.01)
        putting.append(threads.submit(second.put_bytes, b"contested"))
        sweeper.bucket.delete_at_once(f"blobs/{ref.digest[:2]}/{ref.digest}")  # it arrives
        for future in putting:
            future.result()
            assert key_of(ref.digest) in keys(server, bucket)
    assert sweep(sweeper) == 0 and sweep(sweeper) == 0
    age_mark(server, bucket, ref.digest, DOUBT_S)
    assert sweep(sweeper) == 0  # the mark of doubt has gone; this one is new
    age_mark(server, bucket, ref.digest, GRACE_S)
    assert sweep(sweeper) == 1


def test_some_time_after_a_removal_a_put_need_not_wait(
    make: Make, server: S3Server, bucket: str
) -> None:
    blobs = make()
    ref = blobs.put_bytes(b"comes back")
    sweep(blobs)
    age_mark(server, bucket, ref.digest, GRACE_S)
    assert sweep(blobs) == 1
    age_mark(server, bucket, ref.digest, 60)
    began = time.monotonic()
    make(settle_s=30).put_bytes(b"comes back")
    assert time.monotonic() - began < 20
    assert key_of(ref.digest) in keys(server, bucket)


def test_many_objects_are_listed_page_by_page(
    make: Make, proxy: FaultyProxy, server: S3Server, bucket: str
) -> None:
    names = [digest_of(b"%d" % n) for n in range(2100)]
    others = ["pods/blobs/readme.txt", f"elsewhere/{names[0]}"]
    server.fill(bucket, [*map(key_of, names), *others])
    assert [digest for digest, _, _ in make().digests()] == sorted(names)
    assert proxy.count("GET", "list-type=2") == 4  # one for the marks


def test_leftovers_of_dead_servers_are_cleared(
    make: Make, proxy: FaultyProxy, server: S3Server, bucket: str
) -> None:
    """Those in the bucket are, says moto, of 2010."""
    blobs = make()
    server.client().create_multipart_upload(Bucket=bucket, Key="pods/blobs/aa/half")
    server.client().create_multipart_upload(Bucket=bucket, Key="elsewhere/half")
    tmp = blobs.cache._folder.root / "tmp"
    (tmp / "half").write_bytes(b"half")
    assert blobs.clear_tmp() == 2
    assert [u["Key"] for u in uploads(server, bucket)] == ["elsewhere/half"]
    assert list(tmp.iterdir()) == []
    proxy.fail("status", "GET", "uploads", status=403, code="AccessDenied")
    assert blobs.clear_tmp() == 0


def test_an_upload_that_a_dead_server_left_goes_while_others_run(
    blobs: S3Blobs, proxy: FaultyProxy, server: S3Server, bucket: str
) -> None:
    """Who died was started again before it was old."""
    server.client().create_multipart_upload(Bucket=bucket, Key="pods/blobs/aa/half")
    assert list(blobs.digests()) == []
    assert uploads(server, bucket) == []
    proxy.fail("status", "GET", "uploads", status=403, code="AccessDenied")
    assert list(blobs.digests()) == []


# --- the check at the start


def test_a_good_storage_passes_and_belongs_to_one_database(
    make: Make, server: S3Server, bucket: str
) -> None:
    make().check("store-1")
    make().check("store-1")
    assert keys(server, bucket) == [f"pods/{OWNER}"]
    with pytest.raises(Unavailable, match="database of another polypod"):
        make().check("store-2")
    make(prefix="other/").check("store-2")


def test_what_is_wrong_is_said_at_the_start(
    make: Make, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Unavailable, match="no such bucket") as told:
        make(name="not-there").check("me")
    assert "Create it" in told.value.hint
    proxy.fail("status", "PUT", status=403, code="RequestTimeTooSkewed")
    with pytest.raises(Unavailable, match="the clocks differ by 0 minutes"):
        make().check("me")
    proxy.fail("status", "GET", "list-type=2", status=403, code="AccessDenied")
    with pytest.raises(Unavailable, match=r"may not do this \(s3:ListBucket\)"):
        make().check("me")
    proxy.fail("status", "PUT", status=301, code="PermanentRedirect", times=2)
    with pytest.raises(Unavailable, match="another region"):
        make().check("me")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(Unavailable, match="secret key does not belong"):
        make(attempts=2).check("me")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "unknown")
    with pytest.raises(Unavailable, match="does not know the access key"):
        make(attempts=3).check("me")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(Unavailable, match="no credentials") as told:
        make(attempts=1).check("me")
    assert "AWS_ACCESS_KEY_ID" in told.value.hint


# --- memory

RELAY_IN_CHILD = """
import json, sys
from pathlib import Path
import psutil
from polypod.assets.bucket import Bucket, BucketSpec
from polypod.assets.s3 import S3Blobs
_, endpoint, bucket, root, size = sys.argv
blobs = S3Blobs(Bucket(BucketSpec(bucket, "", endpoint, path_style=True)), Path(root), 1 << 20)

def relay(seed, size):
    with blobs.writer() as writer:
        for n in range(size >> 20):
            writer.write(bytes([seed, n & 255]) * (1 << 19))
        ref = writer.commit()
    assert sum(map(len, blobs.stream(ref.digest))) == size
    assert blobs.path(ref.digest).stat().st_size == size

relay(0, 9 << 20)
before = psutil.Process().memory_info().rss
relay(1, int(sys.argv[4]))
relay(2, int(sys.argv[4]))
status = Path("/proc/self/status").read_text()  # getrusage tells the parent's peak, if higher
peak = int(status.partition("VmHWM:")[2].split()[0]) << 10
print(json.dumps({"before": before, "peak": peak}))
"""


def test_memory_stays_flat_while_large_files_pass(
    server: S3Server, bucket: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", RELAY_IN_CHILD, server.url, bucket, str(tmp_path / "c")]
    done = subprocess.run(
        [*command, str(200 * MIB)], cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=300
    )
    seen = json.loads(done.stdout)
    assert seen["peak"] - seen["before"] < 50 * MIB, seen
