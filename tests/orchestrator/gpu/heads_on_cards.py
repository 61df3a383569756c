"""A model whose head is on the card that the CPU plays, beside the same model on the CPU."""

from __future__ import annotations

from orchestrator.gpu.head import HeadOnCard
from orchestrator.gpu.weights import place_head
from orchestrator.model.step35 import Step35Model
from placement.plan import Plan
from workers.gpu.device import Device
from workers.gpu.tier import VramTier


def on_card(
    model: Step35Model,
    plan: Plan,
    device: Device,
    *,
    places: range | None = None,
    has_output: bool = True,
    num_mtp: int | None = None,
    experts: VramTier | None = None,
    pool_bytes: int = 8 << 20,
) -> Step35Model:
    """The model with a part of its head on a card, or all of it; experts are asked as before."""
    config = model.config
    weights = place_head(
        device,
        model.weights,
        range(config.num_hidden_layers) if places is None else places,
        has_output=has_output,
        num_mtp=len(model.weights.mtp) if num_mtp is None else num_mtp,
    )
    card = HeadOnCard(
        device,
        config,
        weights,
        plan.wire_forms(),
        model.kv_form,
        pool_bytes=pool_bytes,
        most_positions=1024,
        experts=experts,
        timer=model.timer,
        rows=32,
    )
    return Step35Model(
        config, model.weights, model.dtype, model.experts, model.timer, model.kv_form, model.kv_pool, card
    )
