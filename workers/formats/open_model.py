"""A model by its path: a Hugging Face directory, or a GGUF file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from placement.errors import CheckpointError
from placement.model_shape import ModelShape
from placement.weight_format import FORMATS, ExpertFormat, WeightFormat
from workers.formats.gguf.model import find_gguf
from workers.formats.gguf.parts import whole_name
from workers.model_config import Step35Config

if TYPE_CHECKING:
    from workers.formats.checkpoint import Checkpoint
    from workers.formats.contents import ModelContents

GGUF_SUFFIX = ".gguf"


class OpenModel(NamedTuple):
    """A model whose files were opened: passed on, so that nobody opens them again."""

    config: Step35Config
    checkpoint: Checkpoint

    @property
    def path(self) -> Path:
        """The directory, or the file that was asked for."""
        return self.checkpoint.path

    @property
    def shape(self) -> ModelShape:
        """Its sizes, under the name of its files."""
        return self.config.shape(model_name(self.path))

    @property
    def contents(self) -> ModelContents:
        """All its tensors, listed anew."""
        return self.checkpoint.contents(self.config)


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
    if is_gguf(path):
        return find_gguf(path).config
    return _directory_config(Path(path))


def open_model(path: str | Path) -> OpenModel:
    """Configuration and weights of a model; its headers are read, no weights.

    Raises:
        CheckpointError: no model of this architecture, damaged, or of a type that does not load.
    """
    # Torch takes seconds to load, and the configuration alone does without.
    if is_gguf(path):
        from workers.formats.gguf.checkpoint import GgufCheckpoint

        model = find_gguf(path)
        return OpenModel(model.config, GgufCheckpoint(model))
    from workers.formats.safetensors import SafetensorsCheckpoint

    return OpenModel(_directory_config(Path(path)), SafetensorsCheckpoint.open(path))


def kept_forms(checkpoint: Checkpoint, config: Step35Config, dtype: str) -> dict[int, ExpertFormat]:
    """What a run in `dtype` keeps each MoE layer's experts in.

    That is what a GGUF file stores them in. Those of a directory are kept in `dtype` where they can be had in
    it, and as stored where not, as FP8 cannot.

    Raises:
        CheckpointError: a layer's experts are missing.
    """
    stored = {layer: checkpoint.expert_format(layer, config) for layer in config.moe_layers}
    if not checkpoint.path.is_dir():
        return stored
    wanted = FORMATS[dtype]

    def kept(form: WeightFormat) -> WeightFormat:
        return wanted if form.gives(wanted) else form

    return {
        layer: ExpertFormat(kept(form.gate), kept(form.up), kept(form.down)) for layer, form in stored.items()
    }


def _directory_config(directory: Path) -> Step35Config:
    if not os.path.lexists(directory / "config.json") and os.path.isdir(directory):
        files = sorted(path.name for path in directory.glob(f"*{GGUF_SUFFIX}"))
        if files:
            raise CheckpointError(
                f"{directory}: no config.json, but {len(files)} GGUF files; expected one of them as the "
                f"model, such as {directory / files[0]}"
            )
    return Step35Config.load(directory)
