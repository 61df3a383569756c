"""What a sequence wants of its rows: penalties, biases, masks, and drafts that change nothing."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.sampling import Choice, LogitsInRam, Sampler, accepted, choose_in_ram, token_bits
from orchestrator.sampling_params import GREEDY, SamplingParams
from placement.errors import InputError, NonFiniteError
from tests.orchestrator.chi_square import p_value

VOCAB = 5


def row(*logits: float) -> np.ndarray:
    return np.array(logits, np.float32)


def softmax(logits: np.ndarray, temperature: float) -> np.ndarray:
    shares = np.exp(logits.astype(np.float64) / temperature)
    return shares / shares.sum(-1, keepdims=True)


def test_greedy_takes_the_lowest_of_equal_logits() -> None:
    assert choose_in_ram(row(0, 2, 1, 2), Sampler(GREEDY).choice(0)) == 1


def test_what_is_kept_of_banned_tokens_cannot_be_written_to() -> None:
    bits = Sampler(SamplingParams(0.0), banned=(1, 40)).choice(0).left_out(64)
    assert bits is not None
    assert bits.tolist() == [1 << 1, 1 << 8]
    with pytest.raises(ValueError, match="read-only"):
        bits[0] = 0


def test_banned_tokens_and_those_a_mask_leaves_out_are_never_chosen() -> None:
    logits = row(0, 9, 1, 8, 3)
    for params in (GREEDY, SamplingParams(5.0)):
        sampler = Sampler(params, banned=(1, 3))
        allowed = token_bits(VOCAB, (0, 1, 2))
        found = {choose_in_ram(logits, sampler.choice(at)) for at in range(200)}
        assert found == ({4} if params is GREEDY else {0, 2, 4})
        found = {choose_in_ram(logits, sampler.choice(at, allowed=allowed)) for at in range(200)}
        assert found == ({2} if params is GREEDY else {0, 2})
    assert logits[1] == 9


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="not finite"):
        choose_in_ram(row(0, bad, 1), Sampler(GREEDY).choice(0))


def test_penalties_count_the_answer_and_drafts_before_the_row() -> None:
    params = SamplingParams(0.0, presence_penalty=1.0, frequency_penalty=2.0, logit_bias=((4, 0.5),))
    sampler = Sampler(params, prompt=[1, 1])
    logits = row(0, 5, 4, 4, 0)

    def edited(choice: Choice) -> list[float]:
        assert choice.edits is not None
        found: list[float] = choice.edits.apply(logits).tolist()
        return found

    assert edited(sampler.choice(2)) == [0, 5, 4, 4, 0.5]
    sampler.note([1])
    assert edited(sampler.choice(3)) == [0, 2, 4, 4, 0.5]
    rows = sampler.choices(3, [1, 4])
    assert [edited(choice) for choice in rows] == [
        [0, 2, 4, 4, 0.5],
        [0, 0, 4, 4, 0.5],
        [0, 0, 4, 4, -2.5],
    ]
    assert edited(sampler.choice(3)) == [0, 2, 4, 4, 0.5]
    assert choose_in_ram(logits, rows[0]) == 2


def test_a_repetition_penalty_counts_the_prompt_too() -> None:
    sampler = Sampler(SamplingParams(0.0, repetition_penalty=2.0), prompt=[0, 1])
    sampler.note([2])
    choice = sampler.choice(3)
    assert choice.edits is not None
    assert choice.edits.apply(row(4, -4, 3, 3, 0)).tolist() == [2, -8, 1.5, 3, 0]


def test_rows_without_penalties_need_no_edits() -> None:
    sampler = Sampler(SamplingParams())
    sampler.note([1, 2])
    assert sampler.choice(2).is_plain


def test_drafts_are_accepted_up_to_the_first_other_choice() -> None:
    assert accepted([7], []) == [7]
    assert accepted([7, 8, 9], [7, 8]) == [7, 8, 9]
    assert accepted([7, 8, 9], [7, 5]) == [7, 8]
    assert accepted([7, 8, 9], [6, 8]) == [7]


@pytest.mark.parametrize("drafter_scale", [0.0, 1.0, 4.0])
def test_drafts_change_neither_the_tokens_nor_their_distribution(drafter_scale: float) -> None:
    """Of the first two tokens, for drafters from useless to confident and wrong."""
    random = np.random.default_rng(2)
    temperature, rounds = 0.8, 4_000
    # The verifier's later rows depend on the tokens before, as a model's do.
    first, second, third = (random.standard_normal((*shape, VOCAB)) for shape in ((), (VOCAB,), (VOCAB,)))
    first, second, third = (a.astype(np.float32) for a in (first, second, third))
    drafter = (random.standard_normal((2, VOCAB)) * drafter_scale).astype(np.float32)
    joint = Counter()
    num_accepted = 0
    for seed in range(rounds):
        sampler = Sampler(SamplingParams(temperature, seed=seed))
        drafts: list[int] = []
        for place in range(2):
            drafts.append(choose_in_ram(drafter[place], sampler.choice(place, drafts)))
        rows = LogitsInRam(torch.from_numpy(np.stack([first, second[drafts[0]], third[drafts[1]]])))
        tokens = accepted(rows.choose(sampler.choices(0, drafts)), drafts)
        num_accepted += len(tokens) - 1
        alone = [choose_in_ram(first, sampler.choice(0))]
        alone.append(choose_in_ram(second[alone[0]], sampler.choice(1)))
        assert tokens[:2] == alone[: len(tokens)]
        joint[alone[0], alone[1]] += 1
    expected = softmax(first, temperature)[:, None] * softmax(second, temperature)
    counts = [joint[a, b] for a in range(VOCAB) for b in range(VOCAB)]
    assert p_value(counts, expected.ravel() * rounds) > 0.001
    assert num_accepted > 0


def test_a_draft_from_the_verifiers_own_logits_is_always_accepted() -> None:
    logits = np.random.default_rng(4).standard_normal(VOCAB).astype(np.float32)
    for seed in range(200):
        sampler = Sampler(SamplingParams(seed=seed))
        draft = choose_in_ram(logits, sampler.choice(3))
        rows = LogitsInRam(torch.from_numpy(np.stack([logits, logits])))
        assert len(accepted(rows.choose(sampler.choices(3, [draft])), [draft])) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e39),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_p", 1.5),
        ("min_p", -0.5),
        ("seed", -1),
        ("seed", 2**64),
        ("repetition_penalty", 0.0),
        ("frequency_penalty", float("nan")),
        ("logit_bias", ((3, float("inf")),)),
    ],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^{name}.* is .*; expected a number from"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1.5}, "seed is 1.5; expected a whole number"),
        ({"top_k": 2.0}, "top_k is 2.0; expected a whole number"),
        ({"logit_bias": ((3, 1.0), (3, 2.0))}, "logit_bias has a token twice"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias has token -1; expected ids from 0"),
    ],
)
def test_settings_of_another_kind_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SamplingParams(**settings)


def test_biases_of_tokens_that_a_model_lacks_are_refused() -> None:
    params = SamplingParams(logit_bias=((5, 1.0),))
    params.check_tokens(6)
    with pytest.raises(InputError, match="logit_bias has token 5; expected ids from 0 to 4"):
        params.check_tokens(5)


def test_a_mask_that_leaves_no_token_is_no_damage_of_the_model() -> None:
    sampler = Sampler(SamplingParams(), banned=(1,))
    # What may come alone comes.
    assert choose_in_ram(row(0, 1, 2), sampler.choice(0, allowed=token_bits(3, (1,)))) == 1
    choice = sampler.choice(0, allowed=token_bits(3, ()))
    with pytest.raises(InputError, match="no token may come next"):
        choose_in_ram(row(0, 1, 2), choice)


def test_a_tiny_temperature_is_the_largest_logit() -> None:
    sampler = Sampler(SamplingParams(1e-300))
    assert {choose_in_ram(row(0, 2, 1), sampler.choice(at)) for at in range(50)} == {1}
