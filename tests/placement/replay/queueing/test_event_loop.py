"""The virtual clock and its queues, against the theory of queues."""

from __future__ import annotations

import numpy as np
import pytest

from placement.replay.queueing.event_loop import EventLoop, Station


def test_things_happen_in_time_and_ties_in_the_order_asked_for() -> None:
    loop, seen = EventLoop(), list[tuple[float, str]]()

    def note(what: str) -> None:
        seen.append((loop.now_s, what))
        if what == "first":
            loop.at(2.0, note, "asked for later")

    for time_s, what in ((2.0, "b"), (1.0, "first"), (2.0, "a")):
        loop.at(time_s, note, what)
    loop.run()
    assert seen == [(1.0, "first"), (2.0, "b"), (2.0, "a"), (2.0, "asked for later")]
    assert loop.num_events == 4


def test_nothing_happens_after_a_stop() -> None:
    loop = EventLoop()
    loop.at(1.0, lambda _: loop.stop(), None)
    loop.at(2.0, lambda _: pytest.fail("happened"), None)
    loop.run()
    assert loop.now_s == 1.0


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_waiting_is_that_of_an_m_d_1_queue(load: float) -> None:
    """Mean wait of Poisson arrivals at one server of constant service S: load S / (2 (1 - load)).

    (Pollaczek-Khinchine; Kleinrock, Queueing Systems I, 1975, 5.6.)
    """
    service_s, number = 0.004, 200_000
    arrivals = np.random.default_rng(1).exponential(service_s / load, number).cumsum()
    loop, station, waits = EventLoop(), Station(), list[float]()

    def arrive(_: object) -> None:
        waits.append(station.serve(loop.now_s, service_s) - service_s - loop.now_s)

    for time_s in arrivals.tolist():
        loop.at(time_s, arrive, None)
    loop.run()
    expected_s = load * service_s / (2 * (1 - load))
    # The standard error of this mean, correlated as waits are, is 2% at load 0.9.
    assert np.mean(waits) == pytest.approx(expected_s, rel=0.05)
    assert station.busy_until_s(loop.now_s) / loop.now_s == pytest.approx(load, rel=0.01)


def test_work_that_is_still_queued_does_not_count_as_busy() -> None:
    station = Station()
    station.serve(1.0, 2.0)
    station.serve(1.5, 2.0)
    assert station.busy_until_s(2.0) == pytest.approx(1.0)
    assert station.busy_until_s(9.0) == pytest.approx(4.0)
