"""A Hugging Face model directory: one safetensors file or several with an index, read by slices."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from placement.errors import CheckpointError
from placement.files.input_file import open_input
from placement.files.json_file import expect_object, read_json
from placement.files.quote import quote
from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, ExpertFormat
from workers.formats.checkpoint import StoredMatrix
from workers.model_config import Step35Config

INDEX_NAME = "model.safetensors.index.json"
# A tensor for each expert of a model many times the size of any there is.
MOST_INDEX_BYTES = 128_000_000
MOST_INDEX_VALUES = 4_000_000
MOST_FILE_NAME = 120
_FORMS = {"BF16": BFLOAT16, "F32": FLOAT32, "F16": FLOAT16}

# Some files name the trunk's tensors below this prefix instead of "model.".
_NESTED_PREFIX = "model.language_model."


class SafetensorsCheckpoint:
    """Tensors by their published names, memory-mapped: only what is asked for is read.

    One below "model.language_model." goes by its name below "model.", and an lm_head there by its own.
    `stored`: by that name, the name in the file.
    """

    def __init__(self, path: Path, files: Mapping[str, str]) -> None:
        """`files`: stored name of each tensor -> file name."""
        self.path = path
        self._files = dict(files)
        # Where both are there the plain one counts.
        self.stored = {_plain(name): name for name in files}
        self.stored |= {name: name for name in files if name in self.stored}
        self._handles: dict[str, Any] = {}

    @classmethod
    def open(cls, model_dir: str | Path) -> SafetensorsCheckpoint:
        """Find a model's files and check that each is whole.

        What the files' own headers list counts, also where the index leaves it out. A file that the index
        does not name takes part if it shares no tensor with the others: MTP layers may come in one.

        Raises:
            CheckpointError: no files, a shard of the index is missing or truncated, a shard lacks a tensor
                that the index puts there, or two shards have the same tensor. The message names the file.
        """
        model_dir = Path(model_dir)
        if not os.path.isdir(model_dir):
            raise CheckpointError(f"{model_dir} is not a directory: expected a Hugging Face model directory")
        found = sorted(path.name for path in model_dir.glob("*.safetensors"))
        index = model_dir / INDEX_NAME
        if not os.path.lexists(index):
            if len(found) != 1:
                raise CheckpointError(
                    f"{model_dir} has {len(found)} safetensors files and no {INDEX_NAME}: expected one file, "
                    "or several and the index; check that the model was downloaded completely"
                )
            return cls(model_dir, dict.fromkeys(_held(model_dir / found[0]), found[0]))
        listed = _read_index(index)
        shards = sorted(set(listed.values()))
        files: dict[str, str] = {}
        for file in shards:
            for name in _held(model_dir / file):
                if name in files:
                    raise CheckpointError(
                        f"{model_dir / file} has tensor {quote(name)}, and so has {files[name]}: "
                        "expected it in one of them; download the model again"
                    )
                files[name] = file
        for name, file in listed.items():
            if files.get(name) != file:
                raise CheckpointError(
                    f"{model_dir / file} lacks tensor {quote(name)}, which {INDEX_NAME} expects there: "
                    "the files belong to different versions, download the model again"
                )
        for file in found:
            if file not in shards:
                held = _held(model_dir / file)
                if not any(name in files for name in held):
                    files |= dict.fromkeys(held, file)
        return cls(model_dir, files)

    def has(self, name: str) -> bool:
        """Whether the tensor exists."""
        return name in self.stored

    def has_below(self, prefix: str) -> bool:
        """Whether any tensor's name starts so."""
        return any(name.startswith(prefix) for name in self.stored)

    def tensor(self, name: str, dtype: torch.dtype) -> Tensor:
        """A copy of one whole tensor in `dtype`.

        Raises:
            CheckpointError: no such tensor, or it is stored in a type that cannot be read.
        """
        view = self._slice(name)[...]
        return torch.empty(view.shape, dtype=dtype).copy_(view)

    def expert_format(self, layer: int, config: Step35Config) -> ExpertFormat:
        """See `Checkpoint.expert_format`; the first expert stands for all, `expert` tells each one's own."""
        gate, up, down = self.expert(layer, 0, config)
        return ExpertFormat(gate.form, up.form, down.form)

    def expert(
        self, layer: int, expert: int, config: Step35Config
    ) -> tuple[StoredMatrix, StoredMatrix, StoredMatrix]:
        """See `Checkpoint.expert`."""
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        gate = self._expert_matrix(layer, expert, "gate_proj", (inner, hidden), config)
        up = self._expert_matrix(layer, expert, "up_proj", (inner, hidden), config)
        down = self._expert_matrix(layer, expert, "down_proj", (hidden, inner), config)
        return gate, up, down

    def release(self) -> None:
        """Unmap the files. Reading maps them again; what was read so far stops counting as memory."""
        self._handles.clear()

    def _slice(self, name: str) -> Any:
        stored = self.stored.get(name)
        if stored is None:
            raise CheckpointError(
                f"{self.path} has no tensor {name}: check that all of the model's files were downloaded "
                "and that config.json belongs to them"
            )
        file = self._files[stored]
        handle = self._handles.get(file)
        if handle is None:
            handle = self._handles[file] = _open_shard(self.path / file)
        view = handle.get_slice(stored)
        if view.get_dtype() not in _FORMS:
            raise CheckpointError(
                f"{self.path / file}: tensor {stored} is stored as {view.get_dtype()}, expected "
                f"{' or '.join(_FORMS)}: use an unquantised checkpoint"
            )
        return view

    def _expert_matrix(
        self, layer: int, expert: int, part: str, shape: tuple[int, int], config: Step35Config
    ) -> StoredMatrix:
        prefix = f"model.layers.{layer}.moe"
        stacked = f"{prefix}.{part}.weight"
        if self.has(stacked):
            return self._view(stacked, (config.moe_num_experts, *shape), expert)
        for single in (f"{prefix}.experts.{expert}.{part}.weight", f"{prefix}.{expert}.{part}.weight"):
            if self.has(single):
                return self._view(single, shape, ...)
        raise CheckpointError(
            f"{self.path} has no {part} of expert {expert} of layer {layer}: expected tensor {stacked}, "
            "or one tensor an expert; check that all of the model's files were downloaded"
        )

    def _view(self, name: str, expected: tuple[int, ...], key: int | EllipsisType) -> StoredMatrix:
        view = self._slice(name)
        found = tuple(view.get_shape())
        if found != expected:
            raise CheckpointError(
                f"{self.path}: tensor {name} has shape {list(found)}, expected {list(expected)}: "
                "config.json and the weights belong to different models"
            )
        rows, columns = expected[-2:]
        return StoredMatrix(name, _FORMS[view.get_dtype()], rows, columns, view[key])


