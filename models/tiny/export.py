"""Between the training net and the published checkpoint layout."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.tiny.config import TinyConfig
from models.tiny.net import TinyModel

WEIGHTS = "model.safetensors"


def published_tensors(model: TinyModel) -> Iterator[tuple[str, Tensor]]:
    """The model's tensors under their published names, linear weights [out, in].

    Args:
        model: its MTP layers follow the trunk's in the numbering.
    """
    for name, tensor in model.state_dict().items():
        yield from _published(name, tensor, model.config)


def _published(name: str, tensor: Tensor, config: TinyConfig) -> Iterator[tuple[str, Tensor]]:
    if name.startswith("lm_head"):
        yield name, tensor
        return
    if name.startswith("mtp."):
        _, k, rest = name.split(".", 2)
        rest = rest.removeprefix("block.")
        if rest.startswith("head"):
            part = "norm" if rest.startswith("head_norm") else "output"
            rest = f"transformer.shared_head.{part}.weight"
        yield f"model.layers.{config.num_hidden_layers + int(k)}.{rest}", tensor
        return
    name = f"model.{name}"
    if name.endswith("moe.w_in"):
        gate, up = tensor.transpose(1, 2).chunk(2, dim=1)
        yield name.replace("w_in", "gate_proj.weight"), gate
        yield name.replace("w_in", "up_proj.weight"), up
    elif name.endswith("moe.w_out"):
        yield name.replace("w_out", "down_proj.weight"), tensor.transpose(1, 2)
    else:
        yield name, tensor


def write_checkpoint(model: TinyModel, folder: Path) -> None:
    """Writes config.json and model.safetensors: bfloat16, router biases float32."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, tensor in published_tensors(model):
        dtype = torch.float32 if name.endswith("router_bias") else torch.bfloat16
        tensors[name] = tensor.detach().to(dtype).contiguous()
    partial = folder / f"{WEIGHTS}.partial"
    save_file(tensors, str(partial), metadata={"format": "pt"})
    partial.chmod(0o644)
    write_text(folder / "config.json", json.dumps(model.config.to_json(), indent=2) + "\n")
    partial.rename(folder / WEIGHTS)


def read_checkpoint(folder: Path) -> TinyModel:
    """The float32 model of a folder that `write_checkpoint` wrote."""
    model = TinyModel(TinyConfig.from_json(folder / "config.json"))
    stored = load_file(str(folder / WEIGHTS))
    state = {}
    for name, tensor in model.state_dict().items():
        parts = [stored[published].float() for published, _ in _published(name, tensor, model.config)]
        joined = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        state[name] = joined.transpose(1, 2) if name.endswith(("w_in", "w_out")) else joined
    model.load_state_dict(state)
    return model.eval()


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.rename(path)
