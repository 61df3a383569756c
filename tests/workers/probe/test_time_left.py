"""Measurements that share a span of time."""

from __future__ import annotations

import pytest

from workers.probe.time_left import TimeLeft


def test_what_a_measurement_takes_too_long_the_later_ones_share() -> None:
    now = 0.0
    left = TimeLeft(10.0, {"reads": 1.0, "forms": 3.0, "disk": 1.0}, lambda: now)
    assert left.next("reads") == pytest.approx(2.0)
    now = 6.0
    assert left.next("forms") == pytest.approx(3.0)
    now = 9.0
    assert left.next("disk") == pytest.approx(1.0)
    with pytest.raises(KeyError):
        left.next("disk")


def test_when_the_time_is_over_there_is_none_left() -> None:
    now = 0.0
    left = TimeLeft(1.0, {"reads": 1.0, "disk": 1.0}, lambda: now)
    now = 5.0
    assert left.next("disk") == 0.0