def _plain(stored: str) -> str:
    """The published name of a tensor that may be stored below the nested prefix."""
    if not stored.startswith(_NESTED_PREFIX):
        return stored
    inner = stored.removeprefix(_NESTED_PREFIX)
    return inner if inner.startswith("lm_head.") else f"model.{inner}"


def _open_shard(path: Path) -> Any:
    # The library waits for a pipe's writer.
    with open_input(path, CheckpointError, "a safetensors file of the model: download it again"):
        pass
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({quote(str(error))}): download it again"
        ) from None


def _held(path: Path) -> list[str]:
    """Names of the tensors in a file."""
    names: Iterable[str] = _open_shard(path).keys()
    return list(names)


def _read_index(path: Path) -> dict[str, str]:
    """Tensor name -> file name."""
    expected = "a safetensors index with a weight_map: download it again"
    document = read_json(
        path, CheckpointError, expected, most_bytes=MOST_INDEX_BYTES, most_values=MOST_INDEX_VALUES
    )
    weight_map = expect_object(document, CheckpointError, str(path)).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{path}: weight_map is {quote(weight_map)}; expected {expected}")
    for name, file in weight_map.items():
        if not (
            isinstance(file, str)
            and 0 < len(file) <= MOST_FILE_NAME
            and file.isprintable()
            and Path(file).name == file
        ):
            raise CheckpointError(
                f"{path}: weight_map puts {quote(name)} into {quote(file)}, expected the name of a file in "
                "the same directory"
            )
    return weight_map
