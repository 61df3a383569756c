"""The float64 reference agrees with the runtime, and differences are what their names say."""

from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from benchmarks.plain_forward import PlainModel
from benchmarks.quality import Difference, divergence_bits, logits_of
from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from models.tiny.quantise import quantise
from orchestrator.session import load_local
from workers.formats.open_model import open_model

TOKENS = [int(token) for token in np.random.default_rng(2).integers(3, SMALL.vocab, 40)]
"""More than the sliding window."""


def test_float64_from_the_definition_is_the_runtimes_float32(tmp_path: Path) -> None:
    path = write_random_gguf(tmp_path / "m.gguf", SMALL, FileTypes.all_in("float32"))
    off = Difference.of(
        logits_of(load_local(open_model(path), torch.float32), TOKENS), PlainModel(path).logits(TOKENS)
    )
    assert off.most < 2e-6
    assert off.same == 1.0


@pytest.mark.parametrize("form", ["q8_0", "q4_k", "iq3_s"])
def test_rounded_activations_move_logits_by_per_cents_and_no_more(tmp_path: Path, form: str) -> None:
    path = write_random_gguf(tmp_path / "m.gguf", SMALL, FileTypes.all_in(form))
    off = Difference.of(
        logits_of(load_local(open_model(path), torch.float32), TOKENS), PlainModel(path).logits(TOKENS)
    )
    assert 1e-4 < off.median < 0.1


def test_divergence_is_the_textbooks() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25]]))
    reference = np.log(np.array([[0.25, 0.25, 0.5]]))
    wanted = 0.25 * math.log2(0.25 / 0.5) + 0.5 * math.log2(0.5 / 0.25)
    assert divergence_bits(logits, reference) == pytest.approx([wanted])
    assert divergence_bits(logits + 7, logits) == pytest.approx([0.0])


@pytest.mark.parametrize("kind", ["IQ4_NL", "Q4_0"])
def test_quantised_matrices_come_back_within_half_a_step(kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((8, 128), np.float32)
    values[3, :32] = 0
    stored = quantise(values, GGMLQuantizationType[kind])
    again = gguf.quants.dequantize(stored, GGMLQuantizationType[kind])
    assert stored.shape == (8, 128 // 32 * 18)
    assert not again[3, :32].any()
    # IQ4_NL's levels are nearer each other around 0, where most weights are.
    error = np.sqrt(np.square(again - values).mean())
    assert error < {"IQ4_NL": 0.085, "Q4_0": 0.1}[kind]
