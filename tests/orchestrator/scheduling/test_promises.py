"""What the scheduler promises, whatever comes: bounded delay, memory, fairness, an end for everything."""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator.scheduling.limits import Limits
from orchestrator.serving.answer import Refused
from tests.examples import examples
from tests.orchestrator.scheduling.engine import COSTS, Engine, kv_budget, scheduler_of

CLIENTS = ("ada", "ben", "cleo")


class AnyTraffic(RuleBasedStateMachine):
    """Requests, cancellations, steps, failures and lost boxes in any order."""

    @initialize(
        positions=st.integers(400, 1500),
        most_delay_s=st.floats(0.0, 0.5),
        sequences=st.integers(1, 8),
        most_drafts=st.integers(0, 3),
        seed=st.integers(0, 1000),
        stop_chance=st.sampled_from([0.0, 0.05]),
    )
    def begin(
        self,
        positions: int,
        most_delay_s: float,
        sequences: int,
        most_drafts: int,
        seed: int,
        stop_chance: float,
    ) -> None:
        self.limits = Limits(
            context=1200,
            sequences=sequences,
            pass_rows=64,
            most_delay_s=most_delay_s,
            most_waiting=12,
            turn_tokens=40,
            spare_tokens=30,
            patience_s=5.0,
        )
        kv = kv_budget(positions)
        self.scheduler = scheduler_of(self.limits, kv, most_drafts)
        self.engine = Engine(self.scheduler, self.limits, kv, Random(seed), stop_chance)
        self.most_drafts = most_drafts
        self.number = 0
        self.lacking = False
        self.refusals: list[Refused] = []

    @rule(
        client=st.sampled_from(CLIENTS),
        prompt=st.integers(1, 700),
        max_tokens=st.none() | st.integers(1, 300),
    )
    def submit(self, client: str, prompt: int, max_tokens: int | None) -> None:
        self.number += 1
        try:
            self.engine.submit(self.number, client, prompt, max_tokens)
        except Refused as refused:
            self.refusals.append(refused)

    @rule(steps=st.integers(1, 30))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            before = len(self.engine.waits_s)
            work = bool(self.engine.sequences) and not self.lacking
            plan = self.engine.step()
            assert bool(plan.rows) == work
            for wait_s in self.engine.waits_s[before:]:
                decode_rows = plan.rows - plan.prefill_rows
                one_row_s = COSTS.trunk_s(decode_rows + 1) - COSTS.trunk_s(decode_rows)
                assert wait_s <= max(self.limits.most_delay_s, one_row_s) * 1.1 + 1e-9

    @rule(data=st.data())
    def cancel_in_a_step(self, data: st.DataObject) -> None:
        if not self.lacking and self.engine.sequences:
            numbers = st.lists(st.sampled_from(sorted(self.engine.sequences)), unique=True, max_size=3)
            chosen = data.draw(numbers)
            self.engine.step(lambda: [self.engine.cancel(number) for number in chosen] and None)

    @rule(number=st.integers(1, 40))
    def cancel(self, number: int) -> None:
        self.engine.cancel(number)

    @precondition(lambda self: not self.lacking)
    @rule()
    def fail_a_step(self) -> None:
        plan = self.scheduler.plan_step(self.engine.now_s)
        for number in plan.pause:
            self.engine.sequences[number].computed = self.engine.sequences[number].touched = 0
        if plan.rows:
            self.scheduler.failed_step(plan)

    @precondition(lambda self: not self.lacking)
    @rule()
    def lose_boxes(self) -> None:
        self.scheduler.cluster_lacks("den is gone", self.engine.now_s)
        self.lacking = True

    @precondition(lambda self: self.lacking)
    @rule()
    def find_boxes(self) -> None:
        self.scheduler.cluster_is_back()
        self.lacking = False

    @rule(seconds=st.floats(0, 4))
    def wait(self, seconds: float) -> None:
        self.engine.now_s += seconds

    @invariant()
    def nobody_is_forgotten(self) -> None:
        assert self.scheduler.waiting + self.scheduler.running == len(self.engine.sequences)
        assert self.scheduler.running <= self.limits.sequences

    @invariant()
    def who_is_refused_is_told_when_to_come_again_unless_that_is_never(self) -> None:
        for refused in self.refusals:
            assert refused.kind in ("too_long", "busy", "unavailable")
            assert (refused.kind == "too_long") == (refused.retry_after_s is None)

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        if self.lacking:
            # Nobody waits for boxes longer than is said.
            deadline_s = self.scheduler.deadline_s
            assert (deadline_s is None) == (not self.engine.sequences)
            if deadline_s is not None:
                self.engine.now_s = max(self.engine.now_s, deadline_s)
                self.engine.step()
            assert not self.engine.sequences
        self.engine.run()
        assert self.scheduler.waiting == self.scheduler.running == 0


TestAnyTraffic = AnyTraffic.TestCase
TestAnyTraffic.settings = settings(examples(15), stateful_step_count=25)
