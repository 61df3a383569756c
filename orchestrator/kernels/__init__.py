"""The head's own row-invariant CPU kernels: attention, linear layers, norms, activations, the router.

They are in the workers' compiled library (`workers.kernels`, which says what it promises): both kinds of
kernel have the same dot products, compiled once for each instruction set, and one switch for all.

Activations are contiguous float32 tensors on the CPU, weights contiguous float32 or bfloat16 (bfloat16 widens
exactly). Every function returns new tensors or arrays and uses `torch.get_num_threads()` threads.
Shapes: T rows (tokens), H hidden, I intermediate, E experts, k chosen experts a token.
"""

from __future__ import annotations

from orchestrator.kernels.attention import AttentionHeads, PassRows, Rotation, SequenceRows, attention
from orchestrator.kernels.choosing import choose_token
from orchestrator.kernels.dense import dense_ffn, exp, linear, rms_norm, sigmoid, swiglu
from orchestrator.kernels.routing import route_top_k

__all__ = [
    "AttentionHeads",
    "PassRows",
    "Rotation",
    "SequenceRows",
    "attention",
    "choose_token",
    "dense_ffn",
    "exp",
    "linear",
    "rms_norm",
    "route_top_k",
    "sigmoid",
    "swiglu",
]
