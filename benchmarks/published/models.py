"""Shapes of published models, and what their weights take in published files (models.yaml)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import cycle, islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from placement.errors import InputError
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.files.quote import quote
from placement.model_shape import PUBLISHED_SHAPES, AttentionShape, ModelShape
from placement.workload import HeadForm, HeadForms

PATH = Path(__file__).parent / "models.yaml"
_ROUTER_BITS = 32
"""Every engine keeps routers in float32 or in 16 bits; either way they are few."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _ModelModel(_Strict):
    name: str
    hidden_size: int
    vocab_size: int
    layers: int
    dense_layers: int = 0
    moe_every: int = 1
    dense_width: int = 0
    heads: int
    kv_heads: int
    head_dim: int
    windows: list[int] = [0]
    experts: int
    top_k: int
    expert_width: int
    shared_width: int = 0
    source: str


class _FormModel(_Strict):
    name: str
    experts: float
    head: float | None = None
    output: float | None = None
    embedding: float | None = None
    source: str


class _FileModel(_Strict):
    models: list[_ModelModel]
    forms: list[_FormModel]


@dataclass(frozen=True, slots=True)
class FileForm:
    """Bits of each weight of a file on average, scales included.

    Attributes:
        experts: of routed experts.
        head: of attention, dense and shared FFN.
        output: of lm_head.
        embedding: of the table, of which a token reads one row.
    """

    experts: float
    head: float
    output: float
    embedding: float

    def total_bytes(self, shape: ModelShape) -> float:
        """Of a file without MTP layers."""
        experts = shape.num_routed_experts * shape.expert_parameters
        routers = shape.num_moe_layers * shape.router_parameters
        head = shape.head_read_parameters - shape.lm_head_parameters - routers
        bits = (
            experts * self.experts
            + head * self.head
            + shape.lm_head_parameters * self.output
            + shape.embedding_parameters * self.embedding
            + routers * _ROUTER_BITS
        )
        return bits / 8

    def scaled_to(self, shape: ModelShape, weight_bytes: float | None) -> FileForm:
        """The same proportions in a file of so many bytes; None for the form as it is."""
        if weight_bytes is None:
            return self
        by = weight_bytes / self.total_bytes(shape)
        return FileForm(self.experts * by, self.head * by, self.output * by, self.embedding * by)

    def head_forms(self) -> HeadForms:
        """As a workload takes them; their names say nothing, since kernels differ by engine."""
        head = HeadForm("published", self.head)
        return HeadForms(head, HeadForm("published", _ROUTER_BITS), head, HeadForm("published", self.output))


def has_model(name: str) -> bool:
    return name in _shapes()


def has_form(name: str) -> bool:
    return name in _forms()


def published_model(name: str) -> ModelShape:
    """Raises InputError for a name that models.yaml has not; the message lists the known ones."""
    shapes = _shapes()
    if name not in shapes:
        raise InputError(f"model {quote(name)}: expected {', '.join(sorted(shapes))}; add it to {PATH.name}")
    return shapes[name]


def file_form(name: str) -> FileForm:
    """Raises InputError for a form that models.yaml has not; the message lists the known ones."""
    forms = _forms()
    if name not in forms:
        raise InputError(f"quant {quote(name)}: expected {', '.join(sorted(forms))}; add it to {PATH.name}")
    return forms[name]


@cache
def _file() -> _FileModel:
    return validate_fields(read_mapping(PATH, InputError, "models and forms"), _FileModel, PATH, InputError)


@cache
def _shapes() -> dict[str, ModelShape]:
    return {**PUBLISHED_SHAPES, **{model.name: _shape(model) for model in _file().models}}


@cache
def _forms() -> dict[str, FileForm]:
    return {form.name: _form(form) for form in _file().forms}


def _form(form: _FormModel) -> FileForm:
    head = form.experts if form.head is None else form.head
    output = head if form.output is None else form.output
    return FileForm(form.experts, head, output, output if form.embedding is None else form.embedding)


def _shape(model: _ModelModel) -> ModelShape:
    layers = range(model.dense_layers, model.layers)
    return ModelShape(
        name=model.name,
        hidden_size=model.hidden_size,
        vocab_size=model.vocab_size,
        moe_layers=tuple(layer for layer in layers if (layer + 1) % model.moe_every == 0),
        num_experts=model.experts,
        top_k=model.top_k,
        moe_intermediate_size=model.expert_width,
        shared_intermediate_size=model.shared_width,
        dense_intermediate_size=model.dense_width,
        attention=tuple(
            AttentionShape(model.heads, model.kv_heads, model.head_dim, window, has_head_gate=False)
            for window in islice(cycle(model.windows), model.layers)
        ),
        num_mtp_layers=0,
    )
