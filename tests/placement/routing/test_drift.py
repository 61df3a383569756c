"""The drift test keeps its false-alarm rate on real documents and sees real drift."""

from __future__ import annotations

import numpy as np
import pytest

from placement.errors import InputError
from placement.routing.drift import drift_test
from tests.placement.real_routing import olmoe_documents


@pytest.mark.parametrize("domain", ["general", "coding"])
def test_false_alarms_are_as_rare_as_stated(domain: str) -> None:
    documents = olmoe_documents(domain)
    rng = np.random.default_rng(1)
    alarms = 0
    for seed in range(200):
        order = rng.permutation(len(documents))
        result = drift_test(
            documents[order[:30]],
            documents[order[30:45]],
            false_alarm_rate=0.05,
            num_permutations=39,
            seed=seed,
        )
        alarms += result.drifted
    # 200 tests at 5% give 10; at most 18 in 99% of runs.
    assert alarms <= 18


def test_a_fifth_of_other_traffic_is_seen() -> None:
    general, coding = olmoe_documents("general"), olmoe_documents("coding")
    mixed = np.concatenate([general[50:66], coding[:4]])
    result = drift_test(general[:50], mixed)
    assert result.drifted
    assert not drift_test(general[:50], general[50:70]).drifted


def test_another_domain_is_as_sure_as_permutations_can_be() -> None:
    result = drift_test(olmoe_documents("general")[:20], olmoe_documents("coding")[:20])
    assert result.p_value == pytest.approx(1 / 1000)


def test_equal_documents_are_no_drift() -> None:
    documents = np.tile(np.arange(1, 9), (6, 2, 1))
    assert drift_test(documents, documents, false_alarm_rate=0.05, num_permutations=99).p_value == 1


def test_documents_of_any_length_count_by_their_tokens() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(20, 400, 60)
    documents = np.stack([[rng.multinomial(n, np.full(16, 1 / 16))] for n in lengths])
    assert not drift_test(documents[:30], documents[30:], false_alarm_rate=0.01).drifted


@pytest.mark.parametrize(
    ("sizes", "options", "message"),
    [
        ((2, 2), {"false_alarm_rate": 0.01}, "split in 6 ways, too few"),
        ((20, 20), {"false_alarm_rate": 0.001, "num_permutations": 99}, "needs at least 999 permutations"),
        ((20, 20), {"false_alarm_rate": 1.5}, "found 1.5"),
    ],
)
def test_what_cannot_be_told_is_refused(
    sizes: tuple[int, int], options: dict[str, float], message: str
) -> None:
    documents = olmoe_documents("general")
    with pytest.raises(InputError, match=message):
        drift_test(documents[: sizes[0]], documents[sizes[0] : sum(sizes)], **options)  # type: ignore[arg-type]


def test_models_must_match() -> None:
    with pytest.raises(InputError, match="of one model"):
        drift_test(np.ones((20, 2, 4), dtype=int), np.ones((20, 2, 5), dtype=int))


def test_a_thousand_documents_can_be_split_in_more_ways_than_a_float_counts() -> None:
    counts = np.ones((520, 1, 2), dtype=np.int64)
    assert drift_test(counts, counts, false_alarm_rate=0.5, num_permutations=3).p_value == 1.0


@pytest.mark.parametrize("rate", [float("nan"), 0.0, 2.0])
def test_a_rate_that_is_none_is_named(rate: float) -> None:
    counts = np.ones((9, 1, 2), dtype=np.int64)
    with pytest.raises(InputError, match="false-alarm rate: expected between 0 and 1"):
        drift_test(counts, counts, false_alarm_rate=rate)
