"""The same checkpoint in transformers' own implementation of the architecture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

PASSED_THROUGH = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_nextn_predict_layers",
    "vocab_size",
    "num_attention_heads",
    "head_dim",
    "attention_other_setting",
    "layer_types",
    "sliding_window",
    "rope_theta",
    "partial_rotary_factors",
    "rope_scaling",
    "max_position_embeddings",
    "rms_norm_eps",
    "moe_layers_enum",
    "moe_intermediate_size",
    "share_expert_dim",
    "moe_router_scaling_factor",
    "swiglu_limits",
    "swiglu_limits_shared",
)


class Oracle:
    """transformers' Step3p7TextModel and lm_head in float32, eager attention."""

    def __init__(self, model_dir: Path) -> None:
        # Here, since every process of pytest collects all tests, and this takes seconds.
        from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
        from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

        published: dict[str, Any] = json.loads((model_dir / "config.json").read_text())
        fields = {name: published[name] for name in PASSED_THROUGH if name in published}
        config = Step3p7TextConfig(
            num_key_value_heads=published["num_attention_groups"],
            n_routed_experts=published["moe_num_experts"],
            num_experts_per_tok=published["moe_top_k"],
            pad_token_id=0,
            **fields,
        )
        config._attn_implementation = "eager"
        tensors = {
            name: tensor.float() for name, tensor in load_file(model_dir / "model.safetensors").items()
        }
        self._lm_head = tensors.pop("lm_head.weight")
        self._model = Step3p7TextModel(config).float().eval()
        missing, unexpected = self._model.load_state_dict(
            _renamed(tensors, config.num_hidden_layers), strict=False
        )
        if missing or unexpected:
            raise ValueError(f"names do not map: missing {missing}, unexpected {unexpected}")

    @torch.no_grad()
    def logits(self, token_ids: list[int]) -> Tensor:
        """float32 [num_tokens, vocab], no cache."""
        hidden = self._model(input_ids=torch.tensor([token_ids]), use_cache=False).last_hidden_state[0]
        return hidden @ self._lm_head.T

    @torch.no_grad()
    def greedy(self, prompt_ids: list[int], num_tokens: int) -> list[int]:
        """The next `num_tokens` tokens, the whole sequence computed afresh for each."""
        token_ids = list(prompt_ids)
        for _ in range(num_tokens):
            token_ids.append(int(self.logits(token_ids)[-1].argmax()))
        return token_ids[len(prompt_ids) :]


def _renamed(tensors: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Published names to transformers' names; MTP layers left out."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("model.")
        if name.startswith("layers.") and int(name.split(".")[1]) >= num_layers:
            continue
        if ".moe.up_proj" in name:
            continue
        if ".moe.gate_proj" in name:
            up = tensors["model." + name.replace("gate_proj", "up_proj")]
            renamed[name.replace(".moe.gate_proj.weight", ".mlp.experts.gate_up_proj")] = torch.cat(
                [tensor, up], dim=1
            )
            continue
        for published, theirs in (
            (".moe.down_proj.weight", ".mlp.experts.down_proj"),
            (".moe.gate.weight", ".mlp.gate.weight"),
            (".moe.router_bias", ".mlp.gate.e_score_correction_bias"),
            (".share_expert.", ".mlp.shared_experts."),
        ):
            name = name.replace(published, theirs)
        renamed[name] = tensor
    return renamed
