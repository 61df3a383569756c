"""RoPE: the published llama3 divisors, rotation by halves, a table whose rows stay as it grows."""

from __future__ import annotations

import math

import numpy as np
import torch

from orchestrator.model.rope import BLOCK_POSITIONS, RopeTable, inverse_frequencies
from workers.model_config import LayerConfig, RopeScaling

PUBLISHED_SCALING = RopeScaling(2.0, 1.0, 32.0, 131072)


def layer(*, head_dim: int = 16, rotary_dim: int = 8, theta: float = 1e4) -> LayerConfig:
    return LayerConfig(0, True, 4, 2, head_dim, theta, rotary_dim, None, False, 0.0, 0.0)


def test_llama3_divisors_of_the_published_full_layers() -> None:
    plain = inverse_frequencies(5e6, 64)
    scaled = inverse_frequencies(5e6, 64, PUBLISHED_SCALING)
    between = [1.138363, 1.374499, 1.576436, 1.733729, 1.847569, 1.925649, 1.977251]
    expected = [1.0] * 14 + between + [2.0] * 11
    np.testing.assert_allclose(plain / scaled, expected, rtol=5e-7)


def test_plain_frequencies() -> None:
    np.testing.assert_allclose(inverse_frequencies(1e4, 8), [1.0, 0.1, 0.01, 0.001], rtol=1e-15)


def test_a_row_turns_each_pair_by_its_position() -> None:
    start = 1000
    table = RopeTable(layer())
    rows = table.rows(start, start + 3)
    assert table.upto(start).half == 4
    for token in range(3):
        for pair in range(4):
            angle = (start + token) * 1e4 ** (-2 * pair / 8)
            for place, sign in ((pair, -1), (pair + 4, 1)):
                assert math.isclose(rows.cos[token, 0, place], math.cos(angle), rel_tol=1e-6, abs_tol=1e-7)
                assert math.isclose(
                    rows.sin[token, 0, place], sign * math.sin(angle), rel_tol=1e-6, abs_tol=1e-7
                )
    assert torch.equal(rows.cos[:, :, 8:], torch.ones(3, 1, 8))
    assert torch.equal(rows.sin[:, :, 8:], torch.zeros(3, 1, 8))


def test_rows_have_the_same_bits_however_the_table_grew() -> None:
    slowly, at_once = RopeTable(layer()), RopeTable(layer())
    last = 5 * BLOCK_POSITIONS + 3
    for stop in (1, 2, BLOCK_POSITIONS + 1, 3 * BLOCK_POSITIONS, last):
        slowly.rows(stop - 1, stop)
    a, b = slowly.rows(0, last), at_once.rows(0, last)
    assert torch.equal(a.cos, b.cos)
    assert torch.equal(a.sin, b.sin)


def test_several_spans_are_their_rows_one_after_another() -> None:
    table = RopeTable(layer())
    both = table.rows_of([(5, 8), (0, 2)])
    assert torch.equal(both.cos, torch.cat([table.rows(5, 8).cos, table.rows(0, 2).cos]))
    assert torch.equal(both.sin, torch.cat([table.rows(5, 8).sin, table.rows(0, 2).sin]))
