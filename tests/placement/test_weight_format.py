"""What the rest of a model is kept in, where only the experts' form is said."""

from __future__ import annotations

import pytest

from placement.errors import InputError
from placement.weight_format import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    FORMATS,
    FP8_E4M3,
    Q8_0,
    ExpertFormat,
    WeightFormat,
    head_bits_of,
    planned_format,
    run_dtype_of,
)


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


@pytest.mark.parametrize("form", FORMATS.values(), ids=lambda form: form.name)
def test_bits_of_a_weight_count_its_share_of_the_scales(form: WeightFormat) -> None:
    assert form.matrix_bytes(256, 512) == 256 * 512 * form.bits / 8


def test_fp8_is_one_form_by_any_name() -> None:
    assert planned_format("FP8") is planned_format("fp8_e4m3") is FP8_E4M3
    assert ExpertFormat.of_name("fp8") == ExpertFormat.of(FP8_E4M3)
    # 128 x 128 weights of a byte, and one float32.
    assert FP8_E4M3.matrix_bytes(129, 129) == 129 * 129 + 4 * 4


def test_an_unknown_form_is_refused() -> None:
    with pytest.raises(InputError, match="quantisation 'q1': expected float32, "):
        head_bits_of("q1")


@pytest.mark.parametrize(
    ("name", "meant"), [("Q4_K_S", "q4"), ("q6_k_l", "q6"), ("float", "float32"), ("nvpf4", "nvfp4")]
)
def test_an_unknown_form_is_answered_with_the_one_that_is_near(name: str, meant: str) -> None:
    with pytest.raises(InputError, match=rf"quantisation '{name}' \(is {meant} meant\?\): expected float32"):
        planned_format(name)


def test_only_float32_weights_run_in_float32() -> None:
    found = [run_dtype_of(quant) for quant in ("float32", "bfloat16", "fp8", "q4")]
    assert found == ["float32", "bfloat16", "bfloat16", "bfloat16"]


def test_forms_of_an_expert_have_a_name_and_back() -> None:
    mixed = ExpertFormat(Q8_0, Q8_0, FLOAT16)
    assert mixed.name == "q8_0/q8_0/float16"
    assert ExpertFormat.of_name(mixed.name) == mixed
    assert ExpertFormat.of_name("bfloat16") == ExpertFormat.of(BFLOAT16)
    for wrong in ("nvfp4", "q8_0/q8_0", "q8_0/q8_0/", "", "float32/nvfp4/float32"):
        with pytest.raises(InputError, match=r"experts in .* expected float32"):
            ExpertFormat.of_name(wrong)


def test_what_the_kernels_widen_exactly_is_kept_as_stored() -> None:
    assert [form.kept_as(FLOAT32) for form in (FLOAT32, BFLOAT16, FLOAT16)] == [FLOAT32, BFLOAT16, FLOAT16]
    assert [form.kept_as(BFLOAT16) for form in (FLOAT32, BFLOAT16, FLOAT16)] == [BFLOAT16, BFLOAT16, FLOAT16]


def test_unquantised_experts_may_be_converted_and_quantised_ones_not() -> None:
    mixed, half, plain = ExpertFormat(Q8_0, Q8_0, FLOAT16), ExpertFormat.of(FLOAT16), ExpertFormat.of(FLOAT32)
    assert all(form.gives(form) for form in (mixed, half, plain))
    assert half.gives(plain)
    assert plain.gives(ExpertFormat.of(BFLOAT16))
    assert mixed.gives(ExpertFormat(Q8_0, Q8_0, BFLOAT16))
    assert not mixed.gives(half)
    assert not plain.gives(half)
    assert not half.gives(ExpertFormat.of(Q8_0))
