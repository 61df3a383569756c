"""Chances that drafts hold, against their definitions and against what the kernel chooses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.acceptance import Probabilities, overlap, probabilities, shared_noise, tokens_a_step
from orchestrator.kernels.choosing import choose_token
from orchestrator.sampling import Sampler
from orchestrator.sampling_params import SamplingParams

weights = st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 1)), min_size=5, max_size=5).filter(any)


def normed(values: list[float]) -> Probabilities:
    return np.array(values) / sum(values)


def plain_shared_noise(p: Probabilities, q: Probabilities) -> float:
    """The sum as it is written, over tokens that both may choose."""
    return sum(
        1 / sum(max(p[w] / p[v], q[w] / q[v]) for w in range(len(p)))
        for v in range(len(p))
        if p[v] > 0 and q[v] > 0
    )


@given(weights, weights)
def test_shared_noise_is_the_sum_over_tokens_and_lies_between_both_bounds(
    first: list[float], second: list[float]
) -> None:
    p, q = normed(first), normed(second)
    found, common = shared_noise(p, q), overlap(p, q)
    assert found == pytest.approx(plain_shared_noise(p, q), rel=1e-9, abs=1e-12)
    # No less than weighted MinHash, no more than any coupling.
    assert common / (2 - common) - 1e-9 <= found <= common + 1e-9


@pytest.mark.parametrize("how", [SamplingParams(temperature=0.8), SamplingParams(temperature=1, top_p=0.8)])
def test_the_kernel_chooses_alike_as_often_as_expected(how: SamplingParams) -> None:
    """Two rows of logits, and the noise of 4,000 positions; within five standard deviations."""
    luck = np.random.default_rng(4)
    rows = luck.normal(0, 2, (2, 12)).astype(np.float32)
    rows[1] = 0.5 * rows[0] + 0.5 * rows[1]
    p, q = (probabilities(row, how) for row in rows)
    sampler = Sampler(how)
    tries = 4000
    chosen = np.array(
        [[choose_token(row, sampler.choice(n).how, None) for row in rows] for n in range(tries)]
    )
    for own, column in ((p, 0), (q, 1)):
        counts = np.bincount(chosen[:, column], minlength=12)
        assert (counts[own == 0] == 0).all()
        assert (np.abs(counts / tries - own) < 5 * np.sqrt(own * (1 - own) / tries) + 1e-12).all()
    expected = shared_noise(p, q)
    same = float((chosen[:, 0] == chosen[:, 1]).mean())
    assert abs(same - expected) < 5 * (expected * (1 - expected) / tries) ** 0.5


def test_without_temperature_all_chance_is_on_the_largest_logit() -> None:
    row = np.array([0.5, 2.0, 1.0], np.float32)
    assert probabilities(row, SamplingParams(temperature=0)).tolist() == [0, 1, 0]


def test_tokens_a_step() -> None:
    assert tokens_a_step([0.5, 0.5, 1.0]) == pytest.approx(1 + 0.5 + 0.25 + 0.25)
