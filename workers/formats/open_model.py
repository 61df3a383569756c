"""A model by its path: a Hugging Face directory, or a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from placement.errors import CheckpointError
from placement.files.input_file import open_input
from placement.model_shape import ModelShape
from placement.weight_format import FORMATS, ExpertFormat, WeightFormat
from workers.formats.gguf.model import GgufModel, find_gguf
from workers.formats.gguf.parts import whole_name
from workers.model_config import Step35Config

if TYPE_CHECKING:
    from workers.formats.checkpoint import Checkpoint
    from workers.formats.contents import ModelContents

GGUF_SUFFIX = ".gguf"


class _Opened(NamedTuple):
    config: Step35Config
    checkpoint: Checkpoint


class OpenModel(_Opened):
    """A model whose files were opened: passed on, so that nobody opens them again."""

    @property
    def path(self) -> Path:
        """The directory, or the file that was asked for."""
        return self.checkpoint.path

    @property
    def shape(self) -> ModelShape:
        """Its sizes, under the name of its files."""
        return self.config.shape(model_name(self.path))

    @cached_property
    def contents(self) -> ModelContents:
        """All its tensors."""
        return self.checkpoint.contents(self.config)


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model whose weights were not asked for yet. `gguf`: headers of its files, where it is one."""

    path: Path
    config: Step35Config
    gguf: GgufModel | None = None

    def open(self) -> OpenModel:
        """Its weights too, whose headers are read; torch is loaded, which takes seconds.

        Raises:
            CheckpointError: damaged, of a type that does not load, or the trunk is not whole.
        """
        from workers.formats.gguf.checkpoint import GgufCheckpoint
        from workers.formats.safetensors import SafetensorsCheckpoint

        if self.gguf is not None:
            model = OpenModel(self.config, GgufCheckpoint(self.gguf))
        else:
            model = OpenModel(self.config, SafetensorsCheckpoint.open(self.path))
        model.contents.check()
        return model


def is_gguf(path: str | Path) -> bool:
    """Whether a model's path means one file: it is one, or is called so."""
    # Unlike Path.is_file, False for names that no file can have.
    return os.path.isfile(path) or (str(path).endswith(GGUF_SUFFIX) and not os.path.isdir(path))


def model_name(path: str | Path) -> str:
    """What to call a model: the directory's name, or the file's without its ending and number of a part."""
    resolved = Path(path).resolve()
    return whole_name(resolved) if is_gguf(path) else resolved.name


def load_config(path: str | Path) -> Step35Config:
    """The configuration alone; neither weights nor torch are loaded.

    Raises:
        CheckpointError: no model of this architecture, or damaged.
    """
    return find_model(path).config


def find_model(path: str | Path) -> FoundModel:
    """A model whose configuration was read, and a GGUF file's headers; torch is not loaded.

    Raises:
        CheckpointError: no model of this architecture, or damaged.
    """
    if is_gguf(path):
        gguf = find_gguf(path)
        return FoundModel(gguf.parts.path, gguf.config, gguf)
    return FoundModel(Path(path), _directory_config(Path(path)))


def open_model(path: str | Path) -> OpenModel:
    """Configuration and weights of a model; its headers are read, no weights.

    Raises:
        CheckpointError: no model of this architecture, damaged, of a type that does not load, or its trunk is
            not whole.
    """
    return find_model(path).open()


def kept_forms(checkpoint: Checkpoint, config: Step35Config, dtype: str) -> dict[int, ExpertFormat]:
    """What a run in `dtype` keeps each MoE layer's experts in.

    That is what a GGUF file stores them in. Those of a directory are kept in `dtype` where they can be had in
    it, and as stored where not, as FP8 cannot.

    Raises:
        CheckpointError: a layer's experts are missing.
    """
    stored = {layer: checkpoint.expert_format(layer, config) for layer in config.moe_layers}
    return kept_of_stored(stored, dtype) if checkpoint.path.is_dir() else stored


def kept_of_stored(stored: Mapping[int, ExpertFormat], dtype: str) -> dict[int, ExpertFormat]:
    """What a run in `dtype` keeps each layer's experts of a directory in, as `kept_forms`."""
    wanted = FORMATS[dtype]

    def kept(form: WeightFormat) -> WeightFormat:
        return wanted if form.gives(wanted) else form

    return {
        layer: ExpertFormat(kept(form.gate), kept(form.up), kept(form.down)) for layer, form in stored.items()
    }


def held_expert_bytes(
    stored: Mapping[int, ExpertFormat], formats: Mapping[int, ExpertFormat], config: Step35Config
) -> dict[int, int]:
    """What one expert of each layer of `formats` takes in memory.

    Args:
        stored: what the files have.
        formats: what a run asks for, as `kept_forms` or a plan says.
    """
    return {
        layer: stored[layer].kept_as(wanted).expert_bytes(config.hidden_size, config.moe_intermediate_size)
        for layer, wanted in formats.items()
    }


def _directory_config(directory: Path) -> Step35Config:
    expected = "a model: a Hugging Face directory with its config.json, or a GGUF file"
    if os.path.exists(directory) and not os.path.isdir(directory):
        # Neither file nor directory, which is what this says.
        with open_input(directory, CheckpointError, expected):
            pass
    if not os.path.lexists(directory):
        raise CheckpointError(f"{directory}: no such file or directory; expected {expected}")
    if not os.path.lexists(directory / "config.json") and os.path.isdir(directory):
        files = sorted(path.name for path in directory.glob(f"*{GGUF_SUFFIX}"))
        if len(files) > 1 and len({whole_name(Path(name)) for name in files}) == 1:
            raise CheckpointError(
                f"{directory}: no config.json, but {len(files)} parts of one model; give any of them, "
                f"such as {directory / files[0]}"
            )
        if files:
            raise CheckpointError(
                f"{directory}: no config.json, but {len(files)} GGUF files; expected one of them as the "
                f"model, such as {directory / files[0]}"
            )
        if directory.name.endswith(GGUF_SUFFIX):
            raise CheckpointError(f"{directory}: it is a directory without config.json; expected {expected}")
    return Step35Config.load(directory)
