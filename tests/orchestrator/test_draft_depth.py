"""How many drafts are made: near the best fixed number where they pay, near none where they do not."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.model.rows_behind import CONTEXT_ROWS
from orchestrator.scheduling.candidate import Candidate, Verified
from orchestrator.scheduling.native import DraftDepth, MeasuredCosts, rows_taken_in
from placement.pass_costs import PassCosts

Chances = tuple[float, float, float]
"""Of each draft to hold, given those before it."""
CHANCES: dict[str, Chances] = {"high": (0.9, 0.85, 0.8), "fair": (0.7, 0.6, 0.5), "low": (0.1, 0.1, 0.1)}
STEPS = 2000
EXPERTS, TOP_K = 288, 8


def curve(share: float) -> PassCosts:
    """`share` of a pass of one row reads experts: with n rows it reads all that n tokens touch on average."""

    def touched(rows: int) -> float:
        return EXPERTS / TOP_K * (1 - (1 - TOP_K / EXPERTS) ** rows)

    rows = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    return PassCosts(rows, tuple(1 - share + share * touched(n) for n in rows), ((0.03, 0.001),) * 3)


@dataclass(frozen=True, slots=True)
class Step:
    """What a step is expected to take and to give."""

    seconds: float
    tokens: float


def expected(truth: PassCosts, depths: Sequence[int], chances: Sequence[Chances]) -> Step:
    tokens = sum(
        1 + sum(math.prod(own[: place + 1]) for place in range(depth))
        for depth, own in zip(depths, chances, strict=True)
    )
    drafting = sum(depth > 0 for depth in depths)
    seconds = truth.trunk_s(len(depths) + sum(depths)) + truth.drafting_s(max(depths), 2 * drafting)
    return Step(seconds, tokens)


def run(
    truth: PassCosts, chances_at: Callable[[int], Sequence[Chances]], predicted: PassCosts, seed: int = 1
) -> list[Step]:
    """Steps under `DraftDepth`; luck and times are drawn, and what a step is expected to give is counted."""
    luck = random.Random(seed)
    costs = MeasuredCosts(predicted)
    depth = DraftDepth(3, costs)
    steps = []
    for number in range(STEPS):
        chances = chances_at(number)
        chosen = depth.choose([Candidate(n, 3) for n in range(len(chances))])
        depths = [chosen[n] for n in range(len(chances))]
        verified = []
        for n, wanted in enumerate(depths):
            holds = [luck.random() < chances[n][place] for place in range(wanted)]
            verified.append(Verified(n, wanted, [*holds, False].index(False)))
        drafting = 2 * sum(wanted > 0 for wanted in depths)
        rows = len(depths) + sum(depths)
        trunk_s = truth.trunk_s(rows) * math.exp(luck.gauss(0, 0.05))
        drafting_s = truth.drafting_s(max(depths), drafting)
        costs.learn_pass(rows, trunk_s)
        costs.learn_drafting(max(depths), drafting // 2, drafting_s)
        depth.learn(verified)
        steps.append(expected(truth, depths, chances))
    return steps


def speed(steps: Sequence[Step]) -> float:
    """Tokens a second."""
    return sum(step.tokens for step in steps) / sum(step.seconds for step in steps)


def fixed_speed(
    truth: PassCosts, chances_at: Callable[[int], Sequence[Chances]], depth: int, steps: range
) -> float:
    return speed([expected(truth, [depth] * len(chances_at(n)), chances_at(n)) for n in steps])


@pytest.mark.parametrize("sequences", [1, 4])
@pytest.mark.parametrize(("share", "name"), list(product([0.1, 0.4, 0.9], CHANCES)))
def test_it_is_near_the_best_fixed_depth_and_near_none(share: float, name: str, sequences: int) -> None:
    """Where experts rule a pass, a row more costs nearly a pass, and drafts lose."""
    truth = curve(share)

    def chances_at(_step: int) -> Sequence[Chances]:
        return [CHANCES[name]] * sequences

    found = speed(run(truth, chances_at, predicted=curve(0.3)))
    fixed = [fixed_speed(truth, chances_at, depth, range(1)) for depth in range(4)]
    assert found > 0.97 * max(fixed)
    assert found > 0.98 * fixed[0]


def test_the_cases_above_have_some_where_drafts_lose_and_some_where_each_depth_is_best() -> None:
    best = set()
    for share, name, sequences in product([0.1, 0.4, 0.9], CHANCES, [1, 4]):
        fixed = [
            fixed_speed(curve(share), lambda _, n=name, s=sequences: [CHANCES[n]] * s, depth, range(1))
            for depth in range(4)
        ]
        best.add(fixed.index(max(fixed)))
    assert best == {0, 1, 2, 3}


@pytest.mark.parametrize(("before", "after"), [("low", "high"), ("high", "low"), ("fair", "low")])
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_it_follows_an_acceptance_that_changes(share: float, before: str, after: str) -> None:
    truth, middle = curve(share), STEPS // 2

    def chances_at(step: int) -> Sequence[Chances]:
        return [CHANCES[before if step < middle else after]]

    # A change is noticed sooner or later by luck.
    runs = [run(truth, chances_at, predicted=curve(0.3), seed=seed) for seed in range(8)]
    fixed = [fixed_speed(truth, chances_at, depth, range(STEPS)) for depth in range(4)]
    assert all(speed(steps) > 0.97 * max(fixed) for steps in runs)
    # It takes a while to notice that nine of ten do not hold any more where nine of ten held.
    for part, least in ((range(middle), 0.979), (range(middle, STEPS), 0.965)):
        own = mean(speed(steps[part.start : part.stop]) for steps in runs)
        assert own > least * fixed_speed(truth, chances_at, 0, part)


def test_sequences_get_depths_of_their_own() -> None:
    """One text is easy to draft and one is not: better than the same depth for both."""
    truth = curve(0.4)

    def chances_at(_step: int) -> Sequence[Chances]:
        return [CHANCES["high"], CHANCES["low"]]

    fixed = [fixed_speed(truth, chances_at, depth, range(1)) for depth in range(4)]
    assert speed(run(truth, chances_at, predicted=truth)) > 1.05 * max(fixed)


def test_costs_that_were_predicted_wrong_are_corrected() -> None:
    """By the prediction no draft pays; in truth all do."""

    def chances_at(_step: int) -> Sequence[Chances]:
        return [CHANCES["high"]]

    truth = curve(0.05)
    best = max(fixed_speed(truth, chances_at, depth, range(1)) for depth in range(4))
    steps = run(truth, chances_at, predicted=PassCosts((1, 2, 4), (1, 3, 9), ((0.5, 0.1),) * 3))
    assert speed(steps[STEPS // 2 :]) > 0.97 * best


@example(chances=[[0.32] * 3], share=0.33, most=[1, 3, 3], other_rows=0, most_rows=1)
@given(
    chances=st.lists(st.lists(st.floats(0, 1), min_size=3, max_size=3), min_size=1, max_size=3),
    share=st.floats(0, 1),
    most=st.lists(st.integers(0, 3), min_size=3, max_size=3),
    other_rows=st.integers(0, 20),
    most_rows=st.integers(0, 9),
)
def test_no_other_depths_are_expected_to_be_much_faster(
    chances: list[list[float]], share: float, most: list[int], other_rows: int, most_rows: int
) -> None:
    """Against all choices, with the estimates that it has itself.

    But for what drafting for fewer sequences saves, 0.2% of a step each: drafts are chosen by gain alone.
    """
    costs = MeasuredCosts(curve(share))
    depth = DraftDepth(3, costs)
    for number, own in enumerate(chances):
        for place in range(60):
            held = [*(((place * 7919) % 97) / 97 < chance for chance in own), False].index(False)
            depth.learn([Verified(number, 3, held)])
    candidates = [Candidate(number, most[number]) for number in range(len(chances))]
    estimates = [depth.acceptance(number) for number in range(len(chances))]

    def rate(depths: Sequence[int]) -> float:
        tokens = sum(
            1 + sum(math.prod(own[: place + 1]) for place in range(wanted))
            for wanted, own in zip(depths, estimates, strict=True)
        )
        drafting = sum(wanted > 0 for wanted in depths)
        rows = len(depths) + sum(depths) + other_rows
        return tokens / (costs.trunk_s(rows) + costs.drafting_s(max(depths), drafting))

    chosen = depth.choose(candidates, other_rows, most_rows)
    allowed = [
        depths
        for depths in product(*(range(candidate.most + 1) for candidate in candidates))
        if sum(depths) <= most_rows
    ]
    assert tuple(chosen.values()) in allowed
    assert rate(tuple(chosen.values())) * 1.005 >= max(map(rate, allowed))


DRAFTING = {1: 0.32, 4: 0.56, 8: 0.95}
"""Seconds of one MTP layer for so many sequences, as on potluck-tiny: a pass of one row takes 1."""
ROW = 0.016
REQUEST_TOKENS, PROMPT_ROWS = 96, 48


def drafting_s(depth: int, sequences: int) -> float:
    if not depth:
        return 0.0
    low, high = max(n for n in DRAFTING if n <= sequences), min(n for n in DRAFTING if n >= sequences)
    share = (sequences - low) / max(1, high - low)
    return depth * (DRAFTING[low] + (DRAFTING[high] - DRAFTING[low]) * share)


def served(sequences: int, chances: Chances, fixed: int | None, steps: int = 1000, seed: int = 1) -> float:
    """Tokens a second of short answers, one after another; `fixed`: a number of drafts that is not chosen.

    MTP layers take in what waited, at the prompt's end and wherever drafts began late. Rows wait as long as
    they are kept.
    """
    luck, costs = random.Random(seed), MeasuredCosts(curve(0.3))
    depth, truth = DraftDepth(3, costs), curve(0.012)
    left: dict[int, int] = {}
    behind: dict[int, list[int]] = {}
    has_context: dict[int, bool] = {}
    spent_s, tokens, begun = 0.0, 0, 0
    for _ in range(steps):
        while len(left) < sequences:
            left[begun], behind[begun], has_context[begun] = REQUEST_TOKENS, [PROMPT_ROWS] * 3, True
            begun += 1
        if fixed is None:
            if depth.keeps_rows:
                asked = [
                    Candidate(n, of - 1, tuple(behind[n])) if has_context[n] else Candidate(n, 0)
                    for n, of in left.items()
                ]
            else:
                asked = [Candidate(n, of - 1, (2 * CONTEXT_ROWS,) * 3) for n, of in left.items()]
            depths = depth.choose(asked)
            if not depth.keeps_rows:
                behind = {n: [0] * 3 for n in left}
                has_context = dict.fromkeys(left, False)
        else:
            depths = {n: min(fixed, of - 1) for n, of in left.items()}
        drafting = {n: wanted for n, wanted in depths.items() if wanted}
        taken_in = rows_taken_in((behind[n], wanted) for n, wanted in drafting.items())
        rows, deepest = len(depths) + sum(depths.values()), max(depths.values())
        trunk_s = truth.trunk_s(rows) * math.exp(luck.gauss(0, 0.05))
        mtp_s = (drafting_s(deepest, len(drafting)) + ROW * sum(taken_in)) * math.exp(luck.gauss(0, 0.05))
        spent_s += trunk_s + mtp_s
        costs.learn_pass(rows, trunk_s)
        costs.learn_drafting(deepest, len(drafting), mtp_s, taken_in)
        verified = []
        for n, wanted in depths.items():
            holds = [luck.random() < chances[place] for place in range(wanted)]
            accepted = [*holds, False].index(False)
            verified.append(Verified(n, wanted, accepted))
            tokens += 1 + accepted
            left[n] -= 1 + accepted
            if fixed is not None or depth.keeps_rows:
                behind[n] = [1 + accepted + (0 if k < wanted else rows) for k, rows in enumerate(behind[n])]
                has_context[n] = has_context[n] or behind[n][0] >= CONTEXT_ROWS
        depth.learn(verified)
        for n in [n for n, of in left.items() if of <= 0]:
            del left[n]
            depth.forget(n)
    return tokens / spent_s


@pytest.mark.parametrize("sequences", [1, 4, 8])
@pytest.mark.parametrize("chances", [(0.1, 0.1, 0.1), (0.5, 0.5, 0.5), (0.9, 0.85, 0.8)])
def test_short_answers_lose_little_where_rows_wait_and_drafting_gets_dearer_with_sequences(
    sequences: int, chances: Chances
) -> None:
    """The start counts: what is tried then is most of what may be lost in a thousand steps."""
    off, *fixed = [served(sequences, chances, wanted) for wanted in range(4)]
    found = served(sequences, chances, None)
    assert found > 0.98 * off
    if max(fixed) > 1.1 * off:
        assert found > 0.93 * max(fixed)


def played(waiting: int, steps: int = 3000) -> list[int]:
    """Drafts of one sequence, none of which ever holds; as many rows wait as steps went by without drafts."""
    costs = MeasuredCosts(curve(0.2))
    depth = DraftDepth(3, costs)
    behind, drafted = waiting, []
    for _ in range(steps):
        (wanted,) = depth.choose([Candidate(0, 3, (behind,) * 3)]).values()
        depth.learn([Verified(0, wanted, 0)])
        behind = 1 if wanted else min(behind + 1, waiting)
        drafted.append(wanted)
    return drafted


def test_where_much_has_to_be_taken_in_drafts_are_tried_seldom_and_in_several_steps_on_end() -> None:
    runs = {}
    for waiting in (4, 2000):
        settled = "".join(map(str, played(waiting)[300:])).strip("0")
        runs[waiting] = [run for run in settled.split("0") if run]
        assert all(len(set(run)) == 1 for run in runs[waiting])
    assert max(map(len, runs[4])) == 1
    assert max(map(len, runs[2000])) > 2
    assert 2 < len(runs[2000]) < 0.75 * len(runs[4])


@pytest.mark.parametrize(
    ("is_measured", "begin"), [(False, {1: 1}), (True, {1: 1, 3: 1, 2: 1})], ids=["guessed", "measured"]
)
def test_sequences_for_which_rows_wait_begin_one_after_another(
    is_measured: bool, begin: dict[int, int]
) -> None:
    """Each row takes a thousandth of a step: there is time for one with many, and for all with few rows."""
    costs = MeasuredCosts(curve(0.1))
    if is_measured:
        costs.learn_drafting(1, 1, 0.031 + 0.1, (100,))
    depth = DraftDepth(1, costs)
    candidates = [Candidate(n, 900, (rows,)) for n, rows in enumerate((2400, 20, 2300, 30))]
    assert depth.choose(candidates) == {0: 0, 1: 0, 2: 0, 3: 0} | begin


def test_a_change_is_noticed_sooner_than_old_drafts_are_forgotten() -> None:
    depth = DraftDepth(1, MeasuredCosts(curve(0.1)))
    for _ in range(300):
        depth.learn([Verified(0, 1, 1)])
    (before,) = depth.acceptance(0)
    for _ in range(12):
        depth.learn([Verified(0, 1, 0)])
    (after,) = depth.acceptance(0)
    assert before > 0.9
    assert after < 0.4


def test_a_draft_is_hopeless_until_the_one_before_was_tried_and_then_taken_for_alike() -> None:
    depth, unknown = DraftDepth(3, MeasuredCosts(curve(0.1))), 7
    assert depth.acceptance(unknown)[1:] == [0, 0]
    for _ in range(20):
        depth.learn([Verified(0, 1, 1)])
    first, second, third = depth.acceptance(unknown)
    assert first == pytest.approx(second)
    assert first > 0.9
    assert third == 0


def test_nobody_begins_to_draft_for_an_answer_that_ends_before_it_would_pay() -> None:
    for most, drafts in ((2, 0), (300, 1)):
        depth = DraftDepth(1, MeasuredCosts(curve(0.1)))
        assert depth.choose([Candidate(0, most, (1400,))]) == {0: drafts}


def test_nothing_is_drafted_without_mtp_layers_or_sequences() -> None:
    costs = MeasuredCosts(PassCosts((1, 2), (1.0, 1.1)))
    assert DraftDepth(3, costs).choose([Candidate(7, 3)]) == {7: 0}
    assert DraftDepth(0, MeasuredCosts(curve(0.1))).choose([Candidate(7, 3)]) == {7: 0}
    assert DraftDepth(3, MeasuredCosts(curve(0.1))).choose([]) == {}


@pytest.mark.parametrize("pays", [True, False])
def test_who_asks_first_whether_it_rests_gets_the_same_drafts(pays: bool) -> None:
    truth = curve(0.1 if pays else 0.9)
    luck = random.Random(3)
    costs = [MeasuredCosts(truth) for _ in range(2)]
    asking, choosing = (DraftDepth(3, of) for of in costs)
    rested = 0
    for _ in range(STEPS):
        candidates = [Candidate(n, 9, (2, 2, 2)) for n in range(luck.randint(1, 4))]
        other_rows = luck.choice([0, 0, 0, 16])
        found = choosing.choose(candidates, other_rows)
        if asking.rests(len(candidates), other_rows):
            rested += 1
            assert not any(found.values())
        else:
            assert asking.choose(candidates, other_rows) == found
        verified = [
            Verified(n, wanted, wanted if luck.random() < 0.7 else 0) for n, wanted in found.items() if wanted
        ]
        took_s = truth.trunk_s(len(found) + sum(found.values())) * math.exp(luck.gauss(0, 0.05))
        for depth, of in zip((asking, choosing), costs, strict=True):
            of.learn_pass(len(found) + sum(found.values()), took_s)
            depth.learn(verified)
    assert rested < 0.2 * STEPS if pays else rested > 0.8 * STEPS


def test_it_rests_without_mtp_layers_or_sequences() -> None:
    costs = MeasuredCosts(curve(0.1))
    assert DraftDepth(0, costs).rests(4, 0)
    assert DraftDepth(3, costs).rests(0, 0)
    assert not DraftDepth(3, costs).rests(4, 0)


def test_what_waits_for_layers_that_nobody_asks_does_not_make_it_plan_in_every_step() -> None:
    depth = DraftDepth(3, MeasuredCosts(curve(0.3)))
    for _ in range(64):
        (wanted,) = depth.choose([Candidate(0, 500, (1, 400, 400))]).values()
        depth.learn([Verified(0, wanted, min(wanted, 1))] if wanted else [])
    assert wanted == 1
    assert depth.plans_made <= 8


def test_who_is_left_of_several_goes_on_as_before_and_who_comes_makes_it_plan_anew() -> None:
    depth = DraftDepth(3, MeasuredCosts(curve(0.1)))

    def drafts(*sequences: int, other_rows: int = 0, most_rows: int = 99) -> dict[int, int]:
        chosen = depth.choose([Candidate(n, 500) for n in sequences], other_rows, most_rows)
        depth.learn([Verified(n, of, of) for n, of in chosen.items()])
        return chosen

    assert drafts(0, 1, 2) == {0: 1, 1: 1, 2: 1}
    assert drafts(0, 2) == {0: 1, 2: 1}
    assert drafts(0, 2, other_rows=9) == {0: 1, 2: 1}
    assert depth.plans_made == 1
    assert sum(drafts(0, 2, most_rows=1).values()) <= 1
    assert set(drafts(0, 2, 3)) == {0, 2, 3}
    assert depth.plans_made == 3
    depth.plan_anew()
    drafts(0, 2, 3)
    assert depth.plans_made == 4


def test_who_is_alone_for_a_moment_takes_in_nothing_for_drafts_that_pay_for_one_only() -> None:
    """Somebody follows those who ended, or after a while nobody does."""
    costs = MeasuredCosts(PassCosts((1, 2, 8, 16), (1.0, 1.05, 2.0, 4.0), ((0.03, 0.001),)))
    depth = DraftDepth(1, costs)
    # Too much for a try.
    waiting = [Candidate(n, 900, (4000,)) for n in range(8)]

    def drafts(candidates: Sequence[Candidate]) -> int:
        chosen = depth.choose(candidates)
        depth.learn([])
        return sum(chosen.values())

    assert [drafts(waiting) for _ in range(20)] == [0] * 20
    assert [drafts(waiting[:1]) for _ in range(4)] == [0] * 4
    assert [drafts(waiting) for _ in range(20)] == [0] * 20
    assert 1 in [drafts(waiting[:1]) for _ in range(40)]


@pytest.mark.parametrize("seed", range(4))
def test_the_cost_of_drafts_for_all_is_measured_again_after_an_accident(seed: int) -> None:
    """Passes of eight rows were slow for a while, and others were not. So fewer draft at first."""
    truth, luck = curve(0.05), random.Random(seed)
    costs = MeasuredCosts(truth)
    depth = DraftDepth(1, costs)
    for _ in range(20):
        costs.learn_pass(4, truth.trunk_s(4))
        costs.learn_pass(8, 1.6 * truth.trunk_s(8))
    counts = []
    for _ in range(900):
        chosen = depth.choose([Candidate(n, 900) for n in range(4)])
        drafts = sum(chosen.values())
        costs.learn_pass(4 + drafts, truth.trunk_s(4 + drafts))
        costs.learn_drafting(1 if drafts else 0, drafts, truth.drafting_s(1, 2 * drafts))
        depth.learn([Verified(n, of, int(luck.random() < 0.7)) for n, of in chosen.items() if of])
        counts.append(drafts)
    assert sum(count < 4 for count in counts[:20]) >= 15
    assert sum(count == 4 for count in counts[-200:]) > 150


def test_steps_in_which_the_box_is_slow_neither_begin_nor_end_drafts() -> None:
    """As on a machine that others use too: slower by half for eight steps, now and then."""
    for share, drafts in ((0.05, 1), (0.9, 0)):
        truth, luck = curve(share), random.Random(0)
        costs = MeasuredCosts(truth)
        depth = DraftDepth(1, costs)
        slow, chosen = 0, []
        for _ in range(2000):
            slow = slow - 1 if slow else 8 * (luck.random() < 0.03)
            (wanted,) = depth.choose([Candidate(0, 900)]).values()
            factor = (1.5 if slow else 1.0) * math.exp(luck.gauss(0, 0.05))
            costs.learn_pass(1 + wanted, factor * truth.trunk_s(1 + wanted))
            costs.learn_drafting(wanted, 1, factor * truth.drafting_s(wanted, 2))
            depth.learn([Verified(0, wanted, int(luck.random() < 0.7))] if wanted else [])
            chosen.append(wanted)
        assert sum(wanted == drafts for wanted in chosen[100:]) > 0.95 * 1900
