"""What a client may ask, in its own time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.limits import Admission, Bucket, Limits, take

STEPS = st.lists(st.floats(0, 30), min_size=1, max_size=60)


@given(st.integers(1, 100), STEPS)
def test_no_span_of_time_has_more_requests_than_the_bucket_and_its_refill(
    per_minute: int, steps: list[float]
) -> None:
    bucket, now_s, taken = Bucket(float(per_minute), 0.0), 0.0, list[float]()
    for step in steps:
        now_s += step
        bucket, wait_s = take(bucket, per_minute, now_s)
        if wait_s == 0:
            taken.append(now_s)
    for number, first in enumerate(taken):
        for count, last in enumerate(taken[number:], start=1):
            assert count <= per_minute + (last - first) * per_minute / 60 + 1e-6


@given(st.integers(1, 100), STEPS)
def test_who_waits_as_long_as_told_is_let_in(per_minute: int, steps: list[float]) -> None:
    bucket, now_s = Bucket(float(per_minute), 0.0), 0.0
    for step in steps:
        now_s += step
        bucket, wait_s = take(bucket, per_minute, now_s)
        if wait_s > 0:
            now_s += wait_s + 1e-6
            bucket, again_s = take(bucket, per_minute, now_s)
            assert again_s == 0


def test_time_that_runs_backwards_gives_nothing() -> None:
    bucket, wait_s = take(Bucket(0.0, 100.0), 60, 50.0)
    assert wait_s > 0
    assert bucket.tokens == 0


def test_as_many_run_at_once_as_a_key_may_have() -> None:
    admission = Admission({"ann": Limits(running=2)})
    assert admission.enter("ann", 0.0) is None
    assert admission.enter("ann", 0.0) is None
    refusal = admission.enter("ann", 0.0)
    assert refusal is not None
    assert "2 requests running" in refusal[0]
    admission.leave("ann")
    assert admission.enter("ann", 0.0) is None


def test_clients_do_not_take_from_each_other() -> None:
    admission = Admission({"ann": Limits(running=1, per_minute=1), "bob": Limits(running=1, per_minute=1)})
    assert admission.enter("ann", 0.0) is None
    assert admission.enter("bob", 0.0) is None
    admission.leave("ann")
    assert admission.enter("ann", 0.0) is not None
    assert all(admission.enter("unknown", 0.0) is None for _ in range(100))


def test_what_is_refused_for_its_number_takes_nothing_from_the_minute() -> None:
    admission = Admission({"ann": Limits(running=1, per_minute=2)})
    assert admission.enter("ann", 0.0) is None
    assert admission.enter("ann", 0.0) is not None
    admission.leave("ann")
    assert admission.enter("ann", 0.0) is None
