"""The head's tensors, read from a checkpoint by their published names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from orchestrator.kernels import AttentionHeads
from orchestrator.model.attention import AttentionWeights
from orchestrator.model.layer import LayerWeights, NormWeights
from orchestrator.model.moe import FfnWeights, MoeWeights
from placement.errors import CheckpointError, ModelFilesFailed
from placement.weight_format import FLOAT32, ExpertFormat
from placement.wire_form import BFLOAT16_ROWS, wire_form
from workers.formats.checkpoint import Checkpoint, StoredMatrix
from workers.formats.complete import has_mtp, mtp_head_norms, mtp_heads
from workers.formats.contents import WITHOUT_DRAFTS
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

    `open_model` has seen that the trunk is whole.

    Matrices are views of the mapped files. Those that a model directory has in float32 are copied in a run in
    bfloat16, rounded to it.

    MTP layers that the configuration announces are left out if the files lack all of them: there are
    checkpoints of the trunk alone.

    Args:
        forms: what a plan keeps the experts of each MoE layer in; `kept_forms` where left out.
        need_mtp: where not, damaged MTP layers are left out too.

    Raises:
        CheckpointError: norms or routers are not finite, an output matrix is there that is not read, or MTP
            layers are damaged.
    """
    reader = _Reader(checkpoint, config, dtype, forms)
    trunk = config.layers[: config.num_hidden_layers]
    embedding = reader.stored("model.embed_tokens.weight")
    layers = tuple(reader.layer(layer) for layer in trunk)
    norm = reader.norm("model.norm.weight")
    if config.tie_word_embeddings:
        lm_head = Matrices.of(reader.kept(embedding))
        if checkpoint.has("lm_head.weight") and not _equal(reader.stored("lm_head.weight"), embedding):
            raise CheckpointError(
                f"{checkpoint.path}: config.json says tie_word_embeddings is true, but lm_head.weight "
                "differs from model.embed_tokens.weight: correct the flag"
            )
    else:
        lm_head = Matrices.of(reader.matrix("lm_head.weight"))
    num_trunk = len(reader.matrices)
    mtp: tuple[MtpWeights, ...] = ()
    try:
        checkpoint.contents(config).check_mtp()
        if has_mtp(checkpoint.stored, config):
            mtp = tuple(reader.mtp(layer) for layer in config.layers[config.num_hidden_layers :])
    except ModelFilesFailed:
        raise
    except CheckpointError as error:
        if need_mtp:
            raise CheckpointError(f"{error}, {WITHOUT_DRAFTS}") from None
        del reader.matrices[num_trunk:]
    matrices = tuple(reader.matrices)
    return HeadWeights(embedding, layers, norm, lm_head, mtp, matrices[:num_trunk], matrices[num_trunk:])


