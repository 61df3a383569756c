"""What commands are given by name or by file; errors say which file or option is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.chat_template import TEMPLATE_FILE
from orchestrator.runnable import DEFAULT_DTYPE
from placement.errors import InputError, PotluckError
from placement.model_shape import PUBLISHED_SHAPES, ModelShape, published_shape
from placement.plan import Plan, PlannedLayer, like_layers, planned_layers
from placement.plan_file import read_plan
from placement.weight_format import FP8_E4M3, planned_format
from workers.formats.contents import model_contents
from workers.formats.open_model import is_gguf, kept_forms, load_config, model_name, open_model


def load_shape(model: str) -> ModelShape:
    """The shape of a built-in model, or of the model in a directory or a GGUF file."""
    path = Path(model)
    # Unlike Path.is_dir, False for names that no folder can have.
    if os.path.isdir(path) or is_gguf(path):
        return load_config(path).shape(model_name(path))
    return published_shape(model)


def planned_form(
    model: str, shape: ModelShape, quant: str | None, in_use: Plan | None
) -> tuple[str, tuple[PlannedLayer, ...], float | None]:
    """What a plan keeps experts in: as `--quant` says, as the plan in use, as quantised files, bfloat16.

    Returns:
        The form that the head and the wire go by, what each layer's experts are kept in, and the bits of the
        head's own weights where files say that.

    Raises:
        InputError: an unknown `quant`.
        CheckpointError: the files are damaged.
    """
    head_bits = None
    if quant is None and in_use is not None:
        layers = in_use.layers
    elif quant is None and _is_quantised(model):
        config, checkpoint = open_model(model)
        layers = planned_layers(shape, kept_forms(checkpoint, config, DEFAULT_DTYPE.value))
        head_bits = model_contents(model).head_bits
    else:
        form = quant or DEFAULT_DTYPE.value
        layers = like_layers(shape.moe_layers, form, shape.expert_bytes(planned_format(form).bits))
    return layers[0].form.split("/")[0], layers, head_bits


def _is_quantised(model: str) -> bool:
    """Whether a model's files say what its experts are kept in: GGUF does, and FP8, which stays as it is."""
    if is_gguf(model):
        return True
    # A plan needs no weights, so there may be none.
    if not os.path.isdir(model) or not any(Path(model).glob("*.safetensors")):
        return False
    return any(tensor.form == FP8_E4M3.name for tensor in model_contents(model).tensors)


def model_folder(model: Path) -> Path:
    """A model's directory or GGUF file, for commands that need its weights.

    Raises:
        InputError: it is the name of a built-in shape, which plans and simulations know without weights.
    """
    if str(model).lower() in PUBLISHED_SHAPES and not os.path.isdir(model):
        raise InputError(
            f"--model {model}: built in for planning and simulation, without weights; expected a directory "
            "with the model's config.json, safetensors and tokenizer, or a GGUF file"
        )
    return model


def load_plan(path: Path, shape: ModelShape) -> Plan:
    """A plan of this model whose workers hold what they have room for.

    Raises:
        PlanError: names the file, and the field or worker.
    """
    plan = read_plan(path)
    check_plan(plan, path, shape)
    return plan


def check_plan(plan: Plan, path: Path, shape: ModelShape) -> None:
    """Raise PlanError, which names the file, for a plan of another model or over a worker's budget."""
    with name_in_errors(path):
        plan.check(shape)
        plan.check_fits()


# What is read in a folder: of a model, and of another engine's dumps.
_READ_IN_FOLDERS = ("config.json", "tokenizer*.json", TEMPLATE_FILE, "*.safetensors*", "*.pt")


def files_read(*given: Path | str | None) -> list[Path]:
    """The files among what a command is given by name or path, those that it reads in a folder included."""
    files: list[Path] = []
    for name in given:
        if name is None:
            continue
        path = Path(name)
        # Unlike Path.is_dir, False for names that no folder can have.
        if os.path.isdir(path):
            files += [file for pattern in _READ_IN_FOLDERS for file in path.glob(pattern)]
        else:
            files.append(path)
    return files


@contextmanager
def name_in_errors(where: object, kind: type[PotluckError] = PotluckError) -> Iterator[None]:
    """Put the file or option at fault in front of errors of `kind`, which do not name it."""
    try:
        yield
    except kind as error:
        raise type(error)(f"{where}: {error}") from error
