"""GGUF files of small models, and the same model as a directory of dequantised values, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from workers.formats.gguf.names import published_name


def dequantised_checkpoint(path: Path, config_dir: Path, directory: Path) -> Path:
    """The directory that says what a GGUF file says: float32 values as the gguf library dequantises them.

    Args:
        config_dir: where the file was made from; its config.json is taken, for norms that hold the 1.
    """
    directory.mkdir(parents=True)
    tensors = {}
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        shape = tuple(reversed(tensor.shape.tolist()))
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        tensors[published_name(tensor.name)] = torch.from_numpy(np.array(values, np.float32))
    save_file(tensors, directory / "model.safetensors")
    config = json.loads((config_dir / "config.json").read_text()) | {"zero_centered": False}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def rewritten(
    source: Path, path: Path, added: Mapping[str, NDArray[np.float32]] = MappingProxyType({}), **changed: Any
) -> Path:
    """A copy of a GGUF file with other metadata.

    Args:
        added: tensors by name, besides the file's own.
        changed: key, dots as double underscores and without "step35." -> value; None leaves a key out.
    """
    reader = gguf.GGUFReader(source)
    changes = {_key(name): value for name, value in changed.items()}
    architecture = changes.pop("general.architecture", "step35")
    writer = gguf.GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = changes.pop(name, field.contents())
        if value is not None:
            _add(writer, name, value)
    for name, value in changes.items():
        if value is not None:
            _add(writer, name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, values in added.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _key(name: str) -> str:
    key = name.replace("__", ".")
    return key if key.startswith(("general.", "tokenizer.", "split.")) else f"step35.{key}"


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(name, value)
    else:
        writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
