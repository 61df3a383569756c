"""The bound of a request's reasoning: when it hints, when it ends, and when it keeps out of the way."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.answers.reasoning_budget import BudgetTokens, Order, ReasoningBudget

HINT, END, END_OF_THINK, TOOL_CALL = (101, 102, 103), (200, 201), 200, 300
TOKENS = BudgetTokens(end=END, hint=HINT, ends=((END_OF_THINK,), (TOOL_CALL, 301)))


def run(budget: ReasoningBudget, tokens: Iterable[int]) -> list[tuple[int, Order]]:
    """The orders, each carried out, with the number of reasoning tokens used by then."""
    orders = []
    for token in tokens:
        order = budget.push(token)
        while order.kind != "go_on":
            orders.append((budget.used, order))
            answers = [budget.push(forced) for forced in order.token_ids]
            order = answers[-1]
            assert all(answer.kind == "go_on" for answer in answers[:-1])
        if budget.is_over:
            break
    return orders


def test_a_hint_comes_with_an_eighth_left_and_the_end_at_the_budget() -> None:
    budget = ReasoningBudget(800, TOKENS)
    assert run(budget, [1] * 2000) == [(700, Order("hint", HINT)), (800, Order("end", END))]
    assert budget.is_over
    assert budget.push(1).kind == "go_on"


def test_of_a_large_budget_the_hint_leaves_no_more_than_is_needed() -> None:
    assert run(ReasoningBudget(100_000, TOKENS), [1] * 200_000)[0] == (99_488, Order("hint", HINT))


def test_a_hint_that_would_leave_too_little_is_left_out() -> None:
    long = BudgetTokens(end=END, hint=HINT * 17)
    assert run(ReasoningBudget(800, long), [1] * 2000) == [(800, Order("end", END))]


def test_small_budgets_and_those_without_a_hint_only_end() -> None:
    assert run(ReasoningBudget(100, TOKENS), [1] * 200) == [(100, Order("end", END))]
    assert run(ReasoningBudget(800, BudgetTokens(end=END)), [1] * 900) == [(800, Order("end", END))]


def test_no_budget_at_all_ends_before_the_first_token() -> None:
    budget = ReasoningBudget(0, TOKENS)
    assert budget.order() == Order("end", END)
    assert budget.order().kind == "go_on"
    assert budget.used == 0
    assert ReasoningBudget(1, TOKENS).order().kind == "go_on"


def test_reasoning_that_ends_by_itself_is_left_alone() -> None:
    for ends in ([END_OF_THINK], [TOOL_CALL, 301]):
        budget = ReasoningBudget(50, TOKENS)
        assert run(budget, [1] * 10 + ends + [1] * 100) == []
        assert budget.used == 10 + len(ends)
    budget = ReasoningBudget(50, TOKENS)
    assert run(budget, [TOOL_CALL, 1] * 100) == [(50, Order("end", END))]


@given(st.integers(0, 400), st.lists(st.sampled_from([1, 2, TOOL_CALL, 301]), max_size=500))
def test_no_budget_is_overrun(allowed: int, tokens: list[int]) -> None:
    budget = ReasoningBudget(allowed, TOKENS)
    if budget.order().kind == "go_on":
        orders = [order.kind for _, order in run(budget, tokens)]
        assert orders in ([], ["hint"], ["end"], ["hint", "end"])
    assert budget.used <= allowed
