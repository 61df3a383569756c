"""What the rest of a model is kept in, where only the experts' form is said."""

from __future__ import annotations

import pytest

from placement.errors import InputError
from placement.weight_format import head_bits_of, value_bytes_of


@pytest.mark.parametrize(
    ("quant", "bits"),
    [
        ("float32", 32),
        ("bfloat16", 16),
        ("BFLOAT16", 16),
        ("fp8", 16),  # its modules_to_not_convert lists all but the routed experts
        ("nvfp4", 16),
        ("q8", 8.5),
        ("q4", 4.5),
        ("q2", 4.5),
    ],
)
def test_the_heads_bits_are_those_of_published_files(quant: str, bits: float) -> None:
    assert head_bits_of(quant) == bits


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InputError, match="quantisation 'q1': expected float32, "):
        head_bits_of("q1")


def test_only_float32_weights_have_float32_caches() -> None:
    assert [value_bytes_of(quant) for quant in ("float32", "bfloat16", "fp8", "q4")] == [4, 2, 2, 2]
