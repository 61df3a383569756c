"""Choosing a token from a row of logits, against numpy's Philox and logarithms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest

from orchestrator.kernels.choosing import choose_token
from orchestrator.row_choice import RowChoice
from orchestrator.sampling import token_bits
from tests.orchestrator.chi_square import p_value
from tests.orchestrator.plain_choosing import plain_choice
from workers.kernels import native

SameBits = Callable[[Callable[[], tuple[Any, ...]]], None]

PLAIN = RowChoice(1.0, 0, 1.0, 0.0, seed=1, answer=0, position=0)
GREEDY = replace(PLAIN, temperature=0.0)
CHOICES = [
    GREEDY,
    PLAIN,
    replace(PLAIN, temperature=0.3, seed=2**64 - 1, position=2**18),
    replace(PLAIN, temperature=2.0**-126, answer=2),
    replace(PLAIN, temperature=3.0, top_k=5),
    replace(PLAIN, top_k=1),
    replace(PLAIN, top_p=0.9, seed=2**63),
    replace(PLAIN, top_p=0.0),
    replace(PLAIN, min_p=0.1),
    replace(PLAIN, min_p=1.0),
    replace(PLAIN, top_k=300),
    replace(PLAIN, temperature=1.5, top_k=40, top_p=0.7, min_p=0.02),
]


def choose(logits: np.ndarray, choice: RowChoice, banned: tuple[int, ...] = ()) -> int:
    return choose_token(logits, choice, token_bits(len(logits), banned) if banned else None)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_is_the_plain_implementations(choice: RowChoice, same_bits_everywhere: SameBits) -> None:
    random = np.random.default_rng(7)
    cases: list[tuple[np.ndarray, RowChoice, tuple[int, ...]]] = []
    for turn, vocab in enumerate((1, 2, 5, 31, 33, 129, 700)):
        for scale in (0.1, 1.0, 5.0):
            logits = (random.standard_normal(vocab) * scale).astype(np.float32)
            if turn % 3 == 2:
                logits = np.round(logits)  # many ties
            banned = tuple(random.choice(vocab, vocab // 3, replace=False).tolist())
            at = replace(choice, position=choice.position + turn)
            cases += [(logits, at, left_out) for left_out in ((), banned)]
    same_bits_everywhere(lambda: (np.array([choose(*case) for case in cases]),))
    assert [choose(*case) for case in cases] == [plain_choice(*case) for case in cases]


@pytest.mark.parametrize("choice", [GREEDY, PLAIN, replace(PLAIN, top_k=3, top_p=0.5)])
@pytest.mark.parametrize("bad", [np.nan, -np.float32(np.nan), np.inf])
def test_a_row_that_is_not_finite_has_no_token(choice: RowChoice, bad: float) -> None:
    logits = np.arange(70, dtype=np.float32)
    logits[33] = bad
    assert choose(logits, choice) == -1
    assert choose(logits, choice, (33,)) >= 0
    assert choose(np.full(70, -np.inf, np.float32), choice) == -1
    assert choose(logits, choice, tuple(range(70))) == -1


def test_tokens_that_cannot_come_never_do() -> None:
    logits = np.full(9, -np.inf, np.float32)
    logits[[2, 7]] = (0.0, -1.0)
    found = {choose(logits, replace(PLAIN, temperature=50.0, position=at)) for at in range(300)}
    assert found == {2, 7}


def test_huge_and_tiny_logits_do_not_overflow() -> None:
    logits = np.array([-3e38, 3e38, 0, 1e-30, -1e-45], np.float32)
    assert choose(logits, PLAIN) == 1
    assert choose(logits[2:], replace(PLAIN, temperature=2.0**-126)) == 1


def noise_of(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    noise, bounds = np.empty(len(words)), np.empty(len(words))
    native.noise(words.ctypes.data, noise.ctypes.data, bounds.ctypes.data, len(words))
    return noise, bounds


def test_noise_is_gumbels_and_within_its_bound(same_bits_everywhere: SameBits) -> None:
    ones = [(2**64 - 1) << (64 - n) & (2**64 - 1) for n in range(65)]
    random = np.random.default_rng(3).integers(0, 2**64 - 1, 20_000, np.uint64, endpoint=True)
    words = np.concatenate(
        [np.array([0, 1, 2**12 - 1, 2**12, *ones, *(w - 1 for w in ones[1:])], np.uint64), random]
    )
    noise, bounds = noise_of(words)
    with localcontext(prec=40):
        for word, found in zip(words[:400].tolist(), noise[:400].tolist(), strict=True):
            u = (Decimal(word >> 12) + Decimal("0.5")) / 2**52
            exact = -(-u.ln()).ln()
            assert abs(Decimal(found) - exact) <= Decimal("4e-16") * max(1, abs(exact))
    assert (noise <= bounds).all()
    assert (noise > -3.7).all()
    same_bits_everywhere(lambda: noise_of(words))


def test_what_overflows_by_a_temperature_weighs_nothing(same_bits_everywhere: SameBits) -> None:
    logits = np.linspace(-50, 50, 64).astype(np.float32)
    choices = [
        replace(PLAIN, temperature=temperature, top_p=0.5, position=at)
        for temperature in (2.0**-126, 1e6)
        for at in range(20)
    ]
    same_bits_everywhere(lambda: (np.array([choose(logits, choice, (63, 7)) for choice in choices]),))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_choices_follow_the_softmax(temperature: float) -> None:
    logits = np.random.default_rng(1).standard_normal(13).astype(np.float32)
    counts = np.zeros(13)
    for position in range(20_000):
        counts[choose(logits, replace(PLAIN, temperature=temperature, position=position))] += 1
    shares = np.exp(logits.astype(np.float64) / temperature)
    assert p_value(counts, 20_000 * shares / shares.sum()) > 0.001


def test_seeds_answers_and_positions_have_noise_of_their_own() -> None:
    logits = np.zeros(5, np.float32)
    pairs = [
        (replace(PLAIN, position=at), other)
        for at in range(5_000)
        for other in (
            replace(PLAIN, position=at, seed=2),
            replace(PLAIN, position=at, answer=1),
            replace(PLAIN, position=at + 1),
        )
    ]
    for kind in range(3):
        counts = np.zeros((5, 5))
        for one, other in pairs[kind::3]:
            counts[choose(logits, one), choose(logits, other)] += 1
        assert p_value(counts.ravel(), np.full(25, 5_000 / 25)) > 0.001


def test_top_p_leaves_the_fewest_that_have_the_probability() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))
    for top_p, expected in (
        (0.39, {1}),
        (0.41, {1, 3}),
        (0.69, {1, 3}),
        (0.71, {1, 2, 3}),
        (0.91, {0, 1, 2, 3}),
    ):
        found = {choose(logits, replace(PLAIN, top_p=top_p, position=at)) for at in range(400)}
        assert found == expected


def test_equal_logits_are_left_together() -> None:
    logits = np.array([1, 2, 2, 0], np.float32)
    for choice in (replace(PLAIN, top_k=1), replace(PLAIN, top_p=0.1)):
        assert {choose(logits, replace(choice, position=at)) for at in range(100)} == {1, 2}


@pytest.mark.long
def test_a_large_vocabulary_is_searched_to_its_end() -> None:
    logits = np.zeros(200_003, np.float32)
    logits[-1] = 60
    assert choose(logits, PLAIN) == choose(logits, GREEDY) == 200_002
