"""Whether a model has what a run reads, by names and shapes: neither weights nor torch are loaded."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from placement.errors import CheckpointError, InputError
from placement.files.quote import quote
from workers.formats.gguf.names import gguf_name
from workers.model_config import LayerConfig, Step35Config


@dataclass(frozen=True, slots=True)
class Wanted:
    """A tensor that a run reads, by one of these published names."""

    names: tuple[str, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredShape:
    """A tensor's name in the files, its shape, and the file that it is in."""

    name: str
    shape: tuple[int, ...]
    file: Path


def check_trunk(path: Path, stored: Mapping[str, StoredShape], config: Step35Config) -> None:
    """Refuse files that lack a tensor of the trunk, have one of another shape, or one that nobody reads.

    A tensor that a model may do without is in all layers that can have it, or in none.

    Args:
        path: of the model, for messages.
        stored: by published name.

    Raises:
        CheckpointError: names the tensor.
    """
    wanted = list(_trunk(config))
    for layer in config.layers[: config.num_hidden_layers]:
        wanted += _layer(path, layer, stored, config)
    read = {_find(path, stored, tensor) for tensor in wanted}
    _refuse_differing(path, stored, config)
    _refuse_unread(path, stored, read, config)
    for index in config.moe_layers:
        _check_experts(path, stored, index, config)


def check_mtp(path: Path, stored: Mapping[str, StoredShape], config: Step35Config) -> None:
    """Refuse MTP layers that are there in part, or of another shape; files may lack all of them.

    Args:
        path: of the file or directory that has them, for messages.

    Raises:
        CheckpointError: names the tensor.
    """
    if not has_mtp(stored, config):
        return
    for layer in config.layers[config.num_hidden_layers :]:
        for tensor in (*_layer(path, layer, stored, config), *_mtp(layer.index, config)):
            _find(path, stored, tensor)


def has_mtp(names: Collection[str], config: Step35Config) -> bool:
    """Whether the files have any tensor of the announced MTP layers."""
    announced = config.layers[config.num_hidden_layers :]
    prefixes = tuple(f"model.layers.{layer.index}." for layer in announced)
    return any(name.startswith(prefixes) for name in names)


def check_drafts(
    path: Path, names: Collection[str], notes: Collection[str], config: Step35Config, num_drafts: int
) -> None:
    """Whether a step can have so many drafts, before anything large is read.

    Args:
        names: published names of the tensors.
        notes: of the checkpoint.

    Raises:
        InputError: the configuration announces fewer MTP layers, or the files lack them; says which.
    """
    announced = config.num_nextn_predict_layers
    # Such as why a file of MTP layers beside the model is not taken.
    told = "".join(f"; {note}" for note in notes)
    in_directory = path.is_dir()
    told_by = "config.json" if in_directory else path.name
    key = "num_nextn_predict_layers" if in_directory else "step35.nextn_predict_layers"
    if num_drafts > announced:
        found = 0
        while f"model.layers.{config.num_hidden_layers + found}.eh_proj.weight" in names:
            found += 1
        advice = f": the files have {found}, so set {key} to {found}" if found > announced else ""
        raise InputError(
            f"{num_drafts} drafts a step asked for, but {told_by} announces {announced} MTP layers "
            f"({key}); expected {f'0 to {announced}' if announced else 0}{advice}{told}"
        )
    if num_drafts and not has_mtp(names, config):
        first = f"{'model.layers' if in_directory else 'blk'}.{config.num_hidden_layers}"
        raise InputError(
            f"{num_drafts} drafts a step asked for, but the files of {path} have no tensors of "
            f"the MTP layers that {told_by} announces ({first}.…); download them, or ask for no drafts{told}"
        )


ROUTED_EXPERT = re.compile(r"moe\.(?:(?:experts\.)?\d+\.)?(gate|up|down)_proj\.weight", re.ASCII)
"""Behind model.layers.N.: a matrix of all routed experts, or of one."""

