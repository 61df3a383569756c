"""The head's tensors, read from a checkpoint by their published names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.model.attention import AttentionWeights
from orchestrator.model.layer import LayerWeights, NormWeights
from orchestrator.model.moe import FfnWeights, MoeWeights
from placement.errors import CheckpointError
from placement.files.quote import quote
from placement.weight_format import FLOAT32, ExpertFormat
from placement.wire_form import BFLOAT16_ROWS, wire_form
from workers.formats.checkpoint import Checkpoint, StoredMatrix
from workers.formats.complete import check_drafts as check_files_drafts
from workers.formats.complete import has_mtp
from workers.formats.open_model import kept_forms
from workers.kernels import Matrices, Matrix
from workers.model_config import LayerConfig, Step35Config


@dataclass(frozen=True, slots=True)
class MtpWeights:
    """One multi-token-prediction layer. eh_proj [hidden, 2 * hidden]; its own head [vocab, hidden]."""

    embedding_norm: NormWeights
    hidden_norm: NormWeights
    eh_proj: Matrices
    layer: LayerWeights
    head_norm: NormWeights
    head: Matrices


@dataclass(frozen=True, slots=True)
class HeadWeights:
    """All tensors the head holds; embedding and lm_head [vocab, hidden].

    `trunk_matrices` are those that a token reads, `mtp_matrices` those that its drafts read as well.
    """

    embedding: StoredMatrix
    layers: tuple[LayerWeights, ...]
    norm: NormWeights
    lm_head: Matrices
    mtp: tuple[MtpWeights, ...]
    trunk_matrices: tuple[Matrix, ...]
    mtp_matrices: tuple[Matrix, ...]


def load_head_weights(
    checkpoint: Checkpoint,
    config: Step35Config,
    dtype: torch.dtype,
    *,
    forms: Mapping[int, ExpertFormat] | None = None,
    need_mtp: bool = True,
) -> HeadWeights:
    """The head's tensors: norms and routers in float32, matrices as they are stored.

    Matrices are views of the mapped files. Those that a model directory has in float32 are copied in a run in
    bfloat16, rounded to it.

    MTP layers that the configuration announces are left out if the files lack all of them: there are
    checkpoints of the trunk alone.

    Args:
        forms: what a plan keeps the experts of each MoE layer in; `kept_forms` where left out.
        need_mtp: where not, damaged MTP layers are left out too.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or none that is understood.
    """
    reader = _Reader(checkpoint, config, dtype, forms)
    trunk = config.layers[: config.num_hidden_layers]
    mtp_layers = config.layers[config.num_hidden_layers :]
    if not has_mtp(checkpoint.stored, config):
        mtp_layers = ()
    embedding = reader.stored(("model.embed_tokens.weight",), config.vocab_size, config.hidden_size)
    layers = tuple(reader.layer(layer) for layer in trunk)
    reader.refuse_unread()
    norm = reader.norm(("model.norm.weight",), config.hidden_size)
    if config.tie_word_embeddings:
        lm_head = Matrices.of(reader.kept(embedding))
        if checkpoint.has("lm_head.weight") and not _equal(
            reader.stored(("lm_head.weight",), config.vocab_size, config.hidden_size), embedding
        ):
            raise CheckpointError(
                f"{checkpoint.path}: config.json says tie_word_embeddings is true, but lm_head.weight "
                "differs from model.embed_tokens.weight: correct the flag"
            )
    else:
        lm_head = Matrices.of(reader.matrix(("lm_head.weight",), config.vocab_size, config.hidden_size))
    num_trunk = len(reader.matrices)
    try:
        mtp = tuple(reader.mtp(layer) for layer in mtp_layers)
    except CheckpointError as error:
        if need_mtp:
            raise type(error)(f"{error}, or go without drafts (--mtp 0)") from None
        mtp = ()
        del reader.matrices[num_trunk:]
    matrices = tuple(reader.matrices)
    return HeadWeights(embedding, layers, norm, lm_head, mtp, matrices[:num_trunk], matrices[num_trunk:])


def _equal(one: StoredMatrix, other: StoredMatrix) -> bool:
    return one.form == other.form and torch.equal(one.data, other.data)


def check_drafts(checkpoint: Checkpoint, config: Step35Config, num_drafts: int) -> None:
    """Whether a step can have so many drafts, before anything large is read.

    Raises:
        InputError: the configuration announces fewer MTP layers, or the files lack them; says which.
    """
    check_files_drafts(checkpoint.path, checkpoint.stored, checkpoint.notes, config, num_drafts)


# What the head does not read of model.layers.N.: routed experts, and tables that follow from config.json.
_ROUTED_EXPERT = re.compile(r"moe\.((experts\.)?\d+\.)?(gate|up|down)_proj\.weight", re.ASCII)
_DERIVED = ".rotary_emb.inv_freq"


class _Reader:
    def __init__(
        self,
        checkpoint: Checkpoint,
        config: Step35Config,
        dtype: torch.dtype,
        forms: Mapping[int, ExpertFormat] | None,
    ) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._dtype = dtype
        self._dtype_name = str(dtype).removeprefix("torch.")
        self._forms = kept_forms(checkpoint, config, self._dtype_name) if forms is None else forms
        self._read: set[str] = set()
        self.matrices: list[Matrix] = []

    def tensor(self, names: tuple[str, ...], *shape: int) -> Tensor:
        """A float32 copy."""
        name = self._found(names, shape)
        tensor = self._checkpoint.tensor(name, torch.float32)
        self._check_shape(name, tuple(tensor.shape), shape)
        # These are small, and a router would only choose other experts.
        if not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{self._named(name)} has a value that is not finite: the file is damaged, download it again"
            )
        return tensor

    def stored(self, names: tuple[str, ...], *shape: int) -> StoredMatrix:
        """A matrix as it is in the files."""
        name = self._found(names, shape)
        stored = self._checkpoint.matrix(name)
        self._check_shape(name, (stored.rows, stored.columns), shape)
        return stored

    def kept(self, stored: StoredMatrix) -> Matrix:
        """What a run computes with: a view of the file, or a copy of a directory's float32 where bfloat16."""
        if stored.form == FLOAT32 and self._dtype is torch.bfloat16 and self._checkpoint.path.is_dir():
            matrix = Matrix.of(stored.data.to(self._dtype))
        else:
            matrix = Matrix(stored.form, stored.rows, stored.columns, stored.data, stored.scales)
        self.matrices.append(matrix)
        return matrix

    def matrix(self, names: tuple[str, ...], *shape: int) -> Matrix:
        return self.kept(self.stored(names, *shape))

    def _found(self, names: tuple[str, ...], shape: tuple[int, ...]) -> str:
        name = next((name for name in names if self._checkpoint.has(name)), None)
        if name is None:
            spelled = " or ".join(dict.fromkeys(map(self._checkpoint.name_in_files, names)))
            raise CheckpointError(
                f"{self._checkpoint.file_of(names[0])}: tensor {spelled} is missing; expected it with shape "
                f"{list(shape)}: check that all of the model's files were downloaded"
            )
        self._read.add(name)
        return name

    def _check_shape(self, name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if found != expected:
            raise CheckpointError(
                f"{self._named(name)} has shape {list(found)}, expected {list(expected)}: the configuration "
                "and the weights belong to different models"
            )

    def _named(self, name: str) -> str:
        """A tensor and the file that it is in, for messages."""
        return f"{self._checkpoint.file_of(name)}: tensor {self._checkpoint.name_in_files(name)}"

    def refuse_unread(self) -> None:
        """Refuse a tensor of the trunk's layers that was not read: the model computes something more.

        Raises:
            CheckpointError: names the tensor.
        """
        trunk = {str(index) for index in range(self._config.num_hidden_layers)}
        moe = {str(index) for index in self._config.moe_layers}
        for name, stored in self._checkpoint.stored.items():
            layer, _, part = name.removeprefix("model.layers.").partition(".")
            if not name.startswith("model.layers.") or layer not in trunk or name in self._read:
                continue
            is_expert = layer in moe and _ROUTED_EXPERT.fullmatch(part) is not None
            if not is_expert and not part.endswith(_DERIVED):
                raise CheckpointError(
                    f"{self._checkpoint.path}: tensor {quote(stored)} is none that a model of this "
                    "architecture has; Potluck would leave out what it does: use a published "
                    "checkpoint"
                )

    def present(self, flag: str, name: str) -> bool:
        """Whether to read a tensor that a flag of config.json announces.

        Where config.json does not have the flag, the tensor is read if the files have it.

        Raises:
            CheckpointError: the flag is off, but the files have the tensor.
        """
        announced: bool | None = getattr(self._config, flag)
        there = self._checkpoint.has(name)
        if announced is False and there:
            raise CheckpointError(
                f"{self._checkpoint.path}: config.json says {flag} is false, but there is a tensor "
                f"{name}: remove the flag if the model uses the tensor"
            )
        return there if announced is None else announced

    def norm(self, names: tuple[str, ...], size: int) -> NormWeights:
        weight = self.tensor(names, size)
        return NormWeights(weight, self._config.rms_norm_eps, self._config.zero_centered)

    def layer(self, layer: LayerConfig) -> LayerWeights:
        hidden = self._config.hidden_size
        name = f"model.layers.{layer.index}"
        return LayerWeights(
            index=layer.index,
            attention_norm=self.norm((f"{name}.input_layernorm.weight",), hidden),
            attention=self.attention(layer),
            ffn_norm=self.norm((f"{name}.post_attention_layernorm.weight",), hidden),
            ffn=self.moe(layer) if layer.is_moe else self.dense_ffn(layer),
        )

    def attention(self, layer: LayerConfig) -> AttentionWeights:
        config, hidden = self._config, self._config.hidden_size
        name = f"model.layers.{layer.index}.self_attn"
        heads, kv_heads, head_dim = layer.num_heads, layer.num_kv_heads, layer.head_dim
        parts = [
            self.matrix((f"{name}.q_proj.weight",), heads * head_dim, hidden),
            self.matrix((f"{name}.k_proj.weight",), kv_heads * head_dim, hidden),
            self.matrix((f"{name}.v_proj.weight",), kv_heads * head_dim, hidden),
        ]
        has_gate = self.present("use_head_wise_attn_gate", f"{name}.g_proj.weight")
        if has_gate:
            parts.append(self.matrix((f"{name}.g_proj.weight",), heads, hidden))
        q_norm = self.tensor((f"{name}.q_norm.weight",), head_dim)
        k_norm = self.tensor((f"{name}.k_norm.weight",), head_dim)
        qk_norm = torch.cat([q_norm.expand(heads, head_dim), k_norm.expand(kv_heads, head_dim)])
        return AttentionWeights(
            qkv_gate=Matrices.of(*parts),
            qk_norm=qk_norm + 1.0 if config.zero_centered else qk_norm,
            output=Matrices.of(self.matrix((f"{name}.o_proj.weight",), hidden, heads * head_dim)),
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            window=config.sliding_window if layer.is_sliding else 0,
            scale=head_dim**-0.5,
            eps=config.rms_norm_eps,
            has_gate=has_gate,
        )

    def ffn(self, name: str, inner: int, limit: float) -> FfnWeights:
        hidden = self._config.hidden_size
        return FfnWeights(
            gate=self.matrix((f"{name}.gate_proj.weight",), inner, hidden),
            up=self.matrix((f"{name}.up_proj.weight",), inner, hidden),
            down=self.matrix((f"{name}.down_proj.weight",), hidden, inner),
            limit=limit,
        )

    def dense_ffn(self, layer: LayerConfig) -> FfnWeights:
        name = f"model.layers.{layer.index}.mlp"
        return self.ffn(name, self._config.intermediate_size, layer.swiglu_limit_shared)

    def moe(self, layer: LayerConfig) -> MoeWeights:
        config = self._config
        name = f"model.layers.{layer.index}"
        experts = config.moe_num_experts
        bias = None
        if self.present("use_moe_router_bias", f"{name}.moe.router_bias"):
            bias = self.tensor((f"{name}.moe.router_bias",), experts)
        router = Matrix.of(self.tensor((f"{name}.moe.gate.weight",), experts, config.hidden_size))
        self.matrices.append(router)
        return MoeWeights(
            router=Matrices.of(router),
            router_bias=bias,
            shared=self.ffn(f"{name}.share_expert", config.share_expert_dim, layer.swiglu_limit_shared),
            top_k=config.moe_top_k,
            normalise=config.norm_expert_weight,
            scaling_factor=config.moe_router_scaling_factor,
            rows_in_bfloat16=wire_form(self._forms[layer.index], self._dtype_name) == BFLOAT16_ROWS,
        )

    def mtp(self, layer: LayerConfig) -> MtpWeights:
        hidden, vocab = self._config.hidden_size, self._config.vocab_size
        name = f"model.layers.{layer.index}"
        # Published as transformer.shared_head.output; some copies drop the infix or say head.
        heads = tuple(
            f"{name}.{infix}shared_head.{word}.weight"
            for infix in ("transformer.", "")
            for word in ("output", "head")
        )
        head_norms = tuple(f"{name}.{infix}shared_head.norm.weight" for infix in ("transformer.", ""))
        return MtpWeights(
            embedding_norm=self.norm((f"{name}.enorm.weight",), hidden),
            hidden_norm=self.norm((f"{name}.hnorm.weight",), hidden),
            eh_proj=Matrices.of(self.matrix((f"{name}.eh_proj.weight",), hidden, 2 * hidden)),
            layer=self.layer(layer),
            head_norm=self.norm(head_norms, hidden),
            head=Matrices.of(self.matrix(heads, vocab, hidden)),
        )
