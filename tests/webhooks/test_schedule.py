from __future__ import annotations

import pytest

from polypod.jobs.store.deliveries import Delivery
from polypod.webhooks.schedule import AT_ONCE, PER_HOST, choose, full_hosts, retry_delay_s


@pytest.mark.parametrize(
    ("attempts", "since_s", "jitter", "wait_s"),
    [
        (1, 0, 0.5, 5),
        (2, 5, 0.5, 15),
        (3, 20, 0.5, 45),
        (4, 65, 0.5, 135),
        (5, 200, 0.5, 405),
        (6, 600, 0.5, 1215),
        (7, 1800, 0.5, 3645),
        (8, 5500, 0.5, 7200),
        (10_000, 5500, 0.5, 7200),
        (1, 0, 0.0, 4),
        (1, 0, 1.0, 6),
        (8, 86400 - 7200, 0.5, 7200),
        (8, 86400 - 7199, 0.5, None),
        (1, 86400, 0.5, None),
    ],
)
def test_waits_grow_to_two_hours_and_end_with_the_day(attempts, since_s, jitter, wait_s):
    assert retry_delay_s(attempts, since_s, jitter) == wait_s


def test_a_receiver_that_is_away_for_most_of_a_day_is_still_reached():
    for jitter in (0.0, 0.5, 1.0):
        at, attempts = 0.0, 1
        while (wait := retry_delay_s(attempts, at, jitter)) is not None:
            at, attempts = at + wait, attempts + 1
        assert at > 86400 - 8640
        assert 15 <= attempts <= 25


def delivery(number: int, host: str) -> Delivery:
    url = f"http://{host}/"
    return Delivery(str(number), "", url, host, "job.completed", 0, 0, 0, None, None, "")


def test_a_host_gets_its_share_and_the_order_stays():
    due = [delivery(i, "a") for i in range(10)] + [delivery(10, "b")]
    chosen = choose(due, [delivery(99, "a")])
    assert [d.id for d in chosen] == ["0", "1", "2", "10"]
    assert full_hosts([delivery(99, "a"), *chosen]) == ["a"]


def test_what_is_under_way_is_not_chosen_again():
    due = [delivery(1, "a"), delivery(2, "a")]
    assert [d.id for d in choose(due, due[:1])] == ["2"]


def test_no_more_than_so_many_at_once():
    due = [delivery(i, f"host{i}") for i in range(AT_ONCE * 2)]
    chosen = choose(due, [delivery(-1, "other")])
    assert len(chosen) == AT_ONCE - 1
    assert AT_ONCE > 4 * PER_HOST, "several slow hosts leave room"
