"""Responses that are kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.api.responses_store import ResponseStore


def response(number: int, size: int = 0) -> dict[str, object]:
    return {"id": f"resp_{number}", "text": "x" * size}


def test_a_client_sees_its_own_and_no_other() -> None:
    store = ResponseStore()
    store.put("ann", response(1), [{"id": "msg_1"}])
    assert store.get("bob", "resp_1") is None
    assert store.item("bob", "msg_1") is None
    assert not store.delete("bob", "resp_1")
    found = store.get("ann", "resp_1")
    assert found is not None
    assert found.response == response(1)
    assert store.item("ann", "msg_1") == {"id": "msg_1"}
    assert store.delete("ann", "resp_1")
    assert store.get("ann", "resp_1") is None
    assert store.item("ann", "msg_1") is None


def test_what_was_used_longest_ago_goes_first() -> None:
    store = ResponseStore(most_responses=2)
    store.put("ann", response(1), [])
    store.put("ann", response(2), [])
    assert store.get("ann", "resp_1")
    store.put("ann", response(3), [])
    assert store.get("ann", "resp_2") is None
    assert store.get("ann", "resp_1")


@given(st.lists(st.integers(0, 400), max_size=30))
def test_all_together_stay_within_bounds_and_the_newest_is_there_if_it_fits(sizes: list[int]) -> None:
    store = ResponseStore(most_responses=5, most_bytes=500)
    for number, size in enumerate(sizes):
        store.put("ann", response(number, size), [])
        kept = [store.get("ann", f"resp_{n}") for n in range(number + 1)]
        found = [one for one in kept if one is not None]
        assert len(found) <= 5
        assert sum(one.num_bytes for one in found) <= 500
        assert kept[number] is not None


def test_one_that_is_larger_than_the_store_is_not_kept() -> None:
    store = ResponseStore(most_bytes=100)
    store.put("ann", response(1, 200), [])
    assert store.get("ann", "resp_1") is None
    store.put("ann", response(2), [])
    assert store.get("ann", "resp_2")