# Tables that follow from config.json.
_DERIVED = ".rotary_emb.inv_freq"


def _refuse_differing(path: Path, stored: Mapping[str, StoredShape], config: Step35Config) -> None:
    """Refuse a trunk of which some layers have head gates or router biases and others, damaged, do not."""
    trunk = range(config.num_hidden_layers)
    for part, layers in (("self_attn.g_proj.weight", trunk), ("moe.router_bias", config.moe_layers)):
        names = [f"model.layers.{layer}.{part}" for layer in layers if layer in trunk]
        there = [name for name in names if name in stored]
        if there and len(there) < len(names):
            lost = next(name for name in names if name not in stored)
            raise CheckpointError(
                f"{path}: tensor {_in_files(path, lost)} is missing; expected it, as there is "
                f"{stored[there[0]].name}: the file is damaged, download it again and compare its checksum"
            )


def _refuse_unread(
    path: Path, stored: Mapping[str, StoredShape], read: Collection[str], config: Step35Config
) -> None:
    """Refuse a tensor of the trunk's layers that is not read: the model computes something more.

    Args:
        read: published names.

    Raises:
        CheckpointError: names the tensor.
    """
    trunk = {str(index) for index in range(config.num_hidden_layers)}
    moe = {str(index) for index in config.moe_layers}
    for name, found in stored.items():
        layer, _, part = name.removeprefix("model.layers.").partition(".")
        if not name.startswith("model.layers.") or layer not in trunk or name in read:
            continue
        is_expert = layer in moe and ROUTED_EXPERT.fullmatch(part) is not None
        if not is_expert and not part.endswith(_DERIVED):
            raise CheckpointError(
                f"{path}: tensor {quote(found.name)} is none that a model of this architecture has; Potluck "
                "would leave out what it does: use a published checkpoint"
            )


def _is_read(path: Path, flag: str, announced: bool | None, name: str, names: Collection[str]) -> bool:
    """Whether to read a tensor that a flag of config.json announces.

    Where config.json does not have the flag, the tensor is read if the files have it.

    Raises:
        CheckpointError: the flag is off, but the files have the tensor.
    """
    there = name in names
    if announced is False and there:
        raise CheckpointError(
            f"{path}: config.json says {flag} is false, but there is a tensor {name}: remove the flag if the "
            "model uses the tensor"
        )
    return there if announced is None else announced


def mtp_heads(prefix: str) -> tuple[str, ...]:
    """Published as transformer.shared_head.output; some copies drop the infix or say head."""
    return tuple(
        f"{prefix}.{infix}shared_head.{word}.weight"
        for infix in ("transformer.", "")
        for word in ("output", "head")
    )


def mtp_head_norms(prefix: str) -> tuple[str, ...]:
    """Names of the norm before an MTP layer's own head."""
    return tuple(f"{prefix}.{infix}shared_head.norm.weight" for infix in ("transformer.", ""))


def _find(path: Path, stored: Mapping[str, StoredShape], wanted: Wanted) -> str:
    """The name of a tensor that must be there."""
    name = next((name for name in wanted.names if name in stored), None)
    if name is None:
        names = " or ".join(dict.fromkeys(_in_files(path, name) for name in wanted.names))
        raise CheckpointError(
            f"{path}: tensor {names} is missing; expected it with shape {list(wanted.shape)}: check that all "
            "of the model's files were downloaded"
        )
    found = stored[name]
    if found.shape != wanted.shape:
        raise CheckpointError(
            f"{found.file}: tensor {found.name} has shape {list(found.shape)}, expected "
            f"{list(wanted.shape)}: the configuration and the weights belong to different models"
        )
    return name


def _in_files(path: Path, name: str) -> str:
    """A published name as the model's files would spell it."""
    try:
        return gguf_name(name) if path.is_file() else name
    except KeyError:
        return name


