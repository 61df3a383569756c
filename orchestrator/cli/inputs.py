"""What commands are given by name or by file; errors say which file or option is wrong."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.chat_template import TEMPLATE_FILE
from orchestrator.run_memory import head_bytes
from orchestrator.runnable import DEFAULT_DTYPE
from placement.errors import InputError, PotluckError
from placement.model_shape import PUBLISHED_SHAPES, ModelShape, published_shape
from placement.plan import Plan, PlannedLayer, like_layers, planned_layers, wires_of
from placement.plan_file import read_plan
from placement.weight_format import FP8_E4M3, planned_format, run_dtype_of
from placement.wire_form import WireForm
from placement.workload import HeadBytes, HeadForms
from workers.formats.contents import ModelContents, model_contents
from workers.formats.identity import model_identity
from workers.formats.open_model import (
    FoundModel,
    OpenModel,
    find_model,
    is_gguf,
    kept_forms,
    model_name,
)


@dataclass(frozen=True, slots=True)
class GivenModel:
    """A model by its built-in name, or in a directory or a GGUF file, which is `found` then."""

    name: str
    shape: ModelShape
    found: FoundModel | None = None


def given_model(model: str) -> GivenModel:
    """A built-in model, or the one in a directory or a GGUF file, of which the configuration is read.

    Raises:
        InputError: no such name.
        CheckpointError: no model of this architecture, or damaged.
    """
    path = Path(model)
    # Unlike Path.is_dir, False for names that no folder can have.
    if os.path.isdir(path) or is_gguf(path):
        found = find_model(path)
        return GivenModel(model, found.config.shape(model_name(path)), found)
    return GivenModel(model, published_shape(model))


def load_shape(model: str) -> ModelShape:
    """The shape of a built-in model, or of the model in a directory or a GGUF file."""
    return given_model(model).shape


@dataclass(frozen=True, slots=True)
class HeadOfFiles:
    """What a model's files say of the head's own weights; `bits`: of each on average."""

    bits: float
    forms: HeadForms
    num_bytes: HeadBytes


@dataclass(frozen=True, slots=True)
class PlannedForm:
    """What a plan keeps weights in.

    Attributes:
        form: that the run's dtype, and the head where no file tells more, go by.
        layers: of the experts.
        head: where files say it.
        note: one line for the user, where the model's files say something else.
    """

    form: str
    layers: tuple[PlannedLayer, ...]
    head: HeadOfFiles | None = None
    note: str | None = None

    @property
    def expert_form(self) -> str:
        """Of most layers."""
        return Counter(layer.form for layer in self.layers).most_common(1)[0][0]

    @property
    def wires(self) -> tuple[WireForm, ...]:
        """What rows travel in to a worker; see `wires_of`."""
        return wires_of(self.layers, run_dtype_of(self.form))


def planned_form(model: GivenModel, quant: str | None, in_use: Plan | None) -> PlannedForm:
    """What a plan keeps experts in: as `--quant` says, as the plan in use, as quantised files, bfloat16.

    Raises:
        InputError: an unknown `quant`.
        CheckpointError: the files are damaged, or the model's trunk is not whole.
    """
    if quant is None and in_use is not None:
        return _planned(in_use.layers)
    shape = model.shape
    opened = _quantised(model)
    stored: tuple[PlannedLayer, ...] = ()
    if opened is not None:
        forms = kept_forms(opened.checkpoint, opened.config, DEFAULT_DTYPE)
        stored = planned_layers(shape, forms)
        if quant is None:
            contents = opened.contents
            in_memory = head_bytes(contents, DEFAULT_DTYPE)
            return _planned(stored, HeadOfFiles(contents.head_bits, contents.head_forms, in_memory))
    form = quant or DEFAULT_DTYPE
    layers = like_layers(shape.moe_layers, form, shape.expert_bytes(planned_format(form).bits))
    other = sorted({layer.form for layer in stored if layer.form != planned_format(form).name})
    note = None
    if other:
        note = (
            f"{model.name} has experts in {', '.join(other)}: a plan for --quant {form} does not run with "
            "it; leave out --quant to plan for the file as it is"
        )
    return _planned(layers, note=note)


def digests_of(model: GivenModel) -> dict[str, str]:
    """What a plan notes of the files that it is made for; nothing where no weights are there.

    Raises:
        CheckpointError: a file is missing, damaged, or cannot be read.
    """
    found = model.found
    # A plan needs no weights, so there may be none.
    if found is None or (found.gguf is None and not any(found.path.glob("*.safetensors"))):
        return {}
    return model_identity(found.path).digests


def _planned(
    layers: tuple[PlannedLayer, ...], head: HeadOfFiles | None = None, note: str | None = None
) -> PlannedForm:
    return PlannedForm(layers[0].form.split("/")[0], layers, head, note)


def _quantised(model: GivenModel) -> OpenModel | None:
    """A model whose files say what its experts are kept in: GGUF does, and FP8, which stays as it is."""
    found = model.found
    if found is None:
        return None
    if found.gguf is None:
        # A plan needs no weights, so there may be none.
        if not any(found.path.glob("*.safetensors")):
            return None
        contents = model_contents(found.path)
        if all(tensor.form != FP8_E4M3.name for tensor in contents.tensors):
            return None
    return found.open()


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


def check_mtp(contents: ModelContents, mtp: int) -> None:
    """
    Raises:
        InputError: the model does not have so many drafts; names --mtp.
        CheckpointError: as `ModelContents.check_drafts`.
    """
    with name_in_errors(f"--mtp {mtp}", InputError):
        contents.check_drafts(mtp)


@contextmanager
def name_in_errors(where: object, kind: type[PotluckError] = PotluckError) -> Iterator[None]:
    """Put the file or option at fault in front of errors of `kind`, which do not name it."""
    try:
        yield
    except kind as error:
        raise type(error)(f"{where}: {error}") from error
