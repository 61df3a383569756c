"""Documents are counted apart, and their spread is found again."""

from __future__ import annotations

import numpy as np
import pytest

from placement.errors import InputError
from placement.given.stats import count_experts
from placement.routing.documents import count_documents, design_effect, even_lengths, fit_concentration
from tests.placement.real_routing import olmoe_documents


def test_documents_add_up_to_the_whole() -> None:
    trace = np.random.default_rng(0).integers(0, 9, (50, 3, 2))
    documents = count_documents(trace, [10, 25, 15], 9)
    assert np.array_equal(documents.sum(axis=0), count_experts(trace, 9))
    assert np.array_equal(documents[1], count_experts(trace[10:35], 9))


@pytest.mark.parametrize("lengths", [[50, 1], [49], [], [51, -1]])
def test_lengths_must_add_up(lengths: list[int]) -> None:
    with pytest.raises(InputError, match="adding up to 50 tokens"):
        count_documents(np.zeros((50, 3, 2), dtype=int), lengths, 9)


def test_a_text_is_cut_into_even_blocks() -> None:
    assert even_lengths(10, 3) == [3, 3, 4]
    assert even_lengths(2, 3) == [2]
    with pytest.raises(InputError, match="block_tokens"):
        even_lengths(10, 0)


@pytest.mark.parametrize(("domain", "published"), [("general", 130), ("coding", 680)])
def test_real_documents_spread_as_published(domain: str, published: float) -> None:
    assert fit_concentration(olmoe_documents(domain)) == pytest.approx(published, rel=0.06)


@pytest.mark.parametrize("concentration", [20.0, 300.0])
def test_a_known_concentration_is_found_again(concentration: float) -> None:
    rng = np.random.default_rng(0)
    mean = rng.dirichlet(np.full(32, 2.0), size=8)
    shares = np.stack([[rng.dirichlet(concentration * row) for row in mean] for _ in range(200)])
    documents = np.stack([[rng.multinomial(200, row) for row in document] for document in shares])
    assert fit_concentration(documents) == pytest.approx(concentration, rel=0.1)


def test_independent_tokens_have_no_spread_of_documents() -> None:
    documents = np.tile(np.full((1, 2, 4), 25), (10, 1, 1))
    assert fit_concentration(documents) == float("inf")
    assert design_effect(512, float("inf")) == 1


def test_one_document_says_nothing_about_spread() -> None:
    with pytest.raises(InputError, match="at least two"):
        fit_concentration(olmoe_documents("general")[:1])
