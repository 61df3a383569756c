"""The kernel table counts every type's multiplications, and says what is absent."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.ggml_matmul import Ggml
from benchmarks.kernel_table import Bench, random_matrix, row
from benchmarks.port_bound import least_s, multiplications, multiply_rates
from placement.weight_format import FORMATS, Q4_K
from workers.kernels import instruction_set

QUANTISED = [name for name, form in FORMATS.items() if form.rounding_block]


@pytest.mark.parametrize("form", QUANTISED)
def test_every_type_is_counted_and_vnni_multiplies_no_more_than_avx2(form: str) -> None:
    """How many there are is counted by hand: that no type was forgotten is all that can be held here."""
    avx2 = sum(multiplications(form, "avx2").values())
    assert avx2 == sum(multiplications(form, "avx512").values()) > 8
    assert sum(multiplications(form, "avx512vnni").values()) <= avx2
    assert multiplications(form, "baseline") == {}


def test_the_bound_is_the_sum_of_what_the_instructions_take() -> None:
    assert least_s("q6_k", "avx2", {"vpmaddubsw": 2e9, "vpmaddwd": 1e9}) == pytest.approx(8 / 2e9 + 5 / 1e9)
    assert least_s("q6_k", "avx2", {}) == 0.0


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_the_multipliers_of_this_processor_are_timed() -> None:
    rates = multiply_rates(instruction_set())
    assert set(rates) == {name for form in QUANTISED for name in multiplications(form, instruction_set())}
    assert all(1e7 < rate < 1e11 for rate in rates.values())


def test_a_folder_without_libraries_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMACPP_BIN", raising=False)
    assert Ggml.find(tmp_path) is None
    assert Ggml.find(None) is None


def test_a_line_has_what_can_be_known_without_llama_cpp_and_a_compiler() -> None:
    cells = row(random_matrix(Q4_K, 4096, 256), torch.randn(2, 256), 1e-6, Bench(1, 1e10, {}, None)).split()
    assert cells[:3] == ["q4_k", "256", "2"]
    assert len(cells) == 12
    assert all(float(cell.rstrip("%")) >= 0 for cell in cells[3:])
