"""How much longer an action takes after a pause, under a virtual clock."""

from __future__ import annotations

import pytest

from workers.probe.clocks import ASLEEP_S, woken_s


class Machine:
    """Its action takes `awake_s`, or `woken_s` where it follows a pause."""

    def __init__(self, awake_s: float, woken_s: float) -> None:
        self.now_s = 0.0
        self.slept_s = 0.0
        self._awake_s, self._woken_s = awake_s, woken_s
        self._is_asleep = False

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.slept_s += seconds
        self._is_asleep = True

    def act(self) -> None:
        self.now_s += self._woken_s if self._is_asleep else self._awake_s
        self._is_asleep = False


@pytest.mark.parametrize(("woken", "more"), [(0.005, 0.003), (0.002, 0.0), (0.001, 0.0)])
def test_what_an_action_takes_more_after_a_pause(woken: float, more: float) -> None:
    machine = Machine(0.002, woken)
    found = woken_s(machine.act, 0.1, lambda: machine.now_s, machine.sleep)
    assert found == pytest.approx(more)
    assert 0.1 <= machine.now_s < 0.1 + ASLEEP_S + 0.01


def test_without_time_it_makes_three_turns() -> None:
    machine = Machine(1.0, 1.0)
    woken_s(machine.act, 0.0, lambda: machine.now_s, machine.sleep)
    assert machine.slept_s == pytest.approx(3 * ASLEEP_S)
