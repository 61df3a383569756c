"""Brings into memory what a plan puts into the head's process: the head, experts, a part on a card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from orchestrator.model.weights import HeadWeights, load_head_weights
from orchestrator.run_memory import Demand
from orchestrator.timing import StepTimer
from placement.experts import Experts
from placement.head_split import HeadSplit
from placement.kv_size import KvForm, SequenceSize, WaitingSize
from placement.plan import LOCAL_WORKER, Plan
from placement.residency import CacheStart
from placement.weight_format import ExpertFormat
from workers.formats.open_model import OpenModel
from workers.gpu.free import is_card
from workers.gpu.tier import VramTier
from workers.holdings import Holdings
from workers.memory.budget import Need
from workers.memory.lost_pages import end_lost_pages_in_one_line
from workers.memory.mapped import OnProgress, Range, bring_in, joined
from workers.memory.reservations import Reservation, free_memory
from workers.pool import load_each, need_of
from workers.tiers import ExpertTier, tiers_of

if TYPE_CHECKING:
    from orchestrator.gpu.head import HeadOnCard


@dataclass(frozen=True, slots=True)
class Loaded:
    """The head's weights, and what this process holds of the experts.

    Attributes:
        pool_bytes: for keys and values in RAM.
        timer: that they share.
        card: the part of the head that is on one.
    """

    weights: HeadWeights
    local: Holdings
    pool_bytes: int
    timer: StepTimer
    card: HeadOnCard | None


def load_model(
    model: OpenModel,
    plan: Plan,
    demand: Demand,
    own: Sequence[Need] = (),
    reservation: Reservation | None = None,
    on_progress: OnProgress | None = None,
    *,
    device: str = "cpu",
    split: HeadSplit | None = None,
    cache: CacheStart | None = None,
) -> Loaded:
    """The head and the experts of this process; errors as `open_session`.

    Args:
        own: what of `reservation` is this process's.
        device, split, cache: as of `open_session`.
    """
    end_lost_pages_in_one_line()
    config, checkpoint = model
    dtype: torch.dtype = getattr(torch, plan.dtype)
    forms = {layer.index: ExpertFormat.of_name(layer.form) for layer in plan.layers}
    # First what reads next to nothing: norms that are not finite are told before the experts are read.
    weights = load_head_weights(checkpoint, config, dtype, forms=forms, need_mtp=demand.num_drafts > 0)
    specs = tiers_of(plan, LOCAL_WORKER) if plan.local_worker is not None else ()
    tiers = load_each(specs, checkpoint, config, plan.dtype, on_progress=on_progress)
    for tier in tiers:
        if cache is not None and isinstance(tier, VramTier):
            tier.beside.start(cache)
    timer = StepTimer()
    card = _on_card(model, plan, demand, weights, tiers, device, split, timer, on_progress)
    # Before the first token, and in the order of the file, not of the first pass's page faults.
    matrices = weights.trunk_matrices + (weights.mtp_matrices if demand.num_drafts else ())
    copied = frozenset() if card is None else card.weights.sources
    read = [matrix.data for matrix in matrices if matrix.data.data_ptr() not in copied]
    bring_in(joined(Range(data.data_ptr(), data.nbytes) for data in read), on_progress)
    # What was asked for was found to fit before anything was read; texts may grow into what else is free.
    asked_bytes = _sequence_in_ram(model, plan, demand, card).num_bytes(demand.positions, demand.pass_rows)
    local = Holdings()
    if reservation is None:
        local.begin(tiers, model, forms, lambda: free_memory().usable_bytes)
        return Loaded(weights, local, max(asked_bytes, free_memory().usable_bytes), timer, card)
    room_bytes = reservation.room_bytes

    def note(experts: Experts) -> None:
        """Orders have brought experts into this process's memory, or out of it."""
        added = {layer: set(ids).difference(at_first.get(layer, ())) for layer, ids in experts.items()}
        reservation.narrow([*own, need_of(added, "experts taken on", checkpoint, config, forms)])

    at_first: dict[int, set[int]] = {}
    for tier in tiers:
        for layer, ids in tier.experts.items():
            at_first.setdefault(layer, set()).update(ids)
    local.begin(tiers, model, forms, room_bytes, note)
    return Loaded(weights, local, asked_bytes + room_bytes(), timer, card)


def _on_card(
    model: OpenModel,
    plan: Plan,
    demand: Demand,
    weights: HeadWeights,
    tiers: Sequence[ExpertTier],
    device: str,
    split: HeadSplit | None,
    timer: StepTimer,
    on_progress: OnProgress | None,
) -> HeadOnCard | None:
    """The part of the head that a card computes; None where all of it is the CPU's."""
    if not is_card(device) or (split is not None and split.is_all_on_cpu):
        return None
    # Most runs have no card, and do without what drives one.
    from orchestrator.gpu.load import load_on_card

    return load_on_card(
        device,
        plan,
        model.config,
        model.shape,
        weights,
        split,
        kv_form_of(plan, demand),
        tiers,
        positions=demand.positions,
        pass_rows=demand.pass_rows,
        num_drafts=demand.num_drafts,
        timer=timer,
        on_progress=on_progress,
    )


def _sequence_in_ram(model: OpenModel, plan: Plan, demand: Demand, card: HeadOnCard | None) -> SequenceSize:
    """Keys and values of the layers that the CPU computes, and all rows that wait for MTP layers."""
    trunk = model.config.num_hidden_layers
    layers = set(range(trunk + demand.num_drafts))
    if card is not None:
        layers -= {*card.layers, *range(trunk, trunk + card.num_mtp)}
    attention = model.shape.attention
    waiting = WaitingSize.of(attention[trunk : trunk + demand.num_drafts], model.shape.hidden_size)
    return SequenceSize([attention[layer] for layer in sorted(layers)], kv_form_of(plan, demand), waiting)


def kv_form_of(plan: Plan, demand: Demand) -> KvForm:
    return demand.kv_form or KvForm.of(plan.dtype)
