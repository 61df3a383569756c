"""Ways to run the same call of a kernel differently; fixtures that two folders of tests import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers import kernels

INSTRUCTION_SETS = ("avx512vnni", "avx512", "avx2", "neondot", "neon", "baseline")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def same_bits_everywhere() -> Iterator[Callable[[Callable[[], tuple[Tensor | NDArray[Any], ...]]], None]]:
    """Checks that a call gives the same bits with every instruction set and any number of threads."""
    chosen = kernels.instruction_set()

    def check(call: Callable[[], tuple[Tensor | NDArray[Any], ...]]) -> None:
        expected = call()
        for name in INSTRUCTION_SETS:
            if not kernels.use_instruction_set(name):
                continue
            for threads in (1, 3):
                torch.set_num_threads(threads)
                for found, wanted in zip(call(), expected, strict=True):
                    assert torch.equal(torch.as_tensor(found), torch.as_tensor(wanted)), (
                        f"{name}, {threads} threads"
                    )

    yield check
    kernels.use_instruction_set(chosen)
