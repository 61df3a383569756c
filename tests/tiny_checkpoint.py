"""Small random checkpoints in the published layout, written to a directory for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

ExpertNames = Literal["stacked", "experts", "numbered"]

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 32.0,
    "original_max_position_embeddings": 64,
}

SPECIAL_TOKENS = ["<|bos|>", "<|eos|>", "<|im_end|>", "<|im_start|>"]

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif %}"
)


def write_random_checkpoint(
    directory: Path,
    *,
    seed: int,
    vocab_size: int = 320,
    hidden_size: int = 64,
    num_layers: int = 6,
    num_mtp_layers: int = 3,
    num_heads: int = 4,
    num_sliding_heads: int = 6,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    sliding_window: int = 8,
    intermediate_size: int = 96,
    moe_layers: Sequence[int] = (2, 3, 4, 5),
    num_experts: int = 16,
    top_k: int = 4,
    moe_intermediate_size: int = 32,
    share_expert_dim: int = 32,
    router_scaling: float = 3.0,
    router_bias_scale: float = 0.1,
    swiglu_limits: Mapping[int, float] | None = None,
    swiglu_limits_shared: Mapping[int, float] | None = None,
    rope_scaling: Mapping[str, Any] | None = LLAMA3_SCALING,
    max_positions: int = 4096,
    dtype: torch.dtype = torch.float32,
    num_shards: int = 1,
    expert_names: ExpertNames = "stacked",
    trunk_prefix: str = "model.",
    mtp_head: str = "transformer.shared_head.output",
    tokenizer: bool = False,
    model_type: Literal["step3p5", "step3p7"] = "step3p5",
) -> Path:
    """Write config.json and safetensors of a random Step-3.5 model with published tensor names.

    Layers 0, 4, 8, … are full attention, the others and the MTP layers sliding. Weights are scaled so that
    every layer matters to the logits and routing spreads over the experts.

    Args:
        directory: created if missing.
        seed: the same seed and arguments give the same bytes.
        swiglu_limits: absolute layer index -> limit of its routed experts (0 or absent: none).
        swiglu_limits_shared: absolute layer index -> limit of its shared expert or dense FFN.
        num_shards: more than 1 writes a sharded index.
        expert_names: "stacked" `.moe.gate_proj.weight`, "experts" `.moe.experts.E.…`, "numbered" `.moe.E.…`.
        trunk_prefix: "model." or "model.language_model."; MTP layers keep "model.", lm_head has none.
        mtp_head: infix of the MTP layers' own head matrix.
        tokenizer: also write a byte-level tokenizer.json and a chat template (vocab_size >= 260).

    Returns:
        `directory`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    padded = num_layers + num_mtp_layers
    sliding = [layer % 4 != 0 for layer in range(padded)]
    sliding[num_layers:] = [True] * num_mtp_layers
    limits, limits_shared = swiglu_limits or {}, swiglu_limits_shared or {}
    config: dict[str, Any] = {
        "architectures": ["Step3p5ForCausalLM"],
        "model_type": "step3p5",
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_layers,
        "num_nextn_predict_layers": num_mtp_layers,
        "vocab_size": vocab_size,
        "bos_token_id": 0,
        "eos_token_id": [1, 2],
        "num_attention_heads": num_heads,
        "num_attention_groups": num_kv_heads,
        "head_dim": head_dim,
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "num_attention_heads": num_sliding_heads,
            "num_attention_groups": num_kv_heads,
            "head_dim": head_dim,
        },
        "layer_types": ["sliding_attention" if s else "full_attention" for s in sliding],
        "sliding_window": sliding_window,
        "use_head_wise_attn_gate": True,
        "rope_theta": [10_000.0 if s else 5_000_000.0 for s in sliding],
        "partial_rotary_factors": [1.0 if s else 0.5 for s in sliding],
        "max_position_embeddings": max_positions,
        "max_seq_len": max_positions,
        "rms_norm_eps": 1e-5,
        "moe_layers_enum": ",".join(str(layer) for layer in moe_layers),
        "moe_num_experts": num_experts,
        "moe_top_k": top_k,
        "moe_intermediate_size": moe_intermediate_size,
        "share_expert_dim": share_expert_dim,
        "moe_router_activation": "sigmoid",
        "use_moe_router_bias": True,
        "need_fp32_gate": True,
        "norm_expert_weight": True,
        "moe_router_scaling_factor": router_scaling,
        "swiglu_limits": [limits.get(layer, 0.0) for layer in range(padded)],
        "swiglu_limits_shared": [limits_shared.get(layer, 0.0) for layer in range(padded)],
        "zero_centered": True,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    if rope_scaling is not None:
        config |= {"rope_scaling": dict(rope_scaling), "yarn_only_types": ["full_attention"]}
    tensors = _random_tensors(config, seed, dtype, router_bias_scale, expert_names, trunk_prefix, mtp_head)
    if model_type == "step3p7":
        config = {
            "architectures": ["Step3p7ForConditionalGeneration"],
            "model_type": "step3p7",
            "text_config": config,
        }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    _write_shards(directory, tensors, num_shards)
    if tokenizer:
        _write_tokenizer(directory)
    return directory


