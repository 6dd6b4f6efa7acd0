"""Big pictures through real child processes, some of which are killed at it."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import psutil
import pytest
from PIL import Image

from polypod.errors import Problem, TooLarge, Unavailable
from polypod.pictures.apart import AT_ONCE, check_apart
from polypod.pictures.picture import Big, Picture, check_picture

MIB = 1024 * 1024
LIMITS = (64_000_000, 32 * MIB)


def encoded(kind: str, side: int = 2000, turned: bool = False) -> bytes:
    file = io.BytesIO()
    image = Image.linear_gradient("L").resize((side, side)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    image.save(file, kind, exif=exif)
    return file.getvalue()


def apart(data: bytes, *limits: int) -> Picture:
    return asyncio.run(check_apart(data, *(limits or LIMITS)))


def children() -> list[psutil.Process]:
    """Those of this process that check pictures."""
    found: list[psutil.Process] = []
    for each in psutil.Process().children():
        if each.status() != psutil.STATUS_ZOMBIE and "polypod.pictures.checker" in each.cmdline():
            found.append(each)
    return found


def end_all() -> int:
    """How many there were."""
    found = children()
    for child in found:
        child.kill()
    psutil.wait_procs(found, 30)
    return len(found)


@pytest.mark.parametrize(
    ("kind", "turned"), [("PNG", False), ("WEBP", False), ("JPEG", False), ("JPEG", True)]
)
def test_a_child_finds_what_this_process_would(kind: str, turned: bool) -> None:
    data = encoded(kind, turned=turned)
    assert apart(data) == check_picture(data, *LIMITS)


@pytest.mark.parametrize("length", [0, 40, 10_000])
def test_what_it_refuses_it_refuses_in_the_same_words(length: int) -> None:
    data = encoded("JPEG")[:length]
    with pytest.raises(Problem) as here:
        check_picture(data, *LIMITS)
    with pytest.raises(Problem) as there:
        apart(data)
    assert type(there.value) is type(here.value)
    assert (there.value.message, there.value.hint) == (here.value.message, here.value.hint)


def test_only_what_is_small_is_decoded_here() -> None:
    assert check_picture(encoded("JPEG", 1200), *LIMITS, only_small=True)
    for kind, side in (("JPEG", 2000), ("PNG", 2000), ("WEBP", 1300)):
        with pytest.raises(Big):
            check_picture(encoded(kind, side), *LIMITS, only_small=True)


def test_a_child_stays_for_the_next_picture_and_gets_no_secrets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    end_all()
    monkeypatch.setenv("POLYPOD_API_KEYS", "secret")
    apart(encoded("JPEG"))
    first = {child.pid for child in children()}
    for _ in range(3 * AT_ONCE):
        apart(encoded("JPEG"))
    assert len(first) == 1 and first <= {child.pid for child in children()}
    assert len(children()) <= AT_ONCE
    assert b"secret" not in Path(f"/proc/{first.pop()}/environ").read_bytes()


def test_a_child_that_was_ended_meanwhile_is_replaced() -> None:
    data = encoded("WEBP")
    apart(data)
    end_all()
    assert apart(data).media_type == "image/webp"


@pytest.mark.parametrize("once", [True, False])
def test_a_child_that_is_killed_is_replaced_once_and_then_it_is_an_error(once: bool) -> None:
    data = encoded("PNG", 6000)  # takes a while
    end_all()

    async def check() -> Picture:
        checking = asyncio.ensure_future(check_apart(data, *LIMITS))
        killed = 0
        while not checking.done() and not (once and killed):
            killed += await asyncio.to_thread(end_all)
        return await asyncio.wait_for(checking, 60)

    if once:
        assert asyncio.run(check()).width == 6000
    else:
        with pytest.raises(Unavailable, match="was ended, twice"):
            asyncio.run(check())
        assert apart(encoded("JPEG")).width == 2000


def test_too_little_memory_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    end_all()
    monkeypatch.setattr("polypod.pictures.apart.BASE_MEMORY", 150 * MIB)
    monkeypatch.setattr("polypod.pictures.apart.BYTES_PER_PIXEL", 0)
    try:
        with pytest.raises(TooLarge, match="too much time or memory"):
            apart(encoded("JPEG", 7900), LIMITS[0], 8 * MIB)
    finally:
        end_all()
