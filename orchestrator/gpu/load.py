"""A head of which a card computes what its memory holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from orchestrator.gpu.head import HeadOnCard
from orchestrator.gpu.weights import place_head
from orchestrator.model.weights import HeadWeights
from orchestrator.timing import StepTimer
from placement.head_split import HeadSplit
from placement.kv_size import KvForm, KvShape, SequenceSize
from placement.model_shape import ModelShape
from placement.plan import Plan
from workers.gpu.cards import shared_device
from workers.gpu.device import Device
from workers.gpu.tier import VramTier
from workers.memory.mapped import OnProgress
from workers.model_config import Step35Config
from workers.tiers import ExpertTier


def load_on_card(
    device: str,
    plan: Plan,
    config: Step35Config,
    shape: ModelShape,
    weights: HeadWeights,
    split: HeadSplit | None,
    kv_form: KvForm,
    tiers: Sequence[ExpertTier],
    *,
    positions: int,
    pass_rows: int,
    num_drafts: int,
    timer: StepTimer,
    on_progress: OnProgress | None = None,
) -> HeadOnCard:
    """Bring the head's weights to a card, after the experts that are there too.

    Args:
        split: what stays on the CPU; None for nothing but the embedding.
        tiers: of this process; the one on the same card is computed without the host.
        positions: of the longest text, whose keys and values must fit.

    Raises:
        DeviceUnavailable: no such card.
        DeviceFull: says what is free.
        InputError: a model that the kernels do not take.
    """
    card = shared_device(device)
    num_mtp = max(0, num_drafts - (0 if split is None else split.num_cpu_mtp))
    placed = place_head(
        card,
        weights,
        layers_on_card(split, config.num_hidden_layers),
        has_output=split is None or not split.is_lm_head_on_cpu,
        num_mtp=num_mtp,
        on_progress=on_progress,
    )
    trunk = config.num_hidden_layers
    there = [shape.attention[layer] for layer in (*placed.places, *range(trunk, trunk + num_mtp))]
    head = HeadOnCard(
        card,
        config,
        placed,
        plan.wire_forms(),
        kv_form,
        pool_bytes=SequenceSize(there, kv_form).num_bytes(positions, pass_rows),
        most_positions=positions,
        experts=_tier_on(card, tiers),
        timer=timer,
        rows=pass_rows,
    )
    # Now, so that no other program takes in a long text what was counted for it.
    pages: Counter[int] = Counter()
    for attention in there:
        page_bytes = KvShape.of(attention, kv_form).page_bytes
        pages[page_bytes] += SequenceSize([attention], kv_form).num_bytes(positions, pass_rows) // page_bytes
    for page_bytes, count in pages.items():
        head.pages.reserve(page_bytes, count)
    return head


def layers_on_card(split: HeadSplit | None, num_layers: int) -> range:
    """Of the trunk: those that do not stay on the CPU, which are a run at one end."""
    if split is None:
        return range(num_layers)
    on_card = [layer for layer in range(num_layers) if not split.is_layer_on_cpu(layer)]
    return range(on_card[0], on_card[-1] + 1) if on_card else range(0)


def _tier_on(card: Device, tiers: Sequence[ExpertTier]) -> VramTier | None:
    return next((tier for tier in tiers if isinstance(tier, VramTier) and tier.on_card.device is card), None)
