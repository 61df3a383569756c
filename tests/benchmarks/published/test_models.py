"""Shapes and sizes of published models, beside what their makers and files say."""

from __future__ import annotations

import pytest

from benchmarks.published.models import file_form, published_model
from placement.errors import InputError
from placement.model_shape import STEP_3_5_FLASH

# (all, active for a token) in thousand millions, by the makers' cards. The active ones count lm_head and not
# the embedding, or both, as it pleases a card.
PARAMETERS = {
    "gpt-oss-120b": (116.8, 5.1),
    "gpt-oss-20b": (20.9, 3.6),
    "qwen3-235b-a22b": (235.1, 22.0),
    "qwen3-30b-a3b": (30.5, 3.3),
    "glm-4.5-air": (106.9, 12.0),
    "glm-4.5": (352.8, 32.0),
    "minimax-m2": (228.7, 10.0),
    "mixtral-8x7b": (46.7, 12.9),
    "mixtral-8x22b": (140.6, 39.2),
    "llama-4-scout": (107.8, 17.0),
    "llama-4-maverick": (400.7, 17.0),
    "deepseek-v3": (671.0, 37.0),
}
# Bytes of files, as llama.cpp prints them.
FILES = {
    ("gpt-oss-120b", "MXFP4"): 63.37e9,
    ("gpt-oss-20b", "MXFP4"): 12.10e9,
    ("qwen3-30b-a3b", "Q8_0"): 32.48e9,
    ("qwen3-30b-a3b", "Q4_K_M"): 18.56e9,
    ("qwen3-235b-a22b", "Q8_0"): 249.9e9,
    ("step-3.5-flash", "Q4_K_S"): 111e9,
    ("minimax-m2", "Q3_K_M"): 109.3e9,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_of_the_makers(name: str) -> None:
    shape = published_model(name)
    total, active = PARAMETERS[name]
    experts = shape.num_routed_experts * shape.expert_parameters
    assert (shape.trunk_head_parameters + experts) / 1e9 == pytest.approx(total, rel=0.01)
    chosen = shape.num_moe_layers * shape.top_k * shape.expert_parameters
    with_output = (shape.head_read_parameters + chosen) / 1e9
    without = with_output - shape.lm_head_parameters / 1e9
    assert without * 0.97 <= active <= (with_output + shape.embedding_parameters / 1e9) * 1.03


@pytest.mark.parametrize(("model", "quant"), FILES)
def test_files_are_as_large_as_they_are(model: str, quant: str) -> None:
    assert file_form(quant).total_bytes(published_model(model)) == pytest.approx(
        FILES[model, quant], rel=0.04
    )


def test_a_stated_size_scales_all_bits_alike() -> None:
    shape, form = published_model("glm-4.5-air"), file_form("Q4_K_M")
    scaled = form.scaled_to(shape, 80e9)
    assert scaled.total_bytes(shape) == pytest.approx(80e9, rel=0.01)
    assert scaled.output / scaled.experts == pytest.approx(form.output / form.experts)
    assert form.scaled_to(shape, None) == form


def test_a_built_in_model_is_the_built_in_one() -> None:
    assert published_model("step-3.5-flash") == STEP_3_5_FLASH


@pytest.mark.parametrize(("find", "field"), [(published_model, "model"), (file_form, "quant")])
def test_an_unknown_name_is_told_with_those_that_are_known(find, field: str) -> None:
    with pytest.raises(InputError, match=f"{field} 'gpt-9'.*models.yaml"):
        find("gpt-9")
