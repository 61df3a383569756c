"""The safetensors files of a Hugging Face model directory: one, or several with an index.

Listing what is in them loads no torch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from safetensors import SafetensorError, safe_open

from placement.errors import CheckpointError, ModelFilesFailed
from placement.files.file_identity import FileIdentity
from placement.files.input_file import open_input
from placement.files.json_file import expect_object, read_json
from placement.files.quote import quote
from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, FP8_E4M3

if TYPE_CHECKING:
    from torch import Tensor

INDEX_NAME = "model.safetensors.index.json"
# A tensor for each expert of a model many times the size of any there is.
MOST_INDEX_BYTES = 128_000_000
MOST_INDEX_VALUES = 4_000_000
MOST_FILE_NAME = 120
FP8 = "F8_E4M3"
FORMS = {"BF16": BFLOAT16, "F32": FLOAT32, "F16": FLOAT16, FP8: FP8_E4M3}
READABLE = "float32, bfloat16, float16, or FP8 (e4m3) with weight_scale_inv; GGUF files have more"
# Behind the names of FP8 weights "….weight": a float32 for each square of 128 x 128.
SCALES = "_scale_inv"
# What ends the names of tensors beside weights that other quantisations packed.
_OTHER_QUANTISATIONS = {
    ".weight_scale_2": "NVFP4",
    ".weight_packed": "int4 of compressed-tensors",
    ".qweight": "int4 of GPTQ or AWQ",
    "_blocks": "MXFP4",
}

# Some files name the trunk's tensors below this prefix instead of "model.".
_NESTED_PREFIX = "model.language_model."


def find_shards(model_dir: Path) -> dict[str, Shard]:
    """Stored name of each tensor of a model's directory -> the file it is in; each file is seen to be whole.

    What the files' own headers list counts, also where the index leaves it out. A file that the index
    does not name takes part if it shares no tensor with the others: MTP layers may come in one.

    Raises:
        CheckpointError: no files, a shard of the index is missing or truncated, a shard lacks a tensor
            that the index puts there, or two shards have the same tensor. The message names the file.
    """
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
        shard = Shard(model_dir / found[0])
        return dict.fromkeys(shard.names, shard)
    listed = _read_index(index)
    shards = sorted(set(listed.values()))
    files: dict[str, Shard] = {}
    for file in shards:
        shard = Shard(model_dir / file)
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
            shard = Shard(model_dir / file)
            if not any(name in files for name in shard.names):
                files |= dict.fromkeys(shard.names, shard)
    return files


class PublishedNames(NamedTuple):
    """Names in a directory's files by published name: of its tensors, and of the scales of FP8 weights.

    Scales belong to their weights and are no tensors of their own.
    """

    stored: dict[str, str]
    scales: dict[str, str]


def published_names(shards: Mapping[str, Shard]) -> PublishedNames:
    """What a directory's files have, by the names of the published checkpoint.

    One below "model.language_model." goes by its name below "model.", and an lm_head there by its own. Where
    both are there the plain one counts.

    Raises:
        CheckpointError: the weights are quantised in a way that does not load; names a tensor.
    """
    stored = {_plain(name): name for name in shards}
    stored |= {name: name for name in shards if name in stored}
    for name in stored.values():
        _refuse_other_quantisation(shards[name], name)
    scales = {
        name: stored[name + SCALES]
        for name, found in stored.items()
        if name + SCALES in stored and shards[found].type_of(found) == FP8
    }
    # A set: files may have a tensor for each matrix of each expert.
    of_weights = set(scales.values())
    own = {name: found for name, found in stored.items() if found not in of_weights}
    return PublishedNames(own, scales)


def check_scale(path: Path, shards: Mapping[str, Shard], name: str, scales: str | None) -> None:
    """See that an FP8 tensor has the scales that its shape asks for.

    Args:
        path: of the model, for messages.
        name, scales: of the tensor and of its scales in the files; None where there are none.

    Raises:
        CheckpointError: it has not, or is no matrix.
    """
    shape = shards[name].shape_of(name)
    if len(shape) < 2:
        raise CheckpointError(f"{path}: tensor {name} is FP8 of shape {list(shape)}, expected a matrix")
    tile = FP8_E4M3.scale_tile
    expected = [*shape[:-2], *(-(-size // tile) for size in shape[-2:])]
    if scales is None:
        raise CheckpointError(
            f"{path}: tensor {name} is FP8 and has no scales; expected a tensor {name}{SCALES} of shape "
            f"{expected}"
        )
    shard = shards[scales]
    if list(shard.shape_of(scales)) != expected or shard.type_of(scales) != "F32":
        raise CheckpointError(
            f"{shard.path}: tensor {scales} is {shard.type_of(scales)} of shape "
            f"{list(shard.shape_of(scales))}, expected F32 of {expected}: a scale for each square of "
            f"{tile} x {tile} weights"
        )


def check_scales(path: Path, shards: Mapping[str, Shard]) -> None:
    """See that every FP8 tensor has its scales; raises CheckpointError as `check_scale`."""
    stored, scales = published_names(shards)
    for name, found in stored.items():
        if shards[found].type_of(found) == FP8:
            check_scale(path, shards, found, scales.get(name))


class Shard:
    """One safetensors file, mapped when its tensors are first asked for."""

    def __init__(self, path: Path) -> None:
        """Read the header and check that the file is whole; raises CheckpointError."""
        self.path = path
        self._handle: Any = None
        # The library waits for a pipe's writer.
        with open_input(path, CheckpointError, "a safetensors file of the model: download it again") as file:
            self._identity = FileIdentity.of(file.fileno())
        handle = self._open("np")
        self._tensors = {}
        for name in handle.keys():  # noqa: SIM118
            view = handle.get_slice(name)
            self._tensors[name] = str(view.get_dtype()), tuple(view.get_shape())

    @property
    def names(self) -> Iterable[str]:
        """Of the tensors in the file."""
        return self._tensors

    def type_of(self, name: str) -> str:
        """A tensor's type as the file calls it, such as BF16."""
        return self._tensors[name][0]

    def shape_of(self, name: str) -> tuple[int, ...]:
        """A tensor's shape."""
        return self._tensors[name][1]

    def tensor(self, name: str) -> Tensor:
        """A view of a tensor.

        Raises:
            CheckpointError: the file is not the one any more that was opened, or of a type torch lacks.
        """
        # Another thread may release the file meanwhile.
        handle = self._handle
        if handle is None:
            self.check_unchanged()
            handle = self._handle = self._open("pt")
        view: Tensor = handle.get_tensor(name)
        return view

    def check_unchanged(self) -> None:
        """Raises ModelFilesFailed where the path leads to another file, or one that was written to."""
        self._identity.check(self.path, self.path, ModelFilesFailed)

    def release(self) -> None:
        """Let go; the file stays mapped while there are views."""
        self._handle = None

    def _open(self, framework: str) -> Any:
        try:
            return safe_open(self.path, framework=framework)
        except (SafetensorError, OSError, MemoryError, RuntimeError) as error:
            # The library maps the file, then torch once more; each has an error of its own.
            if os.strerror(errno.ENOMEM) in str(error):
                raise CheckpointError(
                    f"{self.path}: it cannot be mapped; expected room for its "
                    f"{os.path.getsize(self.path):,} bytes of addresses, twice (ulimit -v)"
                ) from None
            if isinstance(error, RuntimeError):
                raise
            raise CheckpointError(
                f"{self.path} is truncated or not a safetensors file ({quote(str(error))}): download it again"
            ) from None


def _refuse_other_quantisation(shard: Shard, name: str) -> None:
    for ending, kind in _OTHER_QUANTISATIONS.items():
        if name.endswith(ending):
            raise CheckpointError(
                f"{shard.path}: tensor {quote(name)} belongs to weights in {kind}; expected {READABLE}"
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
