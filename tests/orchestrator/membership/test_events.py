"""Events: one line each, counted by kind, quiet ones not said."""

from __future__ import annotations

from orchestrator.membership.events import (
    KINDS,
    Died,
    EventLog,
    Hedged,
    PassRepeated,
    Refused,
)


def test_events_are_counted_by_kind_and_said_unless_quiet() -> None:
    said: list[str] = []
    log = EventLog(said.append)
    log.tell(Died("den", "its connection was closed", "the text goes on"))
    log.tell(Hedged("den", 3, ("attic",)))
    log.tell(Hedged("den", 4, ("attic",)))
    log.tell(PassRepeated(7, 4, 0.25))
    assert said == [
        "worker den is lost: its connection was closed; the text goes on",
        "the step lost experts of layer 7 and runs again (waited 0.25 s)",
    ]
    counts = log.counts()
    assert tuple(counts) == KINDS
    assert {kind: count for kind, count in counts.items() if count} == {
        "died": 1,
        "hedged": 2,
        "pass_repeated": 1,
    }


def test_what_is_the_same_is_not_said_twice_in_a_row() -> None:
    said: list[str] = []
    log = EventLog(said.append)
    for worker in ("den", "den", "den", "attic", "den"):
        log.tell(Refused(worker, "no"))
    assert said == [f"worker {worker} refused: no" for worker in ("den", "attic", "den")]
    assert log.counts()["refused"] == 5
