"""Speed of the native kernels beside a plain read of the same bytes and beside torch.

    python -m benchmarks.kernels [--threads N] [--instruction-set avx2]

With one thread, times are processor time, so that a busy machine disturbs them less; with more they are wall
time. The floor of a decode step is the plain read: every weight has to come from memory once.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from orchestrator import kernels  # before torch: it sets what torch reads when loaded

# isort: split
import numpy as np
import torch
from gguf import GGMLQuantizationType
from gguf.quants import quantize

from benchmarks.timing import best_s, read_rate
from placement.weight_format import FORMATS
from transport.expert_rows import ExpertRows
from workers.kernels import (
    ExpertMatrices,
    ExpertWeights,
    instruction_set,
    moe_partial_sum,
    use_instruction_set,
)

HIDDEN, INTERMEDIATE = 4096, 11264
EXPERTS, EXPERT_INTERMEDIATE, TOP_K = 24, 1280, 8
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def decode() -> None:
    """One to eight rows against weights far larger than the caches."""
    weight = torch.randn(INTERMEDIATE, HIDDEN) * 0.02
    narrow = weight.bfloat16()
    read = read_rate() / 1e9
    print(f"plain read: {read:.1f} GB/s")
    print("rows  float32 GB/s  share   bfloat16 GB/s  share   torch float32 GB/s")
    for rows in (1, 2, 4, 8):
        x = torch.randn(rows, HIDDEN)
        wide_rate = weight.nbytes / best_s(partial(kernels.linear, x, weight)) / 1e9
        narrow_rate = narrow.nbytes / best_s(partial(kernels.linear, x, narrow)) / 1e9
        torch_rate = weight.nbytes / best_s(partial(torch.mm, x, weight.T)) / 1e9
        print(
            f"{rows:>4}  {wide_rate:12.1f}  {wide_rate / read:5.0%}"
            f"  {narrow_rate:14.1f}  {narrow_rate / read:5.0%}  {torch_rate:19.1f}"
        )


def prefill() -> None:
    """Many rows: arithmetic decides."""
    weight = torch.randn(HIDDEN, HIDDEN) * 0.02
    narrow = weight.bfloat16()
    print("\nrows  float32 GFLOP/s  bfloat16 GFLOP/s  torch float32 GFLOP/s  share of torch")
    for rows in (32, 128, 512):
        x = torch.randn(rows, HIDDEN)
        operations = 2 * rows * HIDDEN * HIDDEN / 1e9
        wide = operations / best_s(partial(kernels.linear, x, weight))
        half = operations / best_s(partial(kernels.linear, x, narrow))
        mm = operations / best_s(partial(torch.mm, x, weight.T))
        print(f"{rows:>4}  {wide:15.1f}  {half:16.1f}  {mm:21.1f}  {wide / mm:14.2f}")


def experts(form: str) -> None:
    """The routed experts' sum at Step-3.5's sizes, top 8 of a few experts."""
    gate = torch.randn(EXPERTS, EXPERT_INTERMEDIATE, HIDDEN) * 0.02
    slots = torch.arange(EXPERTS, dtype=torch.int32)
    wide, flipped, tall = (in_form(form, matrix) for matrix in (gate, gate.flip(0), gate.transpose(1, 2)))
    held = ExpertWeights(slots, wide, flipped, tall, limit=0.0, top_k=TOP_K)
    print(f"\nexperts in {form}")
    print("rows  experts touched  ms      GB/s of expert weights  GFLOP/s   ms as a message lies")
    for rows in (1, 4, 64, 256):
        x = torch.randn(rows, HIDDEN)
        received = torch.empty(x.numel() + 4)[4:].view_as(x).copy_(x)  # 16 bytes behind a cache line's start
        ids = torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(rows)]).int()
        asked = ExpertRows(
            x.numpy(), ids.numpy(), torch.rand(rows, TOP_K).numpy(), np.full(rows, -23, np.int32)
        )
        seconds = best_s(partial(moe_partial_sum, held, asked))
        as_received = asked._replace(hidden=received.numpy())
        received_s = best_s(partial(moe_partial_sum, held, as_received))
        touched = len(set(ids.flatten().tolist()))
        parameters = 3 * HIDDEN * EXPERT_INTERMEDIATE
        rate = touched * held.held_bytes / EXPERTS / seconds / 1e9
        speed = 2 * rows * TOP_K * parameters / seconds / 1e9
        wanted = f"{rows:>4}  {touched:>15}  {seconds * 1e3:6.1f}  {rate:22.1f}  {speed:7.1f}"
        print(f"{wanted}  {received_s * 1e3:21.1f}")


def in_form(form: str, matrix: torch.Tensor) -> ExpertMatrices:
    """[n, rows, columns] float32 in one of the kernels' forms."""
    if form in DTYPES:
        return ExpertMatrices.of(matrix.to(DTYPES[form]).contiguous())
    blocks = quantize(matrix.contiguous().numpy(), GGMLQuantizationType[form.upper()])
    return ExpertMatrices(FORMATS[form], matrix.shape[1], matrix.shape[2], torch.from_numpy(blocks))


def calls() -> None:
    """What one call costs when there is next to nothing to compute."""
    x, weight, norm = torch.randn(1, 16), torch.randn(16, 16), torch.randn(16)
    number = 10_000

    def many(call: Callable[[], object]) -> float:
        def repeat() -> None:
            for _ in range(number):
                call()

        return best_s(repeat) / number * 1e6

    print(f"\nlinear 1 x 16 x 16: {many(lambda: kernels.linear(x, weight)):.1f} us a call")
    print(f"torch.mm:           {many(lambda: torch.mm(x, weight)):.1f} us a call")
    print(f"rms_norm 1 x 16:    {many(lambda: kernels.rms_norm(x, norm, 1e-5, True)):.1f} us a call")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--instruction-set", default=instruction_set())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not use_instruction_set(arguments.instruction_set):
        parser.error(f"this machine has no {arguments.instruction_set}")
    print(f"{instruction_set()}, {arguments.threads} threads")
    with torch.inference_mode():
        decode()
        prefill()
        for form in FORMATS:
            experts(form)
        calls()


if __name__ == "__main__":
    main()
