"""What is in a model's files: tensors, their types and bytes, by the part of the model that they belong to.

Only headers are read, and torch is not loaded.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from pathlib import Path

from placement.errors import CheckpointError
from placement.weight_format import FLOAT32, FORMATS, ExpertFormat
from placement.workload import HeadForm, HeadForms, HeadPart
from workers.formats.complete import ROUTED_EXPERT, StoredShape, check_drafts, check_mtp, check_trunk
from workers.formats.gguf.model import GgufModel, find_gguf
from workers.formats.gguf.tensors import GgufWeights, weights_of
from workers.formats.open_model import is_gguf, load_config
from workers.formats.shards import (
    FORMS,
    READABLE,
    PublishedNames,
    Shard,
    check_scales,
    find_shards,
    published_names,
)
from workers.model_config import Step35Config

WITHOUT_DRAFTS = "or go without drafts (--mtp 0)"
"""What helps where MTP layers are damaged."""


class Part(StrEnum):
    """What a tensor belongs to; MTP layers are one part, whatever is in them."""

    EMBEDDING = "embedding"
    ATTENTION = "attention"
    DENSE = "dense FFN"
    SHARED = "shared experts"
    EXPERTS = "routed experts"
    ROUTERS = "routers"
    NORMS = "norms"
    OUTPUT = "output"
    MTP = "MTP layers"


@dataclass(frozen=True, slots=True)
class ListedTensor:
    """A tensor of the model.

    Attributes:
        matrix: what it is within its part, such as "gate"; the same in all layers.
        form: name of its form, as plans and docs spell it.
        layer: absolute index, None for what belongs to no layer.
        num_bytes: as stored, scales included.
    """

    part: Part
    matrix: str
    form: str
    layer: int | None
    num_weights: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class ModelContents:
    """Configuration and tensors of a model.

    Attributes:
        notes: for the user, one line each.
        path: of the directory or file, for messages.
        stored: by published name, scales of FP8 weights left out.
        shards: by stored name, the file of each of a directory's tensors; none for GGUF files.
        mtp_path: of the directory or file that MTP layers are in, for messages.
    """

    config: Step35Config
    tensors: tuple[ListedTensor, ...]
    notes: tuple[str, ...]
    path: Path
    stored: Mapping[str, StoredShape]
    shards: Mapping[str, Shard]
    mtp_path: Path

    @property
    def in_directory(self) -> bool:
        """Safetensors, whose wider numbers a run may round."""
        return not is_gguf(self.path)

    def check(self) -> None:
        """See that nothing is missing that a run without drafts reads.

        Raises:
            CheckpointError: names a tensor.
        """
        check_scales(self.path, self.shards)
        check_trunk(self.path, self.stored, self.config)

    def check_mtp(self) -> None:
        """See that MTP layers are whole where there are any.

        Raises:
            CheckpointError: names a tensor.
        """
        check_mtp(self.mtp_path, self.stored, self.config)

    def check_drafts(self, num_drafts: int) -> None:
        """See that a step can have so many drafts.

        Raises:
            InputError: the configuration announces fewer MTP layers, or the files lack them; says which.
            CheckpointError: as `check_mtp`.
        """
        check_drafts(self.path, self.stored, self.notes, self.config, num_drafts)
        try:
            if num_drafts:
                self.check_mtp()
        except CheckpointError as error:
            raise CheckpointError(f"{error}, {WITHOUT_DRAFTS}") from None

    @property
    def expert_formats(self) -> dict[int, ExpertFormat]:
        """Of each MoE layer that has all three matrices: the forms that most of its experts are stored in."""
        found: dict[tuple[int | None, str], Counter[str]] = {}
        for tensor in self.tensors:
            if tensor.part is Part.EXPERTS:
                found.setdefault((tensor.layer, tensor.matrix), Counter())[tensor.form] += tensor.num_weights
        most = {key: FORMATS[forms.most_common(1)[0][0]] for key, forms in found.items()}
        return {
            layer: ExpertFormat(*(most[layer, matrix] for matrix in _OF_EXPERT))
            for layer in self.config.moe_layers
            if all((layer, matrix) in most for matrix in _OF_EXPERT)
        }

    @property
    def head_forms(self) -> HeadForms:
        """Of the trunk's own weights: of each part the form that most have, and the bits of all.

        Routers are float32 in memory, whatever the files have.
        """
        of_part: dict[str, list[ListedTensor]] = {}
        for tensor in self.tensors:
            if tensor.part in HEAD_PARTS:
                of_part.setdefault(HEAD_PARTS[tensor.part], []).append(tensor)
        # An output that is the embedding, and a model without dense layers and shared experts.
        of_part.setdefault("output", [t for t in self.tensors if t.part is Part.EMBEDDING])
        of_part.setdefault("ffn", of_part["attention"])
        forms = {part: _head_form(tensors) for part, tensors in of_part.items()}
        return HeadForms(**forms | {"router": HeadForm.of(FLOAT32.name)})

    @property
    def head_bits(self) -> float:
        """Of each of the head's own weights on average: all but routed experts, MTP layers included."""
        head = [tensor for tensor in self.tensors if tensor.part is not Part.EXPERTS]
        return 8 * sum(tensor.num_bytes for tensor in head) / sum(tensor.num_weights for tensor in head)

    def num_bytes(self, *parts: Part) -> int:
        """Of these parts together, of all where none is given."""
        return sum(tensor.num_bytes for tensor in self.tensors if not parts or tensor.part in parts)


