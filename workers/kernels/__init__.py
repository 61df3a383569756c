"""Row-invariant CPU kernels: a row's bits depend on that row and the weights alone.

They do not depend on the other rows of the call, the number of threads, the instruction set, or how a
prompt was cut into chunks. `native_body.h` says how: a fixed order for every sum, its own exponential.

The routed experts' weights are in any form of the kernels' table (`weights.h`, `ffn.h`), their rows numpy
arrays (`ExpertRows`). Every function returns new arrays or tensors and uses `torch.get_num_threads()`
threads.
The compiled library has the head's kernels too, which `orchestrator.kernels` calls.
Shapes: T rows (tokens), H hidden, I intermediate, E experts, k chosen experts a token.
"""

from __future__ import annotations

from workers.kernels.expert_matrices import ExpertMatrices, ExpertWeights
from workers.kernels.matrix import Matrices, Matrix
from workers.kernels.moe import grid_to_float32, moe_partial_sum, round_rows, row_exponents
from workers.kernels.native import instruction_set, use_instruction_set
from workers.partial_sum import ExpertNotHeld

__all__ = [
    "ExpertMatrices",
    "ExpertNotHeld",
    "ExpertWeights",
    "Matrices",
    "Matrix",
    "grid_to_float32",
    "instruction_set",
    "moe_partial_sum",
    "round_rows",
    "row_exponents",
    "use_instruction_set",
]
