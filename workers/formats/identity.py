"""Which files a model is: two checkpoints of the same shapes are told apart without reading them whole.

Sizes, headers and sampled bytes tell a wrong or half-copied file from the right one in well under a second.
They do not find every changed byte: `workers.formats.digests` does, and reads everything for it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO, NamedTuple

from placement.errors import CheckpointError, PlanError
from placement.files.gguf_file import GgufFile
from placement.files.input_file import open_input
from placement.plan import Plan
from workers.formats.gguf.parts import GgufParts
from workers.formats.open_model import is_gguf
from workers.formats.shards import find_shards

NUM_SAMPLES, SAMPLE_BYTES = 16, 4096
"""Of each file: 200 GB in a hundred files are 1,600 small reads, 0.2 s of a solid-state disk."""
IDENTITY = "identity"
"""The key of the whole model's digest among a plan's digests. The others are names of files."""

# The library that reads safetensors takes no longer headers.
_MOST_HEADER_BYTES = 100_000_000
_EXPECTED = "a file of the model: download it again"


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One file of a model; digests in hexadecimal digits.

    Attributes:
        name: without its folder.
        header_sha256: of what says which tensors lie where; of the whole file for config.json.
        samples_sha256: of `NUM_SAMPLES` pieces spread over the file.
    """

    name: str
    num_bytes: int
    header_sha256: str
    samples_sha256: str

    @property
    def digest(self) -> str:
        """Of all of it but the name."""
        return _sha256(f"{self.num_bytes} {self.header_sha256} {self.samples_sha256}")[:16]


@dataclass(frozen=True)
class ModelIdentity:
    """The files that a model's trunk is read from.

    A file of MTP layers beside a GGUF file is left out: boxes other than the head do without it.
    """

    files: tuple[FileFacts, ...]

    @cached_property
    def hex(self) -> str:
        """64 hexadecimal digits: the same for the same bytes, whatever the files are called."""
        facts = (f"{file.num_bytes} {file.header_sha256} {file.samples_sha256}\n" for file in self.files)
        return _sha256("".join(facts))

    @property
    def digests(self) -> dict[str, str]:
        """As a plan keeps them: the whole model's, and one of each file, to say which one differs."""
        return {IDENTITY: self.hex} | {file.name: file.digest for file in self.files}


class ModelFile(NamedTuple):
    """A file that the model is read from, and how many bytes its header takes."""

    path: Path
    header_bytes: int


def model_files(path: str | Path) -> list[ModelFile]:
    """The files of a model's trunk: config.json and safetensors, or a GGUF file with all its parts.

    Raises:
        CheckpointError: one is missing or damaged; names it.
    """
    if is_gguf(path):
        return [_gguf_file(file) for file in GgufParts.open(path).files]
    config = Path(path) / "config.json"
    shards = sorted({shard.path for shard in find_shards(Path(path)).values()})
    with open_input(config, CheckpointError, _EXPECTED) as file:
        config_bytes = os.fstat(file.fileno()).st_size
    return [ModelFile(config, config_bytes), *map(_safetensors_file, shards)]


def model_identity(path: str | Path) -> ModelIdentity:
    """Look at sizes, headers and samples of a model's files; what is read does not grow with their size.

    Raises:
        CheckpointError: one is missing, damaged, or cannot be read; names it.
    """
    return ModelIdentity(tuple(map(_facts, model_files(path))))


def told(identity: str, trunk_digest: str) -> str:
    """What processes tell each other of a model's files: the identity, and a digest where there is one."""
    return f"{identity}:{trunk_digest}" if identity and trunk_digest else identity


def compared(ours: str, theirs: str) -> Iterator[tuple[str, str, str]]:
    """What both know of what they `told`: its name, and the beginnings of ours and theirs."""
    names = ("model files", "bytes of the model files")
    for name, own, other in zip(names, ours.split(":"), theirs.split(":"), strict=False):
        if own and other:
            yield name, own[:16], other[:16]


def check_made_for(plan: Plan, model: str | Path) -> None:
    """See that a plan was made for these files, where it says for which.

    Raises:
        PlanError: it was made for others; names the first file that differs.
        CheckpointError: as `model_identity`.
    """
    if IDENTITY not in plan.digests:
        return
    found = model_identity(model)
    if found.hex != plan.digests[IDENTITY]:
        raise PlanError(
            f"made for other files than those of {model}: {_difference(plan.digests, found)}; expected the "
            "files that it was made for: give those with --model, or make the plan again for these"
        )


def _difference(made_for: Mapping[str, str], found: ModelIdentity) -> str:
    for file in found.files:
        if file.name not in made_for:
            return f"{file.name} was not among them"
        if made_for[file.name] != file.digest:
            return f"{file.name} is another file of that name, or was changed"
    names = {file.name for file in found.files} | {IDENTITY}
    return f"{next((name for name in made_for if name not in names), 'a file')} is missing"


def sample_offsets(num_bytes: int) -> Sequence[int]:
    """Where the samples of a file begin: the first at its start, the last up to its end, evenly between.

    They depend on the size alone, so that every box looks at the same ones. They touch in small files.
    """
    last = num_bytes - SAMPLE_BYTES
    if last <= (NUM_SAMPLES - 1) * SAMPLE_BYTES:
        return range(0, num_bytes, SAMPLE_BYTES)
    return [last * place // (NUM_SAMPLES - 1) for place in range(NUM_SAMPLES)]


def _facts(file: ModelFile) -> FileFacts:
    with open_input(file.path, CheckpointError, _EXPECTED) as opened:
        try:
            num_bytes = os.fstat(opened.fileno()).st_size
            offsets = sample_offsets(num_bytes)
            # All at once, so that the disk can answer them side by side; and no more than is asked for.
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for offset in offsets:
                os.posix_fadvise(opened.fileno(), offset, SAMPLE_BYTES, os.POSIX_FADV_WILLNEED)
            header = _digest_of(opened, [0], file.header_bytes)
            samples = _digest_of(opened, offsets, SAMPLE_BYTES)
        except OSError as error:
            raise CheckpointError(f"{file.path}: {error.strerror}; check the disk and the file") from None
    return FileFacts(file.path.name, num_bytes, header, samples)


def _digest_of(file: BinaryIO, offsets: Sequence[int], num_bytes: int) -> str:
    sha256 = hashlib.sha256()
    for offset in offsets:
        sha256.update(os.pread(file.fileno(), num_bytes, offset))
    return sha256.hexdigest()


def _gguf_file(file: GgufFile) -> ModelFile:
    # A part may have a header and nothing else; what follows it is filled up to a whole number of blocks.
    return ModelFile(file.path, min(file.data_offset, file.num_bytes))


def _safetensors_file(path: Path) -> ModelFile:
    """Eight bytes say how many the header has after them."""
    with open_input(path, CheckpointError, _EXPECTED) as file:
        length = int.from_bytes(file.read(8), "little")
    return ModelFile(path, 8 + min(length, _MOST_HEADER_BYTES))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