HEAD_PARTS: Mapping[Part, HeadPart] = {
    Part.ATTENTION: "attention",
    Part.DENSE: "ffn",
    Part.SHARED: "ffn",
    Part.OUTPUT: "output",
}
"""Of the head's matrices that a token of the trunk reads, without routers."""

_OF_EXPERT = ("gate", "up", "down")


def _head_form(tensors: Sequence[ListedTensor]) -> HeadForm:
    weights: Counter[str] = Counter()
    for tensor in tensors:
        weights[tensor.form] += tensor.num_weights
    return HeadForm(weights.most_common(1)[0][0], 8 * sum(t.num_bytes for t in tensors) / weights.total())


@dataclass(frozen=True, slots=True)
class TypeRun:
    """Tensors of one kind and form: in `layers`, ascending, empty for what belongs to no layer."""

    part: Part
    matrix: str
    form: str
    layers: tuple[int, ...]
    num_bytes: int


def model_contents(path: str | Path) -> ModelContents:
    """List a model's directory or GGUF file, without torch. An open model's checkpoint has its contents.

    Raises:
        CheckpointError: no model of this architecture, damaged, or of a type that does not load.
    """
    if not is_gguf(path):
        config = load_config(path)
        return directory_contents(find_shards(Path(path)), config)
    model = find_gguf(path)
    return gguf_contents(weights_of(model.parts.tensors, model.config), model)


def gguf_contents(weights: Mapping[str, GgufWeights], model: GgufModel) -> ModelContents:
    """List the tensors of GGUF files, by published name as `weights_of` has them."""
    # An MTP layer without a head of its own has the trunk's under a second name, which comes last.
    once: dict[tuple[Path, int], ListedTensor] = {}
    for name, found in weights.items():
        num_weights = prod(found.shape)
        listed = _listed(name, found.form.name, num_weights, found.num_bytes, model.config)
        once.setdefault((found.file.path, found.start), listed)
    stored = {name: StoredShape(found.name, found.shape, found.file.path) for name, found in weights.items()}
    path = model.parts.path
    return ModelContents(
        model.config, tuple(once.values()), model.notes, path, stored, {}, model.mtp_path or path
    )


