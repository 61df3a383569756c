"""A Hugging Face model directory: one safetensors file or several with an index, memory-mapped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from placement.errors import CheckpointError
from placement.files.file_identity import FileIdentity
from placement.files.input_file import open_input
from placement.files.json_file import expect_object, read_json
from placement.files.quote import quote
from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, FP8_E4M3, ExpertFormat, WeightFormat
from workers.formats.checkpoint import Expert, StoredMatrix
from workers.formats.dequantise import float32_matrix
from workers.model_config import Step35Config

INDEX_NAME = "model.safetensors.index.json"
# A tensor for each expert of a model many times the size of any there is.
MOST_INDEX_BYTES = 128_000_000
MOST_INDEX_VALUES = 4_000_000
MOST_FILE_NAME = 120
_FORMS = {"BF16": BFLOAT16, "F32": FLOAT32, "F16": FLOAT16, "F8_E4M3": FP8_E4M3}
_READABLE = "float32, bfloat16, float16, or FP8 (e4m3) with weight_scale_inv; GGUF files have more"
# Behind the names of FP8 weights "….weight": a float32 for each square of 128 x 128.
_SCALES = "_scale_inv"
# What ends the names of tensors beside weights that other quantisations packed.
_OTHER_QUANTISATIONS = {
    ".weight_scale_2": "NVFP4",
    ".weight_packed": "int4 of compressed-tensors",
    ".qweight": "int4 of GPTQ or AWQ",
    "_blocks": "MXFP4",
}

# Some files name the trunk's tensors below this prefix instead of "model.".
_NESTED_PREFIX = "model.language_model."


class SafetensorsCheckpoint:
    """Tensors by their published names, memory-mapped: only what is asked for is read.

    One below "model.language_model." goes by its name below "model.", and an lm_head there by its own.
    `stored`: by that name, the name in the file. Scales of FP8 weights belong to those and are not listed.
    """

    notes: Sequence[str] = ()

    def __init__(self, path: Path, files: Mapping[str, _Shard]) -> None:
        """`files`: stored name of each tensor -> the file it is in.

        Raises:
            CheckpointError: the weights are quantised in a way that does not load; names a tensor.
        """
        self.path = path
        self._files = dict(files)
        # Where both are there the plain one counts.
        stored = {_plain(name): name for name in files}
        stored |= {name: name for name in files if name in stored}
        for name in stored.values():
            _refuse_other_quantisation(files[name], name)
        self._scales = {
            name: stored[name + _SCALES]
            for name, found in stored.items()
            if name + _SCALES in stored and files[found].type_of(found) == "F8_E4M3"
        }
        of_weights = set(self._scales.values())
        self.stored = {name: found for name, found in stored.items() if found not in of_weights}
        self._experts_of_layer: tuple[int, list[Expert]] | None = None

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
            shard = _Shard(model_dir / found[0])
            return cls(model_dir, dict.fromkeys(shard.names, shard))
        listed = _read_index(index)
        shards = sorted(set(listed.values()))
        files: dict[str, _Shard] = {}
        for file in shards:
            shard = _Shard(model_dir / file)
            for name in shard.names:
                if name in files:
                    raise CheckpointError(
                        f"{shard.path} has tensor {quote(name)}, and so has {files[name].path.name}: "
                        "expected it in one of them; download the model again"
                    )
                files[name] = shard
        for name, file in listed.items():
            if name not in files or files[name].path.name != file:
                raise CheckpointError(
                    f"{model_dir / file} lacks tensor {quote(name)}, which {INDEX_NAME} expects there: "
                    "the files belong to different versions, download the model again"
                )
        for file in found:
            if file not in shards:
                shard = _Shard(model_dir / file)
                if not any(name in files for name in shard.names):
                    files |= dict.fromkeys(shard.names, shard)
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
        view, form = self._view(name)
        values = torch.empty(view.shape, dtype=dtype)
        if form != FP8_E4M3:
            return values.copy_(view)
        stack = view if view.ndim > 2 else view[None]
        scales = self._scales_of(name, view.shape).view(len(stack), -1, -(-view.shape[-1] // 128))
        for to, data, own in zip(values.view(stack.shape), stack, scales, strict=True):
            rows, columns = data.shape
            to.copy_(float32_matrix(StoredMatrix(name, form, rows, columns, data, own)))
        return values

    def matrix(self, name: str) -> StoredMatrix:
        """See `Checkpoint.matrix`."""
        view, form = self._view(name)
        if view.ndim != 2:
            raise CheckpointError(
                f"{self.path}: tensor {self.stored[name]} has shape {list(view.shape)}, expected a matrix: "
                "config.json and the weights belong to different models"
            )
        scales = self._scales_of(name, view.shape) if form == FP8_E4M3 else None
        rows, columns = view.shape
        return StoredMatrix(self.stored[name], form, rows, columns, view, scales)

    def expert_format(self, layer: int, config: Step35Config) -> ExpertFormat:
        """See `Checkpoint.expert_format`; the first expert stands for all, `expert` tells each one's own."""
        gate, up, down = self.expert(layer, 0, config)
        return ExpertFormat(gate.form, up.form, down.form)

    def expert(self, layer: int, expert: int, config: Step35Config) -> Expert:
        """See `Checkpoint.expert`."""
        if self._experts_of_layer is not None and self._experts_of_layer[0] == layer:
            return self._experts_of_layer[1][expert]
        hidden, inner = config.hidden_size, config.moe_intermediate_size
        shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
        if not any(self.has(_stacked(layer, part)) for part in shapes):
            gate, up, down = (self._single(layer, expert, part, shape) for part, shape in shapes.items())
            return gate, up, down
        stacks = []
        for part, shape in shapes.items():
            name = _stacked(layer, part)
            view, form = self._view(name)
            self._check_shape(name, view, (config.moe_num_experts, *shape))
            stacks.append(self._matrices(name, view, form))
        self._experts_of_layer = layer, list(zip(*stacks, strict=True))
        return self._experts_of_layer[1][expert]

    def check_unchanged(self) -> None:
        """See `Checkpoint.check_unchanged`."""
        for shard in set(self._files.values()):
            shard.check_unchanged()

    def release(self) -> None:
        """See `Checkpoint.release`."""
        self._experts_of_layer = None
        for shard in set(self._files.values()):
            shard.release()

    def _view(self, name: str) -> tuple[Tensor, WeightFormat]:
        """A whole tensor without a copy: bytes where it is FP8; and its form."""
        stored = self.stored.get(name)
        if stored is None:
            raise CheckpointError(
                f"{self.path} has no tensor {name}: check that all of the model's files were downloaded "
                "and that config.json belongs to them"
            )
        shard = self._files[stored]
        form = _FORMS.get(shard.type_of(stored))
        if form is None:
            raise CheckpointError(
                f"{shard.path}: tensor {stored} is stored as {shard.type_of(stored)}, expected {_READABLE}"
            )
        view = shard.tensor(stored)
        return (view.view(torch.uint8) if form == FP8_E4M3 else view), form

    def _scales_of(self, name: str, shape: Sequence[int]) -> Tensor:
        """float32 [..., ceil(rows / 128), ceil(columns / 128)] of an FP8 tensor of `shape`."""
        if len(shape) < 2:
            raise CheckpointError(
                f"{self.path}: tensor {self.stored[name]} is FP8 of shape {list(shape)}, expected a matrix"
            )
        tile = FP8_E4M3.scale_tile
        expected = [*shape[:-2], *(-(-size // tile) for size in shape[-2:])]
        stored = self._scales.get(name)
        if stored is None:
            raise CheckpointError(
                f"{self.path}: tensor {self.stored[name]} is FP8 and has no scales; expected a tensor "
                f"{self.stored[name]}{_SCALES} of shape {expected}"
            )
        shard = self._files[stored]
        found = shard.tensor(stored)
        if list(found.shape) != expected or found.dtype is not torch.float32:
            raise CheckpointError(
                f"{shard.path}: tensor {stored} is {shard.type_of(stored)} of shape {list(found.shape)}, "
                f"expected F32 of {expected}: a scale for each square of {tile} x {tile} weights"
            )
        return found

    def _matrices(self, name: str, stack: Tensor, form: WeightFormat) -> list[StoredMatrix]:
        """The matrices of a stack [n, rows, columns]."""
        num, rows, columns = stack.shape
        scales: Sequence[Tensor | None] = [None] * num
        if form == FP8_E4M3:
            scales = self._scales_of(name, stack.shape).unbind(0)
        return [
            StoredMatrix(self.stored[name], form, rows, columns, data, own)
            for data, own in zip(stack.unbind(0), scales, strict=True)
        ]

    def _single(self, layer: int, expert: int, part: str, shape: tuple[int, int]) -> StoredMatrix:
        """Of an expert whose matrices are tensors of their own."""
        prefix = f"model.layers.{layer}.moe"
        for name in (f"{prefix}.experts.{expert}.{part}.weight", f"{prefix}.{expert}.{part}.weight"):
            if self.has(name):
                matrix = self.matrix(name)
                self._check_shape(name, matrix.data, shape)
                return matrix
        raise CheckpointError(
            f"{self.path} has no {part} of expert {expert} of layer {layer}: expected tensor "
            f"{_stacked(layer, part)}, or one tensor an expert; check that all of the model's files were "
            "downloaded"
        )

    def _check_shape(self, name: str, found: Tensor, expected: tuple[int, ...]) -> None:
        if tuple(found.shape) != expected:
            raise CheckpointError(
                f"{self.path}: tensor {self.stored[name]} has shape {list(found.shape)}, expected "
                f"{list(expected)}: config.json and the weights belong to different models"
            )


class _Shard:
    """One safetensors file, mapped when its tensors are first asked for."""

    def __init__(self, path: Path) -> None:
        """Read the header and check that the file is whole; raises CheckpointError."""
        self.path = path
        self._handle: Any = None
        # The library waits for a pipe's writer.
        with open_input(path, CheckpointError, "a safetensors file of the model: download it again") as file:
            self._identity = FileIdentity.of(file.fileno())
        handle = self._open()
        self._types = {name: str(handle.get_slice(name).get_dtype()) for name in handle.keys()}  # noqa: SIM118

    @property
    def names(self) -> Iterable[str]:
        """Of the tensors in the file."""
        return self._types

    def type_of(self, name: str) -> str:
        """A tensor's type as the file calls it, such as BF16."""
        return self._types[name]

    def tensor(self, name: str) -> Tensor:
        """A view of a tensor.

        Raises:
            CheckpointError: the file is not the one any more that was opened, or of a type torch lacks.
        """
        if self._handle is None:
            self.check_unchanged()
            self._handle = self._open()
        view: Tensor = self._handle.get_tensor(name)
        return view

    def check_unchanged(self) -> None:
        """Raises CheckpointError where the path leads to another file, or one that was written to."""
        self._identity.check(self.path, self.path, CheckpointError)

    def release(self) -> None:
        """Let go; the file stays mapped while there are views."""
        self._handle = None

    def _open(self) -> Any:
        try:
            return safe_open(self.path, framework="pt")
        except (SafetensorError, OSError, MemoryError) as error:
            raise CheckpointError(
                f"{self.path} is truncated or not a safetensors file ({quote(str(error))}): download it again"
            ) from None


def _stacked(layer: int, part: str) -> str:
    """The name of a matrix of all experts of a layer in one tensor."""
    return f"model.layers.{layer}.moe.{part}.weight"


def _refuse_other_quantisation(shard: _Shard, name: str) -> None:
    for ending, kind in _OTHER_QUANTISATIONS.items():
        if name.endswith(ending):
            raise CheckpointError(
                f"{shard.path}: tensor {quote(name)} belongs to weights in {kind}; expected {_READABLE}"
            )


def _plain(stored: str) -> str:
    """The published name of a tensor that may be stored below the nested prefix."""
    if not stored.startswith(_NESTED_PREFIX):
        return stored
    inner = stored.removeprefix(_NESTED_PREFIX)
    return inner if inner.startswith("lm_head.") else f"model.{inner}"


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