def _random_tensors(
    config: Mapping[str, Any],
    seed: int,
    dtype: torch.dtype,
    router_bias_scale: float,
    expert_names: ExpertNames,
    trunk_prefix: str,
    mtp_head: str,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    trunk_layers = config["num_hidden_layers"]
    moe_layers = {int(layer) for layer in config["moe_layers_enum"].split(",") if layer}

    def matrix(name: str, *shape: int) -> None:
        scale = shape[-1] ** -0.5
        tensors[name] = (torch.randn(*shape, generator=generator) * scale).to(dtype)

    def norm(name: str, size: int) -> None:
        tensors[name] = (torch.randn(size, generator=generator) * 0.1).to(dtype)

    tensors[f"{trunk_prefix}embed_tokens.weight"] = torch.randn(vocab, hidden, generator=generator).to(dtype)
    norm(f"{trunk_prefix}norm.weight", hidden)
    matrix("lm_head.weight", vocab, hidden)
    for layer, layer_type in enumerate(config["layer_types"]):
        is_mtp = layer >= trunk_layers
        name = f"{'model.' if is_mtp else trunk_prefix}layers.{layer}"
        heads = config["num_attention_heads"]
        if layer_type == "sliding_attention":
            heads = config["attention_other_setting"]["num_attention_heads"]
        kv_heads, head_dim = config["num_attention_groups"], config["head_dim"]
        norm(f"{name}.input_layernorm.weight", hidden)
        norm(f"{name}.post_attention_layernorm.weight", hidden)
        matrix(f"{name}.self_attn.q_proj.weight", heads * head_dim, hidden)
        matrix(f"{name}.self_attn.k_proj.weight", kv_heads * head_dim, hidden)
        matrix(f"{name}.self_attn.v_proj.weight", kv_heads * head_dim, hidden)
        matrix(f"{name}.self_attn.o_proj.weight", hidden, heads * head_dim)
        matrix(f"{name}.self_attn.g_proj.weight", heads, hidden)
        norm(f"{name}.self_attn.q_norm.weight", head_dim)
        norm(f"{name}.self_attn.k_norm.weight", head_dim)
        if is_mtp:
            norm(f"{name}.enorm.weight", hidden)
            norm(f"{name}.hnorm.weight", hidden)
            matrix(f"{name}.eh_proj.weight", hidden, 2 * hidden)
            norm(f"{name}.{mtp_head.split('shared_head')[0]}shared_head.norm.weight", hidden)
            matrix(f"{name}.{mtp_head}.weight", vocab, hidden)
        if layer not in moe_layers or is_mtp:
            inner = config["intermediate_size"]
            matrix(f"{name}.mlp.gate_proj.weight", inner, hidden)
            matrix(f"{name}.mlp.up_proj.weight", inner, hidden)
            matrix(f"{name}.mlp.down_proj.weight", hidden, inner)
            continue
        experts, inner, shared = (
            config["moe_num_experts"],
            config["moe_intermediate_size"],
            config["share_expert_dim"],
        )
        matrix(f"{name}.moe.gate.weight", experts, hidden)
        tensors[f"{name}.moe.router_bias"] = torch.randn(experts, generator=generator) * router_bias_scale
        for part, shape in (
            ("gate_proj", (inner, hidden)),
            ("up_proj", (inner, hidden)),
            ("down_proj", (hidden, inner)),
        ):
            stacked = (torch.randn(experts, *shape, generator=generator) * shape[-1] ** -0.5).to(dtype)
            if expert_names == "stacked":
                tensors[f"{name}.moe.{part}.weight"] = stacked
                continue
            infix = "experts." if expert_names == "experts" else ""
            for expert in range(experts):
                tensors[f"{name}.moe.{infix}{expert}.{part}.weight"] = stacked[expert].clone()
        matrix(f"{name}.share_expert.gate_proj.weight", shared, hidden)
        matrix(f"{name}.share_expert.up_proj.weight", shared, hidden)
        matrix(f"{name}.share_expert.down_proj.weight", hidden, shared)
    return tensors


def _write_shards(directory: Path, tensors: Mapping[str, Tensor], num_shards: int) -> None:
    if num_shards == 1:
        save_file(dict(tensors), directory / "model.safetensors")
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for shard in range(num_shards):
        file_name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        chosen = names[shard::num_shards]
        save_file({name: tensors[name] for name in chosen}, directory / file_name)
        weight_map |= dict.fromkeys(chosen, file_name)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_tokenizer(directory: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(SPECIAL_TOKENS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": SPECIAL_TOKENS[1],
        "chat_template": CHAT_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
