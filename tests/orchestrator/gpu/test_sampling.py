"""Greedy sampling on a card."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.gpu.sampling import argmax, argmax_workspace_bytes, banned_bits
from orchestrator.sampling import Sampler
from placement.errors import NonFiniteError
from tests.orchestrator.gpu.on_card import OnCard


def choose(on_card: OnCard, logits: np.ndarray, banned: list[int]) -> list[int]:
    rows, vocab = logits.shape
    token_ids = on_card.room(rows)
    argmax(
        on_card.stream,
        rows,
        vocab,
        logits=on_card.put(np.pad(logits, ((0, 0), (0, 5)))),
        logits_stride=vocab + 5,
        workspace=on_card.room(argmax_workspace_bytes(rows, vocab), item_bytes=1),
        token_ids=token_ids,
        banned=on_card.put(banned_bits(vocab, banned)) if banned else 0,
    )
    found: list[int] = on_card.get(token_ids, (rows,), np.int32).tolist()
    return found


def expected(row: np.ndarray, banned: list[int]) -> int:
    try:
        return Sampler(0.0, 0, banned).choose(torch.from_numpy(row))
    except NonFiniteError:
        return -1


@pytest.mark.parametrize("vocab", [1, 33, 2048, 2049, 10_000])
def test_a_rows_token_is_the_samplers(on_card: OnCard, vocab: int) -> None:
    random = np.random.default_rng(vocab)
    logits = random.standard_normal((9, vocab)).astype(np.float32)
    logits[1] = np.round(logits[1])  # many ties
    logits[2] = -np.abs(logits[2]) - 1
    logits[3] = np.where(random.random(vocab) < 0.5, np.float32(-0.0), np.float32(0.0))
    logits[4, random.integers(vocab)] = np.nan
    logits[5, random.integers(vocab)] = np.inf
    logits[6] = -np.inf
    logits[7, random.integers(vocab)] = -np.inf
    largest = [int(place) for place in logits.argmax(1)]
    for banned in ([], largest, list(range(vocab))):
        assert choose(on_card, logits, banned) == [expected(row, banned) for row in logits]


@pytest.mark.long
def test_a_large_vocabulary_is_searched_to_its_end(on_card: OnCard) -> None:
    logits = np.zeros((2, 200_003), np.float32)
    logits[0, -1] = 1
    logits[1, 131_072] = 1e-45
    assert choose(on_card, logits, []) == [200_002, 131_072]
