"""Random layers of experts in any forms, as a checkpoint gives them, and rows for them."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from placement.weight_format import ExpertFormat, WeightFormat
from tests.workers.quantised import sized_blocks
from transport.expert_rows import ExpertRows
from transport.rounded_hidden import RoundedHidden
from workers.formats.checkpoint import Expert, StoredMatrix
from workers.kernels import round_rows
from workers.kernels.expert_matrices import TORCH_DTYPES
from workers.model_config import Step35Config


@functools.cache
def matrix(form: WeightFormat, rows: int, columns: int, seed: int) -> StoredMatrix:
    """Random weights that spread by 1 / sqrt(columns)."""
    rng = np.random.default_rng(seed)
    std = columns**-0.5
    scales = None
    if form.scale_tile:
        data = torch.from_numpy(rng.standard_normal((rows, columns)).astype(np.float32))
        data = data.to(torch.float8_e4m3fn).view(torch.uint8)
        shape = (-(-rows // form.scale_tile), -(-columns // form.scale_tile))
        scales = torch.from_numpy(std * rng.uniform(0.5, 2, shape).astype(np.float32))
    elif form in TORCH_DTYPES:
        data = torch.from_numpy(std * rng.standard_normal((rows, columns)).astype(np.float32))
        data = data.to(TORCH_DTYPES[form])
    else:
        data = torch.from_numpy(sized_blocks(form, rows, columns, seed, std))
    return StoredMatrix(f"blk.{form.name}", form, rows, columns, data, scales)


@dataclass
class RandomExperts:
    """A checkpoint that has nothing but experts, in the forms of each layer."""

    forms: dict[int, ExpertFormat]
    path: Path = field(default=Path("random.gguf"))

    def expert_format(self, layer: int, config: Step35Config) -> ExpertFormat:
        return self.forms[layer]

    def expert(self, layer: int, expert: int, config: Step35Config) -> Expert:
        H, I = config.hidden_size, config.moe_intermediate_size  # noqa: E741
        forms, seed = self.forms[layer], 1000 * layer + 3 * expert
        return (
            matrix(forms.gate, I, H, seed),
            matrix(forms.up, I, H, seed + 1),
            matrix(forms.down, H, I, seed + 2),
        )

    def release(self) -> None:
        pass

    def check_unchanged(self) -> None:
        pass


def random_rows(
    config: Step35Config,
    num_rows: int,
    seed: int,
    *,
    hidden: str = "float32",
    absent: float = 0.2,
    held: list[int] | None = None,
) -> ExpertRows:
    """Rows of normal numbers.

    Args:
        hidden: float32, bfloat16, or the blocks that they come rounded in, such as "32,256".
        held: what ids are of; all experts where left out.
    """
    rng = np.random.default_rng(seed)
    experts = np.arange(config.moe_num_experts) if held is None else np.array(held)
    top_k = min(config.moe_top_k, len(experts))
    x = rng.standard_normal((num_rows, config.hidden_size), dtype=np.float32)
    ids = np.stack([rng.permutation(experts)[:top_k] for _ in range(num_rows)]).astype(np.int32)
    values: np.ndarray | RoundedHidden = x
    if hidden == "bfloat16":
        values = (x.view(np.uint32) >> 16).astype(np.uint16)
    elif hidden != "float32":
        values = round_rows(x, tuple(map(int, hidden.split(","))))
    return ExpertRows(
        values,
        np.where(rng.random(ids.shape) < absent, np.int32(-1), ids),
        rng.random(ids.shape, dtype=np.float32),
        # The finest grids are left by some outputs.
        rng.choice(np.array([-23, -29, -40], np.int32), num_rows),
    )
