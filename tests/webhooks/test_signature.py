"""Signatures, checked beside `verify` with the standard library alone, as a receiver may do it."""

from __future__ import annotations

import hashlib
import hmac
import time

import pytest

from polypod.webhooks import sign, verify

BODY, SECRET, AT = b'{"event":"job.completed"}', "s3cret", 1_700_000_000


def test_it_is_an_hmac_of_time_and_body():
    digest = hmac.new(b"s3cret", b"1700000000." + BODY, hashlib.sha256).hexdigest()
    assert sign(BODY, SECRET, AT + 0.9) == f"t=1700000000,v1={digest}"


def test_what_was_signed_now_is_verified_now():
    assert verify(BODY, sign(BODY, SECRET, time.time()), SECRET)
    assert not verify(BODY, sign(BODY, SECRET, time.time() - 301), SECRET)
    assert verify(BODY, sign(BODY, SECRET, time.time() - 301), SECRET, tolerance_s=600)


@pytest.mark.parametrize(
    ("body", "header", "secret", "now", "good"),
    [
        (BODY, sign(BODY, SECRET, AT), SECRET, AT, True),
        (BODY, sign(BODY, SECRET, AT), SECRET, AT + 300, True),
        (BODY, sign(BODY, SECRET, AT), SECRET, AT + 301, False),
        (BODY, sign(BODY, SECRET, AT), SECRET, AT - 301, False),
        (BODY + b" ", sign(BODY, SECRET, AT), SECRET, AT, False),
        (BODY, sign(BODY, "other", AT), SECRET, AT, False),
        (BODY, sign(BODY, SECRET, AT).replace("t=17", "t=18"), SECRET, 1_800_000_000, False),
        (BODY, sign(BODY, SECRET, AT) + ",v1=00", SECRET, AT, True),
        (BODY, sign(BODY, "old", AT) + "," + sign(BODY, SECRET, AT)[13:], SECRET, AT, True),
        (BODY, sign(BODY, SECRET, AT).replace(",", " , "), SECRET, AT, True),
        (BODY, "", SECRET, AT, False),
        (BODY, "t=,v1=", SECRET, AT, False),
        (BODY, f"t={AT}", SECRET, AT, False),
        (BODY, f"t={AT},t={AT},v1=00", SECRET, AT, False),
        (BODY, f"t={'9' * 5000},v1=00", SECRET, AT, False),
        (BODY, "t=\u0661,v1=\u00fc", SECRET, AT, False),
        (BODY, f"t={AT},v1=\u00fc", SECRET, AT, False),
    ],
)
def test_only_the_right_one_is_taken(body, header, secret, now, good):
    assert verify(body, header, secret, now=now) is good
