"""GGUF files of small models, and the same model as a directory of dequantised values, for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
        if name not in changes:
            _add(writer, name, field.contents(), field)
        elif changes[name] is not None:
            _add(writer, name, changes[name])
        changes.pop(name, None)
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


def without(source: Path, path: Path, *names: str) -> Path:
    """A copy of a GGUF file that lacks some tensors."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, "step35")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            _add(writer, name, field.contents(), field)
    _write(writer, [tensor for tensor in reader.tensors if tensor.name not in names])
    return path


def in_parts(source: Path, stem: Path, count: int, **changed: Any) -> list[Path]:
    """A file's model in `count` files, as llama-gguf-split writes them: all metadata in the first.

    Args:
        changed: keys of the last part, dots as double underscores and without "step35.": of `split.` with
            another value, others that it has besides.
    """
    reader = gguf.GGUFReader(source)
    paths = [stem.with_name(f"{stem.name}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "step35")
        keys = {"split.no": number, "split.count": count, "split.tensors.count": len(reader.tensors)}
        if number == count - 1:
            keys |= {_key(name): value for name, value in changed.items()}
        writer.add_uint16("split.no", keys["split.no"])
        writer.add_uint16("split.count", keys["split.count"])
        writer.add_int32("split.tensors.count", keys["split.tensors.count"])
        if number == 0:
            for name, field in reader.fields.items():
                if not name.startswith("GGUF.") and name != "general.architecture":
                    _add(writer, name, field.contents(), field)
        elif number == count - 1:
            for name, value in changed.items():
                if not name.startswith("split__"):
                    _add(writer, _key(name), value)
        _write(writer, reader.tensors[number::count])
    return paths


def trunk_and_mtp(source: Path, folder: Path, num_trunk: int) -> tuple[Path, Path]:
    """A combined file's trunk, as `--no-mtp` converts it, and its MTP layers, as `--mtp` does."""
    reader = gguf.GGUFReader(source)
    paths = folder / "model.gguf", folder / "mtp-model.gguf"
    for path, is_mtp in zip(paths, (False, True), strict=True):
        writer = gguf.GGUFWriter(path, "step35")
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name == "general.architecture":
                continue
            value = field.contents()
            if not is_mtp:
                if name == "step35.nextn_predict_layers":
                    continue
                if name == "step35.block_count":
                    value = num_trunk
                elif name.startswith("step35.") and isinstance(value, list):
                    value = value[:num_trunk]
            _add(writer, name, value, field)
        _write(writer, [t for t in reader.tensors if _in_file(t.name, num_trunk, is_mtp=is_mtp)])
    return paths


def _in_file(name: str, num_trunk: int, *, is_mtp: bool) -> bool:
    if not name.startswith("blk."):
        return True
    return (int(name.split(".")[1]) >= num_trunk) == is_mtp


def _write(writer: gguf.GGUFWriter, tensors: Sequence[Any]) -> None:
    for tensor in tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _key(name: str) -> str:
    key = name.replace("__", ".")
    return key if key.startswith(("general.", "tokenizer.", "split.")) else f"step35.{key}"


def _add(writer: gguf.GGUFWriter, name: str, value: Any, field: gguf.ReaderField | None = None) -> None:
    """`field`: of the file that the key was in, whose types are kept; guessed from the value without one."""
    if field is not None:
        writer.add_key_value(name, value, field.types[0], sub_type=field.types[-1])
    elif isinstance(value, list):
        writer.add_array(name, value)
    else:
        writer.add_key_value(name, value, gguf.GGUFValueType.get_type(value))
