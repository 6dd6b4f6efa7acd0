"""Puts weights where the declaration says, checked by size and digest. Standard library only.

It runs during image builds and `polypod setup`, one source at a time, and last of all writes
`weights.json`: every file with its size and SHA-256, which the doctor checks.

    python3 bake.py hub|url|licensed SOURCE_JSON --to WEIGHTS [--from FOLDER] [--revision COMMIT]
    python3 bake.py list --to WEIGHTS
"""

# pyright: basic
from __future__ import annotations

import argparse
import errno
import fnmatch
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any, Callable

HUB = "https://huggingface.co"
LIST = "weights.json"
TRIES = 6
TIMEOUT_S = 60
CHUNK = 1 << 20
DIGESTS = ("sha256", "md5", "git")
SECRET = Path("/run/secrets/HF_TOKEN")


class Failed(Exception):
    """What happened, why, and what to do."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=("hub", "url", "licensed", "list"))
    parser.add_argument("source", nargs="?", default="{}", type=json.loads)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--from", dest="supplied", type=Path, default=Path("/licensed"))
    parser.add_argument("--revision", default="")
    given = parser.parse_args(arguments)
    given.to.mkdir(parents=True, exist_ok=True)
    try:
        if given.kind == "hub":
            bake_hub(given.source, given.revision, given.to)
        elif given.kind == "url":
            bake_url(given.source, given.to)
        elif given.kind == "licensed":
            bake_licensed(given.source, given.supplied, given.to)
        else:
            write_list(given.to)
    except Failed as failed:
        sys.exit("weights: " + str(failed))


def bake_hub(source: dict, revision: str, weights: Path) -> None:
    """The files of a Hugging Face repository that the patterns name, at a commit."""
    repo, revision = source["repo"], revision or source["revision"]
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise Failed(
            f"no revision of {repo} is declared. Look at its history on the hub, and give the "
            f"commit: --revision {repo}=COMMIT."
        )
    folder, ref = weights / source["to"], None
    if source["cache"]:
        cached = folder / ("models--" + repo.replace("/", "--"))
        folder, ref = cached / "snapshots" / revision, cached / "refs" / "main"
    files = [f for f in hub_files(repo, revision, source["gated"]) if wanted(f["path"], source)]
    if not files:
        raise Failed(
            f"{repo} at {revision} has no file that matches {', '.join(source['patterns'])}."
        )
    for file in files:
        path = file["path"]
        large = file.get("lfs") or {}
        expected = {
            "size": large.get("size", file["size"]),
            "sha256": source["sha256"].get(path) or large.get("oid", ""),
            "git": "" if large else file["oid"],
        }
        url = f"{hub()}/{repo}/resolve/{revision}/{urllib.parse.quote(path)}"
        fetch(url, below(folder, path), expected, gated=source["gated"])
    if ref:
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(revision)


def hub_files(repo: str, revision: str, gated: bool) -> list[dict]:
    """What the hub lists, page by page: path, size, and the SHA-256 of large files."""
    url, files = f"{hub()}/api/models/{repo}/tree/{revision}?recursive=true", []

    def read_page() -> str:
        with opened(url, gated=gated) as answer:
            files.extend(json.load(answer))
            following = re.search(r'<([^>]+)>;\s*rel="next"', answer.headers.get("Link", ""))
        return following.group(1) if following else ""

    while url:
        url = patiently(url, gated, read_page)
    return [file for file in files if file["type"] == "file"]


def wanted(path: str, source: dict) -> bool:
    def match(patterns: list[str]) -> bool:
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)

    return match(source["patterns"]) and not match(source["exclude"])


def bake_url(source: dict, weights: Path) -> None:
    expected = {name: source[name] for name in ("size", "sha256", "md5")}
    fetch(source["url"], below(weights, source["to"]), expected)


def bake_licensed(source: dict, supplied: Path, weights: Path) -> None:
    """A file that the builder has got under its licence."""
    name = source["name"]
    given, target = below(supplied, name), below(weights, source["to"] or name)
    if not given.is_file():
        raise Failed(
            f"{name} is missing: its licence does not let anyone pass it on. Get it from "
            f"{source['where']}, put it into a folder, and name that folder: --licensed FOLDER."
        )
    check(given, {"sha256": source["sha256"]}, given)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(str(given), str(target))


def write_list(weights: Path) -> None:
    """Every file below `weights` with size and digest, as the doctor will look for them."""
    files = sorted(p for p in weights.rglob("*") if p.is_file() and p.name != LIST)
    listed = {
        p.relative_to(weights).as_posix(): {"size": p.stat().st_size, "sha256": digest(p)}
        for p in files
        if not p.name.endswith(".part")
    }
    (weights / LIST).write_text(json.dumps(listed, indent=1, sort_keys=True) + "\n")
    total = sum(file["size"] for file in listed.values())
    print(f"weights: {len(listed)} files, {total / 1e9:.2f} GB")


def fetch(url: str, target: Path, expected: dict, gated: bool = False) -> None:
    """Download to `target`; a part that an earlier run left is gone on with if a digest will tell
    whether it was of this file."""
    if target.is_file() and fits(target, expected):
        print(f"weights: {target} is there")
        return
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    if part.exists() and not any(expected.get(kind) for kind in DIGESTS):
        part.unlink()
    begun_before = part.exists()
    patiently(url, gated, lambda: transfer(url, part, gated))
    if begun_before and not fits(part, expected):
        part.unlink()
        patiently(url, gated, lambda: transfer(url, part, gated))
    check(part, expected, url)
    part.replace(target)
    print(f"weights: {target}, {target.stat().st_size} bytes", flush=True)


def patiently(url: str, gated: bool, work: Callable[[], Any]) -> Any:
    """What `work` returns, tried again while there is hope."""
    for attempt in range(TRIES):
        try:
            return work()
        except (OSError, EOFError, http.client.HTTPException) as error:
            for_good = getattr(error, "code", 0) in (401, 403, 404) or is_full(error)
            if for_good or attempt == TRIES - 1:
                raise Failed(why(url, error, gated)) from None
            time.sleep(min(2**attempt, 30))


def transfer(url: str, part: Path, gated: bool) -> None:
    """Add to `part` what is missing of it."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    try:
        answer = opened(url, headers, gated)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink()  # it is complete, or of another file: `check` decides over a new one
        have, answer = 0, opened(url, {}, gated)
    with answer:
        goes_on = answer.status == 206
        length = answer.headers.get("Content-Length")
        with part.open("ab" if goes_on else "wb") as out:
            shutil.copyfileobj(answer, out, CHUNK)
    expected = int(length) + (have if goes_on else 0) if length else None
    if expected is not None and part.stat().st_size != expected:
        raise EOFError(f"the connection broke after {part.stat().st_size} of {expected} bytes")


