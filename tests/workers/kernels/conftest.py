"""Random inputs and ways to run the same call differently."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from workers import kernels

INSTRUCTION_SETS = ("avx512", "avx2", "neon", "baseline")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def same_bits_everywhere() -> Iterator[Callable[[Callable[[], tuple[Tensor, ...]]], None]]:
    """Checks that a call gives the same bits with every instruction set and any number of threads."""
    chosen = kernels.instruction_set()

    def check(call: Callable[[], tuple[Tensor, ...]]) -> None:
        expected = call()
        for name in INSTRUCTION_SETS:
            if not kernels.use_instruction_set(name):
                continue
            for threads in (1, 3):
                torch.set_num_threads(threads)
                for found, wanted in zip(call(), expected, strict=True):
                    assert torch.equal(found, wanted), f"{name}, {threads} threads"

    yield check
    kernels.use_instruction_set(chosen)
