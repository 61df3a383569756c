"""Choosing tokens on a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.gpu.logits import CardLogits
from orchestrator.gpu.sampling import NeededKernels, choose_tokens, choosing_bytes
from orchestrator.kernels.choosing import choose_token
from orchestrator.row_choice import RowChoice, RowChoiceArgs
from orchestrator.sampling import Choice, Sampler, token_bits
from orchestrator.sampling_params import SamplingParams
from placement.errors import NonFiniteError
from tests.orchestrator.gpu.on_card import OnCard

PLAIN = RowChoice(1.0, 0, 1.0, 0.0, seed=3, answer=1, position=70)
GREEDY = replace(PLAIN, temperature=0.0)
MIXED = [
    GREEDY,
    PLAIN,
    replace(PLAIN, temperature=0.4, top_k=7),
    replace(PLAIN, temperature=2.0, top_p=0.8),
    replace(PLAIN, top_k=50, top_p=0.5, min_p=0.01),
    replace(PLAIN, min_p=0.3),
    replace(PLAIN, top_p=0.0),
    replace(PLAIN, temperature=2.0**-126),
    replace(PLAIN, seed=2**64 - 1, position=2**18),
]


def choose(
    on_card: OnCard, logits: np.ndarray, choices: Sequence[RowChoice], banned: Sequence[int] = ()
) -> list[int]:
    """`banned` are left out of every second row."""
    rows, vocab = logits.shape
    token_ids = on_card.room(rows)
    given = [choice.args(banned_set=bool(banned) and place % 2 == 1) for place, choice in enumerate(choices)]
    packed = b"".join(map(bytes, given))
    choose_tokens(
        on_card.stream,
        rows,
        vocab,
        NeededKernels.of(given),
        logits=on_card.put(np.pad(logits, ((0, 0), (0, 5)))),
        logits_stride=vocab + 5,
        choices=on_card.put(np.frombuffer(packed, np.uint8)),
        workspace=on_card.room(choosing_bytes(rows, vocab), item_bytes=1),
        token_ids=token_ids,
        banned=on_card.put(token_bits(vocab, banned)) if banned else 0,
    )
    found: list[int] = on_card.get(token_ids, (rows,), np.int32).tolist()
    return found


def expected(logits: np.ndarray, choices: Sequence[RowChoice], banned: Sequence[int] = ()) -> list[int]:
    bits = token_bits(logits.shape[1], banned)
    return [
        choose_token(row, choice, bits if banned and place % 2 == 1 else None)
        for place, (row, choice) in enumerate(zip(logits, choices, strict=True))
    ]


def awkward(vocab: int) -> np.ndarray:
    random = np.random.default_rng(vocab)
    logits = random.standard_normal((9, vocab)).astype(np.float32)
    logits[1] = np.round(logits[1])  # many ties
    logits[2] = -np.abs(logits[2]) - 1
    logits[3] = np.where(random.random(vocab) < 0.5, np.float32(-0.0), np.float32(0.0))
    logits[4, random.integers(vocab)] = np.nan
    logits[5, random.integers(vocab)] = np.inf
    logits[6] = -np.inf
    logits[7, random.integers(vocab)] = -np.inf
    return logits


@pytest.mark.parametrize("vocab", [1, 33, 2048, 2049])
def test_a_rows_token_is_the_cpus(on_card: OnCard, vocab: int) -> None:
    logits = awkward(vocab)
    largest = [int(place) for place in logits.argmax(1)]
    for choices in ([GREEDY] * 9, [PLAIN] * 9, MIXED, MIXED[::-1]):
        for banned in ([], sorted(set(largest)), list(range(vocab))):
            assert choose(on_card, logits, choices, banned) == expected(logits, choices, banned)


def test_choices_at_many_positions_are_the_cpus(on_card: OnCard) -> None:
    logits = np.random.default_rng(5).standard_normal((9, 700)).astype(np.float32)
    seen = set()
    for position in range(12):
        choices = [replace(choice, position=position) for choice in MIXED]
        found = choose(on_card, logits, choices)
        assert found == expected(logits, choices)
        seen.add(found[1])
    assert len(seen) > 6


def card_logits(logits: np.ndarray) -> tuple[CardLogits, list[int]]:
    """Logits of a card that chooses greedily, and a list of the rows that are fetched from it."""
    vocab = logits.shape[1]
    fetched: list[int] = []
    own: dict[int, np.ndarray] = {}

    def fetch(place: int) -> np.ndarray:
        fetched.append(place)
        return logits[place]

    def leave_out(place: int, choice: Choice) -> None:
        bits = choice.left_out(vocab)
        assert bits is not None
        own[2 + place] = bits

    def there(choices: Sequence[RowChoiceArgs], banned: tuple[int, ...]) -> list[int]:
        sets = {0: None, 1: token_bits(vocab, banned), **own}
        return [
            choose_token(row, GREEDY, sets[choice.banned_set])
            for row, choice in zip(logits, choices, strict=True)
        ]

    return CardLogits(fetch, there, leave_out), fetched


def test_rows_whose_logits_change_are_fetched_and_those_that_leave_out_tokens_are_not() -> None:
    logits = np.array([[1, 2, 3], [3, 2, 1], [1, 3, 2]], np.float32)
    on_card, fetched = card_logits(logits)
    plain, banning = Sampler(SamplingParams(0.0)), Sampler(SamplingParams(0.0), banned=(0,))
    biased = Sampler(SamplingParams(0.0, logit_bias=((0, 9.0),)))
    assert on_card.choose([plain.choice(0), banning.choice(0), biased.choice(0)]) == [2, 1, 0]
    assert fetched == [2]
    fetched.clear()
    other = Sampler(SamplingParams(0.0), banned=(1,))
    assert on_card.choose([banning.choice(0), other.choice(0), plain.choice(0)]) == [2, 0, 1]
    assert not fetched
    logits[0, 1] = np.nan
    with pytest.raises(NonFiniteError):
        on_card.choose([plain.choice(0)] * 3)


@pytest.mark.parametrize("vocab", [33, 2049])
def test_each_row_may_leave_out_tokens_of_its_own(on_card: OnCard, vocab: int) -> None:
    logits, random = awkward(vocab), np.random.default_rng(vocab)
    rows = len(logits)
    words = -(-vocab // 32)
    sets = random.integers(2**32, size=(1 + rows, words), dtype=np.uint32)
    # Of the last set one token alone is left.
    sets[-1] = ~token_bits(vocab, [vocab // 2])
    for choices in ([GREEDY] * rows, MIXED):
        numbers = [0, 1, *range(4, rows), 2, 1 + rows]
        given = [choice.args(banned_set=number) for choice, number in zip(choices, numbers, strict=True)]
        token_ids = on_card.room(rows)
        choose_tokens(
            on_card.stream,
            rows,
            vocab,
            NeededKernels.of(given),
            logits=on_card.put(logits),
            logits_stride=vocab,
            choices=on_card.put(np.frombuffer(b"".join(map(bytes, given)), np.uint8)),
            workspace=on_card.room(choosing_bytes(rows, vocab), item_bytes=1),
            token_ids=token_ids,
            banned=on_card.put(sets),
        )
        wanted = [
            choose_token(row, choice, sets[number - 1] if number else None)
            for row, choice, number in zip(logits, choices, numbers, strict=True)
        ]
        assert on_card.get(token_ids, (rows,), np.int32).tolist() == wanted
        assert wanted[-1] == vocab // 2


def test_rows_with_masks_are_fetched_only_where_a_card_finds_no_token() -> None:
    logits = np.array([[1, 2, 3], [3, 2, 1], [1, 3, 2], [5, 6, 7]], np.float32)
    on_card, fetched = card_logits(logits)
    plain, banning = Sampler(SamplingParams(0.0)), Sampler(SamplingParams(0.0), banned=(2,))
    biased = Sampler(SamplingParams(0.0, logit_bias=((0, 9.0),)))
    only_last, first_two = token_bits(3, [2]), token_bits(3, [0, 1])
    choices = [
        plain.choice(0, (), first_two),
        banning.choice(0),
        banning.choice(0, (), first_two),
        Sampler(SamplingParams(0.0), banned=(0, 2)).choice(0),
    ]
    assert on_card.choose(choices) == [1, 0, 1, 1]
    assert not fetched
    # What may come alone comes, also where it was to be left out.
    choices = [plain.choice(0), banning.choice(0, (), only_last), biased.choice(0, (), first_two)]
    assert on_card.choose([*choices, plain.choice(0, (), only_last)]) == [2, 2, 0, 2]
    assert fetched == [1, 2]
    logits[0, 1] = np.nan
    with pytest.raises(NonFiniteError):
        on_card.choose([plain.choice(0, (), first_two)] * 4)


@pytest.mark.long
def test_a_large_vocabulary_is_searched_to_its_end(on_card: OnCard) -> None:
    logits = np.zeros((2, 200_003), np.float32)
    logits[0, -1] = 60
    logits[1, 131_072] = 50
    for choices in ([GREEDY] * 2, [PLAIN] * 2, [replace(PLAIN, top_k=9, top_p=0.9)] * 2):
        assert choose(on_card, logits, choices) == [200_002, 131_072]