def opened(url: str, headers: dict | None = None, gated: bool = False) -> Any:
    if not url.startswith(("https://", "http://")):
        raise Failed(f"{url} is no http(s) address.")
    request = urllib.request.Request(  # noqa: S310  checked above
        url, headers={"User-Agent": "polypod", **(headers or {})}
    )
    if gated and token():
        # not sent on when the hub redirects to where the bytes are
        request.add_unredirected_header("Authorization", "Bearer " + token())
    return urllib.request.urlopen(request, timeout=TIMEOUT_S)  # noqa: S310


def token() -> str:
    secret = SECRET.read_text() if SECRET.is_file() else os.environ.get("HF_TOKEN", "")
    return secret.strip()


def why(url: str, error: Exception, gated: bool) -> str:
    code = getattr(error, "code", 0)
    if gated and code in (401, 403):
        hint = (
            "It is gated. Accept its licence on the hub with your account, then give the build a "
            "token of that account: HF_TOKEN in the environment of `polypod build`."
            if not token()
            else "The token's account has not been granted access. Ask for it on the hub's page."
        )
    elif is_full(error):
        hint = "Make room there, then build again: what is there already is kept."
    elif code == 404:
        hint = "It has moved, or the revision is wrong."
    else:
        hint = "Check the network, then build again: what is there already is kept."
    return f"{url} cannot be fetched ({error}). {hint}"


def is_full(error: Exception) -> bool:
    return getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT)


def check(path: Path, expected: dict, source: object) -> None:
    if not fits(path, expected):
        found = {"size": path.stat().st_size, "sha256": digest(path)}
        declared = {name: value for name, value in expected.items() if value}
        if path.suffix == ".part":
            path.unlink()
        raise Failed(
            f"{source} is not what was declared: expected {declared}, found {found}. It was "
            "changed, or the download was tampered with; do not use it."
        )


def fits(path: Path, expected: dict[str, Any]) -> bool:
    if expected.get("size") and path.stat().st_size != expected["size"]:
        return False
    return all(
        digest(path, kind).startswith(expected[kind]) for kind in DIGESTS if expected.get(kind)
    )


def digest(path: Path, kind: str = "sha256") -> str:
    """Hex digest; `git`: the name that git gives the file."""
    made = hashlib.new("sha1" if kind == "git" else kind)
    if kind == "git":
        made.update(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(CHUNK), b""):
            made.update(chunk)
    return made.hexdigest()


def below(folder: Path, name: str) -> Path:
    """`name` in `folder`, and nowhere else."""
    path = folder / name
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise Failed(f"{name!r} does not stay in {folder}.")
    return path


def hub() -> str:
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


if __name__ == "__main__":
    main()
