from __future__ import annotations

import pytest

from polypod.access.rate import Bucket


def test_a_minutes_worth_at_once_then_steadily() -> None:
    bucket = Bucket(6, now=100.0)
    assert [bucket.take(100.0) for _ in range(6)] == [0.0] * 6
    assert bucket.take(100.0) == pytest.approx(10)
    assert bucket.take(104.0) == pytest.approx(6)
    assert bucket.take(110.0) == 0.0
    assert bucket.take(110.0) == pytest.approx(10)


def test_no_more_than_a_minutes_worth_is_saved_up() -> None:
    bucket = Bucket(2, now=0.0)
    assert [bucket.take(3600.0) for _ in range(3)][:2] == [0.0, 0.0]
    assert bucket.take(3600.0) == pytest.approx(30)
