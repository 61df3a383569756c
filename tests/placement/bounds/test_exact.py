"""The planner on small instances: within 1% of an integer program's optimum, and above its bound."""

from __future__ import annotations

import pytest

from benchmarks.exact import CLUSTERS, Size, exact, instance
from placement.bounds.bound import lower_bound_s
from placement.given.traces import CODING, GENERAL, Domain
from placement.policies.least_time.policy import least_time
from placement.replay.evaluate import evaluate

pytestmark = pytest.mark.whole_search

ONE_TOKEN = Size(num_layers=2, num_experts=12, top_k=3, tokens_per_step=1, num_steps=12)
TWO_TOKENS = Size(num_layers=2, num_experts=12, top_k=2, tokens_per_step=2, num_steps=10)
ONE_TOKEN_LONG = Size(num_layers=2, num_experts=16, top_k=4, tokens_per_step=1, num_steps=24)
TWO_TOKENS_LONG = Size(num_layers=2, num_experts=16, top_k=3, tokens_per_step=2, num_steps=16)

# Only against a hang: each is solved in seconds, and no test may depend on how many.
TIME_LIMIT_S = 3600.0


def long(*instance: object) -> object:
    return pytest.param(*instance, marks=pytest.mark.long)


@pytest.mark.parametrize(
    ("size", "cluster", "domain", "seed"),
    [
        (ONE_TOKEN, "GPU, RAM, box", CODING, 0),
        (ONE_TOKEN, "uneven", GENERAL, 1),
        (TWO_TOKENS, "GPU, RAM, slow link", CODING, 0),
        (TWO_TOKENS, "near equal", CODING, 1),
        long(ONE_TOKEN_LONG, "GPU, RAM, box", CODING, 0),
        long(ONE_TOKEN_LONG, "GPU, RAM, slow link", GENERAL, 1),
        long(ONE_TOKEN_LONG, "near equal", CODING, 2),
        long(ONE_TOKEN_LONG, "uneven", CODING, 0),
        long(TWO_TOKENS_LONG, "GPU, RAM, slow link", CODING, 0),
        long(TWO_TOKENS_LONG, "near equal", CODING, 1),
    ],
)
def test_the_planner_is_within_one_percent_of_the_exact_solution(
    size: Size, cluster: str, domain: Domain, seed: int
) -> None:
    problem = instance(size, CLUSTERS[cluster], domain, seed)
    assert problem.stats is not None
    trace = problem.stats.trace
    assert trace is not None
    best = exact(problem, trace, time_limit_s=TIME_LIMIT_S)
    assert best is not None
    # Solved: what was found is what nothing can beat.
    assert best.mean_s == pytest.approx(best.bound_s, rel=1e-3)
    assert lower_bound_s(problem, trace) <= best.mean_s * (1 + 1e-9)
    assert evaluate(problem, least_time(problem), trace).mean_s <= 1.01 * best.mean_s
