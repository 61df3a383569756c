"""A GGUF model by the path of one of its files: the trunk, and the MTP layers that lie in a file beside it.

llama.cpp's converter writes MTP layers into the trunk's file, or alone into one called `mtp-…gguf`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from placement.errors import CheckpointError
from placement.files.quote import quote
from workers.formats.gguf.config import ARCHITECTURE, KEY, read_config, where_trunks_differ
from workers.formats.gguf.names import block_of
from workers.formats.gguf.parts import GgufParts, is_later_part, whole_name
from workers.formats.gguf.tensors import weights_of
from workers.model_config import Step35Config

MTP_FILES = "mtp-*.gguf"


@dataclass(frozen=True, slots=True)
class GgufModel:
    """Headers and configuration of a model.

    Attributes:
        notes: what to tell the user of its files, one line each.
        mtp_path: of the file that MTP layers come from, where that is another than the trunk's.
    """

    parts: GgufParts
    config: Step35Config
    notes: tuple[str, ...] = ()
    mtp_path: Path | None = None


def find_gguf(path: str | Path) -> GgufModel:
    """Read the headers of a model's files.

    Where the file has no MTP layers, a file beside it gives them if all that it says of the trunk is what the
    trunk's own file says. One that does not, or that is damaged, is left alone: drafts are not what a model
    needs.

    Raises:
        CheckpointError: no model of this architecture, or damaged.
    """
    parts = GgufParts.open(path)
    config = read_config(parts)
    if _has_block(parts, config.num_hidden_layers):
        return GgufModel(parts, config)
    refused = []
    for candidate in _candidates(parts.path):
        try:
            joined = _joined(parts, GgufParts.open(candidate), config.num_hidden_layers)
            both = read_config(joined)
            _check_same_trunk(candidate, config, both)
            _check_blocks(candidate, joined, both)
        except CheckpointError as error:
            refused.append(f"MTP layers are not taken: {error}")
            continue
        joined = dataclasses.replace(joined, path=parts.path)
        return GgufModel(joined, both, (f"MTP layers are those of {candidate.name}",), candidate)
    return GgufModel(parts, config, tuple(refused))


def _candidates(path: Path) -> list[Path]:
    """Files of MTP layers in a model's folder: first the one that is called like it."""
    own = f"mtp-{whole_name(path)}"
    found = [file for file in path.parent.glob(MTP_FILES) if file != path and not is_later_part(file)]
    return sorted(found, key=lambda file: (whole_name(file) != own, file.name))


def _has_block(parts: GgufParts, block: int) -> bool:
    return any(block_of(name) == block for name in parts.tensors)


def _joined(trunk: GgufParts, mtp: GgufParts, num_trunk: int) -> GgufParts:
    """The trunk's file with the blocks behind it, and what the other file says of the architecture.

    What is wrong with the two together is wrong with the other: the trunk's is a model by itself.
    """
    blocks = {name: placed for name, placed in mtp.tensors.items() if block_of(name) >= num_trunk}
    if not blocks:
        raise CheckpointError(f"{mtp.path}: expected tensors of block {num_trunk} and on, found none")
    kind = mtp.metadata.get("general.architecture")
    if kind != ARCHITECTURE:
        raise CheckpointError(f"{mtp.path}: it has MTP layers of {quote(kind)}, expected {ARCHITECTURE!r}")
    said = {key: value for key, value in mtp.metadata.items() if key.startswith(KEY)}
    kept = {key: value for key, value in trunk.metadata.items() if not key.startswith(KEY)}
    return GgufParts(mtp.path, kept | said, {**trunk.tensors, **blocks}, trunk.files + mtp.files)


def _check_same_trunk(mtp: Path, trunk: Step35Config, both: Step35Config) -> None:
    key = where_trunks_differ(trunk, both)
    if key is not None:
        raise CheckpointError(f"{mtp}: it belongs to another model: its {key} is not the trunk's")


def _check_blocks(mtp: Path, joined: GgufParts, both: Step35Config) -> None:
    first = both.num_hidden_layers
    for block in range(first, len(both.layers)):
        if not _has_block(joined, block):
            raise CheckpointError(f"{mtp}: it lacks block {block}: download it again")
    own = {name: placed for name, placed in joined.tensors.items() if block_of(name) >= first}
    # That they lie in their file, and in types that load.
    weights_of(own, both)
