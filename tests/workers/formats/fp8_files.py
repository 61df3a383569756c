"""A published directory whose routed experts are FP8, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


def experts_in_fp8(directory: Path) -> Path:
    """Rewrite a directory of one file with stacked experts: e4m3, a scale for each square of 128 x 128."""
    tensors = load_file(directory / "model.safetensors")
    for name in [name for name in tensors if ".moe." in name and "_proj.weight" in name]:
        num, rows, columns = tensors[name].shape
        generator = torch.Generator().manual_seed(rows)
        scales = 0.01 * (0.5 + torch.rand(num, -(-rows // 128), -(-columns // 128), generator=generator))
        tensors[f"{name}_scale_inv"] = scales
        tensors[name] = (tensors[name].float() / spread(scales, rows, columns)).to(torch.float8_e4m3fn)
    save_file(tensors, directory / "model.safetensors")
    return directory


def spread(scales: Tensor, rows: int, columns: int) -> Tensor:
    """Each weight's scale: [..., rows, columns]."""
    return scales.repeat_interleave(128, -2).repeat_interleave(128, -1)[..., :rows, :columns]


def dequantised(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without FP8: float32 products of weights and scales."""
    found = {}
    for name, tensor in tensors.items():
        scales = tensors.get(f"{name}_scale_inv")
        if scales is not None:
            found[name] = tensor.float() * spread(scales, *tensor.shape[-2:])
        elif not name.endswith("_scale_inv"):
            found[name] = tensor
    return found