def directory_contents(shards: Mapping[str, Shard], config: Step35Config) -> ModelContents:
    """List the tensors of a directory, by their stored names as `find_shards` has them.

    Raises:
        CheckpointError: one is of a type that does not load.
    """
    directory = next(iter(shards.values())).path.parent
    names = published_names(shards)
    stored = {
        name: StoredShape(found, shards[found].shape_of(found), shards[found].path)
        for name, found in names.stored.items()
    }
    tensors = tuple(_of_directory(shards, names, config))
    return ModelContents(config, tensors, (), directory, stored, shards, directory)


def type_runs(tensors: Sequence[ListedTensor]) -> list[TypeRun]:
    """Tensors of the same kind and form together, in the order in which a token meets them."""
    parts, found = list(Part), dict[tuple[Part, str, str], list[ListedTensor]]()
    for tensor in sorted(tensors, key=lambda t: (parts.index(t.part), _ORDER.index(t.matrix))):
        found.setdefault((tensor.part, tensor.matrix, tensor.form), []).append(tensor)
    return [
        TypeRun(*key, tuple(_layers(run)), sum(tensor.num_bytes for tensor in run))
        for key, run in found.items()
    ]


_ORDER = (
    "embedding", "projection", "q", "k", "v", "head gates", "o", "gate", "up", "down", "router",
    "bias", "norms", "output", "head",
)  # fmt: skip


def _layers(tensors: Iterable[ListedTensor]) -> list[int]:
    return sorted({tensor.layer for tensor in tensors if tensor.layer is not None})


def _of_directory(
    shards: Mapping[str, Shard], names: PublishedNames, config: Step35Config
) -> Iterable[ListedTensor]:
    for name, found in names.stored.items():
        shard = shards[found]
        form = FORMS.get(shard.type_of(found))
        if form is None:
            raise CheckpointError(
                f"{shard.path}: tensor {found} is stored as {shard.type_of(found)}, expected {READABLE}"
            )
        num_weights = prod(shard.shape_of(found))
        num_bytes = num_weights * form.block_bytes
        scales = names.scales.get(name)
        if scales is not None:
            num_bytes += 4 * prod(shards[scales].shape_of(scales))
        yield _listed(name, form.name, num_weights, num_bytes, config)


_IN_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)", re.ASCII | re.DOTALL)
_MATRICES: Mapping[str, tuple[Part, str]] = {
    "model.embed_tokens.weight": (Part.EMBEDDING, "embedding"),
    "lm_head.weight": (Part.OUTPUT, "output"),
    "moe.gate.weight": (Part.ROUTERS, "router"),
    "moe.router_bias": (Part.ROUTERS, "bias"),
} | {
    f"{module}.{name}_proj.weight": (part, word)
    for module, part, names in (
        ("self_attn", Part.ATTENTION, {"q": "q", "k": "k", "v": "v", "o": "o", "g": "head gates"}),
        ("mlp", Part.DENSE, {"gate": "gate", "up": "up", "down": "down"}),
        ("share_expert", Part.SHARED, {"gate": "gate", "up": "up", "down": "down"}),
    )
    for name, word in names.items()
}


def _listed(name: str, form: str, num_weights: int, num_bytes: int, config: Step35Config) -> ListedTensor:
    found = _IN_LAYER.fullmatch(name)
    layer, rest = (None, name) if found is None else (int(found[1]), found[2])
    expert = ROUTED_EXPERT.fullmatch(rest)
    if expert is not None:
        part, matrix = Part.EXPERTS, expert[1]
    else:
        part, matrix = _MATRICES.get(rest, (Part.NORMS, "norms"))
    if layer is not None and layer >= config.num_hidden_layers:
        part, matrix = Part.MTP, matrix if part is not Part.NORMS else _mtp_matrix(rest)
    return ListedTensor(part, matrix, form, layer, num_weights, num_bytes)


def _mtp_matrix(rest: str) -> str:
    if rest == "eh_proj.weight":
        return "projection"
    return "head" if rest.endswith(("shared_head.output.weight", "shared_head.head.weight")) else "norms"
