"""Random GGUF files: what the library reads back, and that the runtime loads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from benchmarks.random_blocks import TYPES, ggml_type, random_blocks
from benchmarks.random_gguf import (
    SMALL,
    FileTypes,
    expert_types,
    file_config,
    file_tensors,
    write_random_gguf,
)
from orchestrator.generate import GenerationParams, generate
from orchestrator.session import load_local
from placement.weight_format import FORMATS
from workers.formats.open_model import open_model

MIXED = FileTypes(
    (("q4_k", "q4_k", "q5_k"), ("iq3_s", "iq3_s", "iq4_xs")), head="q8_0", output="q6_k", embedding="q4_k"
)


@pytest.mark.parametrize("form", TYPES)
def test_weights_have_the_size_asked_for_and_are_centred(form: str) -> None:
    blocks = random_blocks(form, 4096, 0.02, np.random.default_rng(0))
    weights = gguf.quants.dequantize(blocks, ggml_type(form)).astype(np.float64)
    assert np.isfinite(weights).all()
    # MXFP4 has powers of two alone.
    assert weights.std() == pytest.approx(0.02, rel=0.5 if form == "mxfp4" else 0.05)
    assert abs(weights.mean()) < 0.003  # Q4_0 goes from -8 to 7


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
    config, _ = open_model(path)
    wanted = file_config(SMALL)
    assert config.shape("m") == wanted.shape("m")
    assert [(layer.rope_theta, layer.rotary_dim) for layer in config.layers] == [
        (layer.rope_theta, layer.rotary_dim) for layer in wanted.layers
    ]


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    types = FileTypes.all_in("q8_0")
    contents = []
    for seed in (3, 3, 4):
        contents.append(write_random_gguf(tmp_path / "m.gguf", SMALL, types, seed=seed).read_bytes())
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("form", sorted(set(TYPES) & set(FORMATS)))
def test_the_runtime_generates_from_a_file_of_any_form(tmp_path: Path, form: str) -> None:
    path = write_random_gguf(tmp_path / "m.gguf", SMALL, FileTypes.all_in(form))
    result = generate(
        load_local(path, torch.float32), [3, 4, 5], GenerationParams(max_tokens=3, mtp=2, ignore_eos=True)
    )
    assert len(result.token_ids) == 3


def test_rows_that_are_no_whole_blocks_are_refused(tmp_path: Path) -> None:
    shape = replace(SMALL, expert_width=320)
    with pytest.raises(ValueError, match=r"ffn_down_exps\.weight: rows of 320 are no blocks of 256"):
        write_random_gguf(tmp_path / "m.gguf", shape, FileTypes.all_in("q4_k"))
    assert not list(tmp_path.iterdir())


def test_forms_are_spelled_as_the_command_line_says() -> None:
    assert expert_types("q4_k,q4_k/q4_k/q5_k") == (("q4_k",) * 3, ("q4_k", "q4_k", "q5_k"))
