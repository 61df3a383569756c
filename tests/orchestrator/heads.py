"""A whole model in this process, from a checkpoint directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.generate import GenerationParams, GenerationResult, generate
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.step35 import Step35Model
from orchestrator.session import load_local
from workers.formats.open_model import open_model


def load_model(model_dir: Path, dtype: torch.dtype = torch.float32) -> Step35Model:
    """Head and all experts of a checkpoint, in this process."""
    return load_local(open_model(model_dir), dtype)


def hidden_states(model: Step35Model, token_ids: Sequence[int], chunk_size: int | None = None) -> Tensor:
    """Trunk rows of one sequence, float32 [num_tokens, hidden], computed in chunks."""
    cache = model.new_cache()
    chunks = torch.tensor(token_ids).split(chunk_size or len(token_ids))
    return torch.cat([model.forward(chunk, [SequenceSlice(cache, len(chunk))]) for chunk in chunks])


def generate_with_hidden(
    model: Step35Model, prompt: Sequence[int], params: GenerationParams
) -> tuple[GenerationResult, Tensor]:
    """Result and the trunk's rows of every position that became part of the sequence."""
    rows: list[Tensor] = []
    result = generate(model, prompt, params, on_hidden=lambda part: rows.append(part.clone()))
    return result, torch.cat(rows)
