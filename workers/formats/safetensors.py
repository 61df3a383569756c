"""A Hugging Face model directory: one safetensors file or several with an index, read by slices."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from placement.errors import CheckpointError
from workers.model_config import Step35Config

INDEX_NAME = "model.safetensors.index.json"
READABLE_TYPES = ("BF16", "F32", "F16")

# Some files name the trunk's tensors below this prefix instead of "model.".
NESTED_PREFIX = "model.language_model."


class Checkpoint:
    """Tensors by their published names, memory-mapped: only what is asked for is read.

    A name below "model." also finds the tensor below "model.language_model.".
    """

    def __init__(self, model_dir: Path, files: Mapping[str, str]) -> None:
        self.model_dir = model_dir
        self._files = dict(files)
        self._handles: dict[str, Any] = {}

    @classmethod
    def open(cls, model_dir: str | Path) -> Checkpoint:
        """Find a model's files and check that each is whole.

        Raises:
            CheckpointError: no files, a shard of the index is missing or truncated, or a shard lacks a
                tensor that the index puts there. The message names the file.
        """
        model_dir = Path(model_dir)
        if not model_dir.is_dir():
            raise CheckpointError(f"{model_dir} is not a directory: expected a Hugging Face model directory")
        index = model_dir / INDEX_NAME
        if index.exists():
            files = _read_index(index)
        else:
            found = sorted(path.name for path in model_dir.glob("*.safetensors"))
            if len(found) != 1:
                raise CheckpointError(
                    f"{model_dir} has {len(found)} safetensors files and no {INDEX_NAME}: expected one file, "
                    "or several and the index; check that the model was downloaded completely"
                )
            files = {}
            for name in _open_shard(model_dir / found[0]).keys():  # noqa: SIM118, not a mapping
                files[name] = found[0]
            return cls(model_dir, files)
        held: dict[str, set[str]] = {}
        for name, file in files.items():
            if file not in held:
                held[file] = set(_open_shard(model_dir / file).keys())
            if name not in held[file]:
                raise CheckpointError(
                    f"{model_dir / file} lacks tensor {name}, which {INDEX_NAME} expects there: "
                    "the files belong to different versions, download the model again"
                )
        return cls(model_dir, files)

    @property
    def names(self) -> list[str]:
        """Tensor names as written in the files."""
        return list(self._files)

    def has(self, name: str) -> bool:
        """Whether the tensor exists, also below the nested prefix."""
        return self._resolve(name) is not None

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of one whole tensor in `dtype`.

        Raises:
            CheckpointError: no such tensor, or it is stored in a type that cannot be read.
        """
        view = self._slice(name)[...]
        return torch.empty(view.shape, dtype=dtype).copy_(view)

    def expert(self, layer: int, expert: int, config: Step35Config) -> tuple[Tensor, Tensor, Tensor]:
        """One routed expert's matrices: gate [I, H], up [I, H], down [H, I].

        They are views of the mapped file in the file's dtype: copy what is to stay, and drop the views
        before `release`.

        Raises:
            CheckpointError: a matrix is missing or not of the configuration's shape.
        """
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        gate = self._expert_matrix(layer, expert, "gate_proj", (inner, hidden), config)
        up = self._expert_matrix(layer, expert, "up_proj", (inner, hidden), config)
        down = self._expert_matrix(layer, expert, "down_proj", (hidden, inner), config)
        return gate, up, down

    def release(self) -> None:
        """Unmap the files. Reading maps them again; what was read so far stops counting as memory."""
        self._handles.clear()

    def _resolve(self, name: str) -> str | None:
        for candidate in (name, NESTED_PREFIX + name.removeprefix("model.")):
            if candidate in self._files:
                return candidate
        return None

    def _slice(self, name: str) -> Any:
        resolved = self._resolve(name)
        if resolved is None:
            raise CheckpointError(
                f"{self.model_dir} has no tensor {name}: check that all of the model's files were downloaded "
                "and that config.json belongs to them"
            )
        file = self._files[resolved]
        handle = self._handles.get(file)
        if handle is None:
            handle = self._handles[file] = _open_shard(self.model_dir / file)
        view = handle.get_slice(resolved)
        if view.get_dtype() not in READABLE_TYPES:
            raise CheckpointError(
                f"{self.model_dir / file}: tensor {resolved} is stored as {view.get_dtype()}, expected "
                f"{' or '.join(READABLE_TYPES)}: use an unquantised checkpoint"
            )
        return view

    def _expert_matrix(
        self, layer: int, expert: int, part: str, shape: tuple[int, int], config: Step35Config
    ) -> Tensor:
        prefix = f"model.layers.{layer}.moe"
        stacked = f"{prefix}.{part}.weight"
        if self.has(stacked):
            return self._view(stacked, (config.moe_num_experts, *shape), expert)
        for single in (f"{prefix}.experts.{expert}.{part}.weight", f"{prefix}.{expert}.{part}.weight"):
            if self.has(single):
                return self._view(single, shape, ...)
        raise CheckpointError(
            f"{self.model_dir} has no {part} of expert {expert} of layer {layer}: expected tensor {stacked}, "
            "or one tensor an expert; check that all of the model's files were downloaded"
        )

    def _view(self, name: str, expected: tuple[int, ...], key: int | EllipsisType) -> Tensor:
        view = self._slice(name)
        found = tuple(view.get_shape())
        if found != expected:
            raise CheckpointError(
                f"{self.model_dir}: tensor {name} has shape {list(found)}, expected {list(expected)}: "
                "config.json and the weights belong to different models"
            )
        tensor: Tensor = view[key]
        return tensor


def _open_shard(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: download the model's files again") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}): download it again"
        ) from None


def _read_index(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is not a safetensors index with a weight_map: {error!r}") from None
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in weight_map.values()
    ):
        raise CheckpointError(f"{path}: weight_map must give each tensor a file name in the same directory")
    return weight_map
