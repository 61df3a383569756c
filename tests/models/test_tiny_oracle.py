"""The training net computes what transformers' own implementation of the architecture computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.tiny.config import TinyConfig
from models.tiny.export import published_tensors
from models.tiny.net import TinyModel

# One process imports transformers.
pytestmark = pytest.mark.xdist_group("transformers")


def _oracle(model: TinyModel) -> tuple[torch.nn.Module, Tensor]:
    from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
    from transformers.models.step3p7.modeling_step3p7 import Step3p7TextModel

    document = model.config.to_json()
    for ours in ("architectures", "model_type", "torch_dtype"):
        document.pop(ours)
    oracle_config = Step3p7TextConfig(**document, attn_implementation="eager")
    oracle = Step3p7TextModel(oracle_config).float().eval()
    ours = dict(published_tensors(model))
    head = ours.pop("lm_head.weight")
    state = {}
    for name, tensor in ours.items():
        if name.startswith("model.layers.") and int(name.split(".")[2]) >= model.config.num_hidden_layers:
            continue
        name = name.removeprefix("model.").replace(".moe.gate.", ".mlp.gate.")
        name = name.replace(".moe.router_bias", ".mlp.gate.e_score_correction_bias")
        name = name.replace(".share_expert.", ".mlp.shared_experts.")
        name = name.replace(".moe.down_proj.weight", ".mlp.experts.down_proj")
        name = name.replace(".moe.gate_proj.weight", ".mlp.experts.gate_up_proj")
        if name.endswith(".moe.up_proj.weight"):
            name = name.replace(".moe.up_proj.weight", ".mlp.experts.gate_up_proj")
            tensor = torch.cat((state[name], tensor), dim=1)
        state[name] = tensor
    missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("inv_freq" in name for name in missing)
    return oracle, head


def _random_model(config: TinyConfig) -> TinyModel:
    model = TinyModel(config)
    model.initialize(3)
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1:
                p.copy_(0.2 * torch.randn(p.shape, generator=rng))
            elif name.endswith(("w_in", "proj.weight", "gate.weight")):
                p.mul_(2.0)
        for moe in model.moe_layers:
            moe.router_bias.copy_(0.1 * torch.randn(moe.router_bias.shape, generator=rng))
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        TinyConfig(),
        replace(
            TinyConfig(),
            moe_num_experts=16,
            moe_top_k=3,
            sliding_window=24,
            hidden_size=64,
            swiglu_limits=(0.0, 0.05, 0.0, 0.3, 0.0, 0.2, 0.0, 0.0, 0.0),
            swiglu_limits_shared=(0.1, 0.0, 0.2, 0.0, 0.0, 0.05, 0.0, 0.0, 0.0),
            rope_theta=(5e2, 1e2, 1e2, 1e2, 5e2, 1e2, 1e2, 1e2, 1e2),
            rope_scaling=TinyConfig().rope_scaling
            | {"original_max_position_embeddings": 64, "high_freq_factor": 4.0},
        ),
    ],
    ids=["shipped-shape", "tight-limits"],
)
def test_logits_equal_the_oracles_past_the_window(config: TinyConfig) -> None:
    model = _random_model(config)
    oracle, head = _oracle(model)
    tokens = torch.randint(0, config.vocab_size, (2, 300), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        ours = model.logits(model.hidden_states(tokens))
        theirs = oracle(input_ids=tokens).last_hidden_state @ head.t()
    assert ours.std() > 0.1
    assert (ours - theirs).abs().max() < 1e-4
