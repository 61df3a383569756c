"""Good prices are found from poor ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog

from placement.bounds.bound import trace_bound_s
from placement.bounds.memory_prices import priced_bound_s
from placement.bounds.price_search import boxstep
from placement.given.problem import PlanningProblem
from placement.given.traces import Domain, SyntheticRouter
from placement.plan import LOCAL_WORKER
from placement.workload import Workload
from tests.examples import examples
from tests.placement.boxes import device
from tests.placement.shapes import small_shape


@given(seed=st.integers(0, 10_000))
@examples(6)
def test_boxstep_finds_the_top_of_a_concave_function(seed: int) -> None:
    """The least of some planes; a linear program knows where it is largest."""
    generator = np.random.default_rng(seed)
    slopes = generator.normal(size=(12, 3)) * 1e4
    # One plane that falls in every direction, or there would be no top.
    slopes[0] = -np.abs(slopes[0]) - 1e4
    heights = generator.uniform(0.01, 0.02, size=12)
    top = linprog(
        [0, 0, 0, -1.0],
        A_ub=np.column_stack([-slopes * 1e-6, np.ones(12)]),
        b_ub=heights,
        bounds=[(0, None)] * 3 + [(None, None)],
    )

    def value_of(prices: np.ndarray) -> tuple[float, np.ndarray]:
        values = heights + slopes @ prices
        lowest = int(values.argmin())
        return float(values[lowest]), slopes[lowest]

    found = boxstep(value_of, np.array([1e-6, 5e-7, 1e-9]), 40)
    assert (found >= 0).all()
    assert value_of(found)[0] == pytest.approx(-top.fun, rel=2e-3)


@pytest.mark.whole_search
def test_prices_know_what_mean_loads_know() -> None:
    """A box that answers last, yet must hold the hottest experts that the head has no room for."""
    layers = 24
    shape = small_shape(num_moe_layers=layers, num_experts=288, top_k=8)
    size = shape.expert_bytes(16)
    gbytes_per_s = size / 1.36e-4 / 1e9
    devices = (
        device(LOCAL_WORKER, 43 * layers, size, gbytes_per_s=size / 1e-5 / 1e9),
        device("ram", 214 * layers, size, home=True, gbytes_per_s=gbytes_per_s),
        device("box", 50 * layers, size, gbytes_per_s=gbytes_per_s, round_trip_s=5.2e-4),
    )
    trace = SyntheticRouter(shape, stickiness=0).trace(Domain("even", skew=0.5, concentration=1e7), 1200)
    problem = PlanningProblem(shape, devices, size, workload=Workload(num_sequences=2))
    assert priced_bound_s(problem, trace) >= 1.01 * trace_bound_s(problem, trace)
