"""Sampling: greedy ties, banned tokens, and verification that keeps the distribution."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from orchestrator.sampling import Sampler
from placement.errors import NonFiniteError
from tests.orchestrator.chi_square import p_value

VOCAB = 5


def softmax(logits: torch.Tensor, temperature: float) -> np.ndarray:
    return (logits.double() / temperature).softmax(-1).numpy()


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    sampler = Sampler(0.0, 0)
    assert sampler.choose(torch.tensor([0.0, 2.0, 1.0, 2.0])) == 1


def test_banned_tokens_are_never_chosen() -> None:
    logits = torch.tensor([0.0, 9.0, 1.0, 8.0])
    assert Sampler(0.0, 0, banned=(1, 3)).choose(logits) == 2
    sampled = Sampler(1.0, 0, banned=(1, 3))
    assert {sampled.choose(logits) for _ in range(200)} == {0, 2}
    assert {sampled.draft(logits).token_id for _ in range(200)} == {0, 2}
    assert logits[1] == 9.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="not finite"):
        Sampler(0.0, 0).choose(torch.tensor([0.0, bad, 1.0]))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_softmax(temperature: float) -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(1))
    sampler = Sampler(temperature, 7)
    counts = Counter(sampler.choose(logits) for _ in range(5000))
    expected = softmax(logits, temperature) * 5000
    assert p_value([counts[t] for t in range(VOCAB)], expected) > 0.001


@pytest.mark.parametrize("drafter_scale", [0.0, 1.0, 4.0])
def test_verified_drafts_follow_the_verifiers_distribution(drafter_scale: float) -> None:
    """Joint distribution of the first two tokens, for drafters from useless to confident and wrong."""
    generator = torch.Generator().manual_seed(2)
    temperature = 0.8
    first = torch.randn(VOCAB, generator=generator)
    # The verifier's later rows depend on the tokens before, as a model's do.
    second = torch.randn(VOCAB, VOCAB, generator=generator)
    third = torch.randn(VOCAB, VOCAB, generator=generator)
    drafter = torch.randn(2, VOCAB, generator=generator) * drafter_scale
    sampler = Sampler(temperature, 3)
    joint = Counter()
    accepted = 0
    rounds = 2_000
    for _ in range(rounds):
        drafts = [sampler.draft(drafter[0]), sampler.draft(drafter[1])]
        rows = torch.stack([first, second[drafts[0].token_id], third[drafts[1].token_id]])
        tokens = sampler.verify(rows, drafts)
        accepted += len(tokens) - 1
        if len(tokens) == 1:
            tokens.append(sampler.choose(second[tokens[0]]))
        joint[tokens[0], tokens[1]] += 1
    expected = softmax(first, temperature)[:, None] * softmax(second, temperature)
    counts = [joint[a, b] for a in range(VOCAB) for b in range(VOCAB)]
    assert p_value(counts, expected.ravel() * rounds) > 0.001
    assert accepted > 0


def test_a_draft_from_the_verifiers_own_distribution_is_always_accepted() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(4))
    sampler = Sampler(1.0, 5)
    for _ in range(200):
        draft = sampler.draft(logits)
        tokens = sampler.verify(torch.stack([logits, logits]), [draft])
        assert len(tokens) == 2


def test_the_same_seed_gives_the_same_tokens() -> None:
    logits = torch.randn(VOCAB, generator=torch.Generator().manual_seed(6))

    def tokens(seed: int) -> list[int]:
        sampler = Sampler(1.0, seed)
        return [sampler.choose(logits) for _ in range(50)]

    assert tokens(1) == tokens(1)
    assert tokens(1) != tokens(2)