def _trunk(config: Step35Config) -> Iterator[Wanted]:
    hidden, vocab = config.hidden_size, config.vocab_size
    yield Wanted(("model.embed_tokens.weight",), (vocab, hidden))
    yield Wanted(("model.norm.weight",), (hidden,))
    if not config.tie_word_embeddings:
        yield Wanted(("lm_head.weight",), (vocab, hidden))


def _layer(path: Path, layer: LayerConfig, names: Collection[str], config: Step35Config) -> Iterator[Wanted]:
    hidden, name = config.hidden_size, f"model.layers.{layer.index}"
    heads, kv_heads, head_dim = layer.num_heads, layer.num_kv_heads, layer.head_dim
    yield Wanted((f"{name}.input_layernorm.weight",), (hidden,))
    yield Wanted((f"{name}.post_attention_layernorm.weight",), (hidden,))
    attention = f"{name}.self_attn"
    yield Wanted((f"{attention}.q_proj.weight",), (heads * head_dim, hidden))
    yield Wanted((f"{attention}.k_proj.weight",), (kv_heads * head_dim, hidden))
    yield Wanted((f"{attention}.v_proj.weight",), (kv_heads * head_dim, hidden))
    yield Wanted((f"{attention}.o_proj.weight",), (hidden, heads * head_dim))
    gate, flag = f"{attention}.g_proj.weight", "use_head_wise_attn_gate"
    if _is_read(path, flag, config.use_head_wise_attn_gate, gate, names):
        yield Wanted((gate,), (heads, hidden))
    for norm in ("q_norm", "k_norm"):
        yield Wanted((f"{attention}.{norm}.weight",), (head_dim,))
    if not layer.is_moe:
        yield from _ffn(f"{name}.mlp", config.intermediate_size, hidden)
        return
    yield Wanted((f"{name}.moe.gate.weight",), (config.moe_num_experts, hidden))
    bias = f"{name}.moe.router_bias"
    if _is_read(path, "use_moe_router_bias", config.use_moe_router_bias, bias, names):
        yield Wanted((bias,), (config.moe_num_experts,))
    yield from _ffn(f"{name}.share_expert", config.share_expert_dim, hidden)


def _ffn(name: str, inner: int, hidden: int) -> Iterator[Wanted]:
    yield Wanted((f"{name}.gate_proj.weight",), (inner, hidden))
    yield Wanted((f"{name}.up_proj.weight",), (inner, hidden))
    yield Wanted((f"{name}.down_proj.weight",), (hidden, inner))


def _mtp(layer: int, config: Step35Config) -> Iterator[Wanted]:
    hidden, name = config.hidden_size, f"model.layers.{layer}"
    yield Wanted((f"{name}.enorm.weight",), (hidden,))
    yield Wanted((f"{name}.hnorm.weight",), (hidden,))
    yield Wanted((f"{name}.eh_proj.weight",), (hidden, 2 * hidden))
    yield Wanted(mtp_head_norms(name), (hidden,))
    yield Wanted(mtp_heads(name), (config.vocab_size, hidden))


def _check_experts(path: Path, stored: Mapping[str, StoredShape], layer: int, config: Step35Config) -> None:
    """All of a layer's in one tensor for each matrix, or a tensor for each expert."""
    hidden, inner, prefix = config.hidden_size, config.moe_intermediate_size, f"model.layers.{layer}.moe"
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    stacked = {part: f"{prefix}.{part}.weight" for part in shapes}
    if path.is_file() or any(name in stored for name in stacked.values()):
        for part, shape in shapes.items():
            _find(path, stored, Wanted((stacked[part],), (config.moe_num_experts, *shape)))
        return
    for expert in range(config.moe_num_experts):
        for part, shape in shapes.items():
            names = (f"{prefix}.experts.{expert}.{part}.weight", f"{prefix}.{expert}.{part}.weight")
            _find(path, stored, Wanted(names, shape))
