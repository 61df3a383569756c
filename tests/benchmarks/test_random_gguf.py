"""Random GGUF files: what the library reads back, and that the runtime loads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import typer

from benchmarks.plain_forward import PlainModel
from benchmarks.quality import Difference, logits_of
from benchmarks.random_gguf import (
    SMALL,
    FileTypes,
    expert_types,
    file_config,
    file_tensors,
    write_random_gguf,
)
from orchestrator.generate import GenerationParams, generate
from orchestrator.model.rope import inverse_frequencies
from orchestrator.session import load_local
from placement.weight_format import FORMATS
from workers.formats.open_model import load_config, open_model
from workers.probe.random_blocks import TYPES, ggml_type, random_blocks, scale_places

ONE_MOE_LAYER = replace(SMALL, moe_layers=1)
MIXED = FileTypes(
    (("q4_k", "q4_k", "q5_k"), ("iq3_s", "iq3_s", "iq4_xs")), head="q8_0", output="q6_k", embedding="q4_k"
)


@pytest.mark.parametrize("form", TYPES)
def test_weights_have_the_size_asked_for_and_are_centred(form: str) -> None:
    blocks = random_blocks(form, 4096, 0.02, np.random.default_rng(0))
    weights = gguf.quants.dequantize(blocks, ggml_type(form)).astype(np.float64)
    assert np.isfinite(weights).all()
    # MXFP4's scales are powers of two alone.
    nearest = 2**0.5 if form == "mxfp4" else 1.02
    assert 0.02 / nearest <= weights.std() <= 0.02 * nearest
    # These have one level more below zero than above.
    lopsided = form in ("q4_0", "q5_0", "q3_k", "q6_k", "iq4_nl", "iq4_xs")
    assert abs(weights.mean()) < (0.15 if lopsided else 0.02) * weights.std()
    assert len(np.unique(blocks, axis=0)) > 0.9 * len(blocks) or form in ("float16", "bfloat16")


@pytest.mark.parametrize("form", sorted(set(TYPES) - {"float32", "float16", "bfloat16"}))
def test_scales_lie_where_the_table_says(form: str) -> None:
    """Twice as large a scale, and minimum, makes every weight of a block twice as large."""
    blocks = random_blocks(form, 4, 0.02, np.random.default_rng(1))
    expected = 2 * gguf.quants.dequantize(blocks, ggml_type(form))
    if form == "mxfp4":
        blocks[:, 0] += 1
    for place in scale_places(form):
        halves = blocks[:, place : place + 2].copy().view(np.float16)
        blocks[:, place : place + 2] = (2 * halves).view(np.uint8)
    assert np.array_equal(gguf.quants.dequantize(blocks, ggml_type(form)), expected)


def test_the_library_reads_what_was_asked_for(tmp_path: Path) -> None:
    path = write_random_gguf(tmp_path / "mixed.gguf", SMALL, MIXED)
    found = {
        t.name: (tuple(reversed(t.shape.tolist())), t.tensor_type) for t in gguf.GGUFReader(path).tensors
    }
    found.pop("rope_freqs.weight")
    assert found == {t.name: (t.shape, ggml_type(t.form)) for t in file_tensors(SMALL, MIXED)}
    assert found["blk.1.ffn_down_exps.weight"][1].name == "Q5_K"
    assert found["blk.2.ffn_gate_exps.weight"][1].name == "IQ3_S"
    assert found["blk.3.ffn_down_exps.weight"][1].name == "Q5_K"


def test_a_file_says_the_configuration_it_was_written_for(tmp_path: Path) -> None:
    path = write_random_gguf(tmp_path / "plain.gguf", SMALL, FileTypes.all_in("q8_0"))
    found, wanted = load_config(path), file_config(SMALL)
    # A file has the number in float32, and leaves what there is to its tensors.
    assert found.rms_norm_eps == np.float32(wanted.rms_norm_eps)
    left_open = {"rms_norm_eps": 0.0, "use_moe_router_bias": None, "use_head_wise_attn_gate": None}
    assert replace(found, **left_open, layers=()) == replace(wanted, **left_open, layers=())
    plain = [[replace(layer, rope_scaling=None) for layer in config.layers] for config in (found, wanted)]
    assert plain[0] == plain[1]
    for layer, expected in zip(found.layers, wanted.layers, strict=True):
        angles = [
            inverse_frequencies(one.rope_theta, one.rotary_dim, one.rope_scaling) for one in (layer, expected)
        ]
        assert np.allclose(*angles, rtol=1e-6, atol=0)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    types = FileTypes.all_in("q8_0")
    contents = []
    for seed in (3, 3, 4):
        contents.append(write_random_gguf(tmp_path / "m.gguf", SMALL, types, seed=seed).read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("form", TYPES)
def test_the_runtime_computes_what_the_library_reads(tmp_path: Path, form: str) -> None:
    """Of any form: float64 on the dequantised weights, but for the rounding of activations."""
    path = write_random_gguf(tmp_path / "m.gguf", ONE_MOE_LAYER, FileTypes.all_in(form))
    head, prompt = load_local(open_model(path), torch.float32), [3, 4, 5, 6, 7]
    off = Difference.of(logits_of(head, prompt), PlainModel(path).logits(prompt))
    # Other weights, or other scales, would be about 1 off.
    assert off.median < (0.1 if FORMATS[form].rounding_block else 2e-6)
    plain, drafted = (
        generate(head, prompt, GenerationParams(max_tokens=4, mtp=drafts, ignore_eos=True))
        for drafts in (0, 3)
    )
    assert plain.token_ids == drafted.token_ids
    assert drafted.drafted > 0


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    shape = replace(SMALL, expert_width=320)
    with pytest.raises(ValueError, match=r"ffn_down_exps\.weight: rows of 320 are no blocks of 256"):
        write_random_gguf(tmp_path / "m.gguf", shape, FileTypes.all_in("q4_k"))
    assert not list(tmp_path.iterdir())


def test_forms_are_spelled_as_the_command_line_says() -> None:
    assert expert_types("q4_k,q4_k/q4_k/q5_k") == (("q4_k",) * 3, ("q4_k", "q4_k", "q5_k"))
    with pytest.raises(typer.BadParameter, match="experts in 'q4_k/q5_k': expected one, or gate/up/down"):
        expert_types("q4_k/q5_k")
    with pytest.raises(typer.BadParameter, match="experts in 'q9': expected"):
        expert_types("q4_k,q9")