def _equal(one: StoredMatrix, other: StoredMatrix) -> bool:
    return one.form == other.form and torch.equal(one.data, other.data)


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
        self.matrices: list[Matrix] = []

    def tensor(self, name: str) -> Tensor:
        """A float32 copy."""
        tensor = self._checkpoint.tensor(name, torch.float32)
        # These are small, and a router would only choose other experts.
        if not torch.isfinite(tensor).all():
            file, stored = self._checkpoint.file_of(name), self._checkpoint.name_in_files(name)
            raise CheckpointError(
                f"{file}: tensor {stored} has a value that is not finite: the file is damaged, download it "
                "again"
            )
        return tensor

    def stored(self, name: str) -> StoredMatrix:
        """A matrix as it is in the files."""
        return self._checkpoint.matrix(name)

    def kept(self, stored: StoredMatrix) -> Matrix:
        """What a run computes with: a view of the file, or a copy of a directory's float32 where bfloat16."""
        if stored.form == FLOAT32 and self._dtype is torch.bfloat16 and self._checkpoint.path.is_dir():
            matrix = Matrix.of(stored.data.to(self._dtype))
        else:
            matrix = Matrix(stored.form, stored.rows, stored.columns, stored.data, stored.scales)
        self.matrices.append(matrix)
        return matrix

    def matrix(self, name: str) -> Matrix:
        return self.kept(self.stored(name))

    def norm(self, name: str) -> NormWeights:
        return NormWeights(self.tensor(name), self._config.rms_norm_eps, self._config.zero_centered)

    def layer(self, layer: LayerConfig) -> LayerWeights:
        name = f"model.layers.{layer.index}"
        return LayerWeights(
            index=layer.index,
            attention_norm=self.norm(f"{name}.input_layernorm.weight"),
            attention=self.attention(layer),
            ffn_norm=self.norm(f"{name}.post_attention_layernorm.weight"),
            ffn=self.moe(layer) if layer.is_moe else self.dense_ffn(layer),
        )

    def attention(self, layer: LayerConfig) -> AttentionWeights:
        config = self._config
        name = f"model.layers.{layer.index}.self_attn"
        heads, kv_heads, head_dim = layer.num_heads, layer.num_kv_heads, layer.head_dim
        parts = [
            self.matrix(f"{name}.q_proj.weight"),
            self.matrix(f"{name}.k_proj.weight"),
            self.matrix(f"{name}.v_proj.weight"),
        ]
        has_gate = self._checkpoint.has(f"{name}.g_proj.weight")
        if has_gate:
            parts.append(self.matrix(f"{name}.g_proj.weight"))
        q_norm = self.tensor(f"{name}.q_norm.weight")
        k_norm = self.tensor(f"{name}.k_norm.weight")
        qk_norm = torch.cat([q_norm.expand(heads, head_dim), k_norm.expand(kv_heads, head_dim)])
        return AttentionWeights(
            qkv_gate=Matrices.of(*parts),
            heads=AttentionHeads(
                # (1 + weight) where norms are zero-centred.
                qk_norm=qk_norm + 1.0 if config.zero_centered else qk_norm,
                num_kv_heads=kv_heads,
                window=config.sliding_window if layer.is_sliding else 0,
                scale=head_dim**-0.5,
                eps=config.rms_norm_eps,
                has_gate=has_gate,
            ),
            output=Matrices.of(self.matrix(f"{name}.o_proj.weight")),
        )

    def ffn(self, name: str, limit: float) -> FfnWeights:
        return FfnWeights(
            gate=self.matrix(f"{name}.gate_proj.weight"),
            up=self.matrix(f"{name}.up_proj.weight"),
            down=self.matrix(f"{name}.down_proj.weight"),
            limit=limit,
        )

    def dense_ffn(self, layer: LayerConfig) -> FfnWeights:
        return self.ffn(f"model.layers.{layer.index}.mlp", layer.swiglu_limit_shared)

    def moe(self, layer: LayerConfig) -> MoeWeights:
        config = self._config
        name = f"model.layers.{layer.index}"
        bias = None
        if self._checkpoint.has(f"{name}.moe.router_bias"):
            bias = self.tensor(f"{name}.moe.router_bias")
        router = Matrix.of(self.tensor(f"{name}.moe.gate.weight"))
        self.matrices.append(router)
        return MoeWeights(
            router=Matrices.of(router),
            router_bias=bias,
            shared=self.ffn(f"{name}.share_expert", layer.swiglu_limit_shared),
            top_k=config.moe_top_k,
            normalise=config.norm_expert_weight,
            scaling_factor=config.moe_router_scaling_factor,
            rows_in_bfloat16=wire_form(self._forms[layer.index], self._dtype_name) == BFLOAT16_ROWS,
        )

    def mtp(self, layer: LayerConfig) -> MtpWeights:
        name = f"model.layers.{layer.index}"
        head_norm = next(filter(self._checkpoint.has, mtp_head_norms(name)))
        head = next(filter(self._checkpoint.has, mtp_heads(name)))
        return MtpWeights(
            embedding_norm=self.norm(f"{name}.enorm.weight"),
            hidden_norm=self.norm(f"{name}.hnorm.weight"),
            eh_proj=Matrices.of(self.matrix(f"{name}.eh_proj.weight")),
            layer=self.layer(layer),
            head_norm=self.norm(head_norm),
            head=Matrices.of(self.matrix(head)),
        )
