"""A model in one process with cards: what lies in VRAM, in RAM and on the disk, decided by what is free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from orchestrator.cli.here import Here
from orchestrator.cli.vram_rule import cache_start, simulated
from orchestrator.cli.whereabouts import of_experts
from orchestrator.gpu.work_size import head_work_bytes
from orchestrator.one_box import ADVICE, DISK, OneBox, plan_here
from orchestrator.run_memory import Demand, head_parts, needs_of_head
from placement.cost.head_parts import head_parts as timed_parts
from placement.cost.replica_costs import priced_tiers
from placement.head_split import HeadParts, VramBudget, vram_budget
from placement.holders import HolderTable
from placement.plan import LOCAL_WORKER, Plan, PlannedTier
from placement.policies.baselines.cached_experts import fast_device
from placement.policies.registry import LEAST_TIME, place
from placement.residency import ResidencyRule
from placement.routing.planning_text import even_routing
from placement.streaming import BUFFERS
from placement.vram import vram_margin_bytes
from workers.formats.open_model import OpenModel
from workers.gpu.free import FreeVram
from workers.gpu.tier import host_bytes
from workers.gpu.workspace import WorkShape, work_bytes
from workers.memory.budget import Need, check_memory
from workers.memory.free import FreeMemory
from workers.tiers import least_cache_bytes

RAM = f"{LOCAL_WORKER}-ram"


def plan_with_cards(
    model: OpenModel,
    here: Here,
    demand: Demand,
    free: FreeMemory,
    cards: Sequence[FreeVram],
    rule: ResidencyRule | None = None,
) -> OneBox:
    """The head in VRAM as far as it fits and pays, experts in what VRAM is left, the rest in RAM or on disk.

    Where this machine was measured the planner chooses the experts in VRAM. Else they are those that
    statistics have chosen most often, or as many in each layer. What fits neither VRAM nor RAM leaves all but
    VRAM's experts on the disk, behind a cache in RAM, as without cards (`plan_here`).

    In place of fixed experts the fastest card may have a cache, where all experts have a home elsewhere.

    Args:
        here: what this machine does how fast, and what is known of the text.
        cards: what a run may take of them, the head's first; none for the CPU alone.
        rule: what VRAM keeps; None for what is fastest on the text of the statistics, fixed experts where
            they have none or nobody measured this machine.

    Raises:
        PlanDoesNotFit: not even what must be in RAM fits there.
    """
    shape, contents = model.shape, model.contents
    work = WorkShape.of(model.config)
    rows = demand.pass_rows
    # Of experts twice: for the head's rows, and for those that come by way of the host.
    workspace_bytes = head_work_bytes(model.config, demand.positions, rows) + 2 * work_bytes(work, rows)
    workspace_bytes += BUFFERS * here.largest_bytes
    if any(here.card(card.device) is None for card in cards):
        here = replace(here, figures=None)
    budget = None
    if cards:
        parts = _parts(head_parts(contents, shape, here.dtype, demand), here, cards[0].device)
        free_bytes, crossing_s = cards[0].num_bytes, here.crossing_s(cards[0].device)
        budget = vram_budget(parts, free_bytes, vram_margin_bytes(free_bytes), workspace_bytes, crossing_s)
    tiers = () if budget is None else tuple(_vram_tiers(cards, budget, workspace_bytes, here.largest_bytes))
    if budget is None or not tiers:
        box = plan_here(model, here.dtype, demand, free)
        told = "" if budget is None else budget.told
        reason = f"{box.reason}; {told}" if told else box.reason
        return replace(box, reason=reason, step_s=here.step_s(box.plan), no_vram=told)
    device = tiers[0].device if tiers[0].name == LOCAL_WORKER else "cpu"
    split = None if device == "cpu" else budget.split
    needs = needs_of_head(contents, shape, here.dtype, demand, device, split)
    buffers = Need("buffers for experts in VRAM", len(tiers) * host_bytes(model.config))
    in_ram = [*needs.ram, buffers]
    kept = _kept(here, tiers, max(0, free.usable_bytes - sum(need.num_bytes for need in in_ram)), rule)
    plan = kept.plan
    least = least_cache_bytes(shape.num_routed_experts, here.largest_bytes)
    cache = [Need("the smallest cache of experts", least)] if plan.tiers[-1].kind == "disk" else []
    check_memory([*in_ram, *cache], free, where=shape.name, advice=ADVICE)
    # Without figures its times are none.
    told = budget.split.told if here.figures else budget.split.told.partition("; ")[0]
    head_card = f"{cards[0].device} ({cards[0].model})"
    reason = f"{shape.name} with {head_card}: {told}; {of_experts(plan, kept.rule)}{kept.told}; {budget.told}"
    is_most = plan.tiers[-1].kind == "disk" or (kept.rule is not ResidencyRule.fixed and kept.step_s is None)
    step_s = here.step_s(plan) if kept.step_s is None else kept.step_s
    if step_s is not None and split is not None:
        # The simulation has all of the head in VRAM.
        step_s += split.seconds - split.gpu_only_s
    return OneBox(plan, reason, split, step_s, is_most, cache_start(here, kept.rule))


@dataclass(frozen=True, slots=True)
class _Kept:
    """A plan and the rule by which VRAM keeps experts.

    Attributes:
        told: for people, what was compared and why it is not what was asked; "" for nothing.
        step_s: of a step with the cache; None without one, or where nobody knows.
    """

    plan: Plan
    rule: ResidencyRule
    told: str = ""
    step_s: float | None = None


def _kept(here: Here, vram: tuple[PlannedTier, ...], room: int, asked: ResidencyRule | None) -> _Kept:
    """Fixed experts or a cache; arguments as of `_placed` and `plan_with_cards`."""
    tiers = (*vram, _ram_beside(vram, room))
    if asked is None and not _may_gain(here, vram):
        asked = ResidencyRule.fixed
    if asked is ResidencyRule.fixed:
        return _Kept(_placed(here, vram, room), ResidencyRule.fixed)
    fastest = fast_device(here.problem(tiers))
    cache = _cache_among(here, tiers, fastest)
    # A cache in memory that is not the fastest is what somebody asks for, never what is chosen.
    if asked is None and cache != fastest:
        return _Kept(_placed(here, vram, room), ResidencyRule.fixed)
    if cache is None:
        told = "; fixed, since a cache in VRAM needs room for one there and for all experts in RAM"
        return _Kept(_placed(here, vram, room), ResidencyRule.fixed, told)
    found = simulated(here, tiers) if cache == fastest else None
    rule = asked or (ResidencyRule.fixed if found is None else found.chosen)
    told = "" if found is None else f"; {found.told}: {rule}"
    if rule is ResidencyRule.fixed:
        return _Kept(_placed(here, vram, room), rule, told)
    return _Kept(_with_cache(here, tiers, cache), rule, told, None if found is None else found.step_s[rule])


def _may_gain(here: Here, vram: Sequence[PlannedTier]) -> bool:
    """Whether a text and a probe can tell, and VRAM has not room for all experts anyway."""
    capacity = sum(tier.budget_bytes // here.largest_bytes for tier in vram)
    has_text = here.stats is not None and here.stats.trace is not None
    return has_text and here.figures is not None and capacity < here.shape.num_routed_experts


def _cache_among(here: Here, tiers: Sequence[PlannedTier], fastest: int) -> int | None:
    """The fastest tier where that is a card, else the first card: if the others have room for all experts.

    Args:
        tiers: of cards, then of RAM.
    """
    cache = fastest if tiers[fastest].kind == "vram" else 0
    capacities = [tier.budget_bytes // here.largest_bytes for tier in tiers]
    elsewhere = sum(capacities) - capacities[cache]
    fits = capacities[cache] > 0 and elsewhere >= here.shape.num_routed_experts
    return cache if fits else None


def _with_cache(here: Here, tiers: tuple[PlannedTier, ...], cache: int) -> Plan:
    """All experts on other tiers than this one."""
    empty = replace(tiers[cache], budget_bytes=0)
    plan = _plan(here, (*tiers[:cache], empty, *tiers[cache + 1 :]))
    whole = replace(plan.tiers[cache], budget_bytes=tiers[cache].budget_bytes)
    return replace(plan, tiers=(*plan.tiers[:cache], whole, *plan.tiers[cache + 1 :]))


def _parts(sizes: HeadParts, here: Here, card: str) -> HeadParts:
    """The head's parts with the bytes of the files and the seconds of this machine."""
    times = timed_parts(here.shape, here.workload, here.device(card, "vram"), here.device("cpu", "ram"))
    return HeadParts(
        layers=tuple(
            replace(timed, weight_bytes=sized.weight_bytes, kv_bytes=sized.kv_bytes)
            for timed, sized in zip(times.layers, sizes.layers, strict=True)
        ),
        lm_head=replace(times.lm_head, weight_bytes=sizes.lm_head.weight_bytes),
        mtp=tuple(
            replace(timed, weight_bytes=sized.weight_bytes, kv_bytes=sized.kv_bytes)
            for timed, sized in zip(times.mtp, sizes.mtp, strict=True)
        ),
    )


def _vram_tiers(
    cards: Sequence[FreeVram], budget: VramBudget, workspace_bytes: int, expert_bytes: int
) -> Iterator[PlannedTier]:
    """Those of cards that hold anything."""
    for number, card in enumerate(cards):
        is_head = number == 0 and not budget.split.is_all_on_cpu
        room = budget.expert_bytes if number == 0 else card.usable_bytes - workspace_bytes
        if is_head or room >= expert_bytes:
            name = LOCAL_WORKER if is_head else f"{LOCAL_WORKER}-gpu{card.device.partition(':')[2]}"
            yield _tier(name, card.device, "vram", max(0, room))


def _placed(here: Here, vram: tuple[PlannedTier, ...], room: int) -> Plan:
    """All experts over VRAM and RAM, or VRAM and the disk.

    Args:
        room: bytes of RAM for experts or their cache.
    """
    ram = _ram_beside(vram, room)
    capacity = sum(tier.budget_bytes // here.largest_bytes for tier in (*vram, ram))
    if capacity >= here.shape.num_routed_experts:
        return _plan(here, (*vram, ram))
    # The planner counts each expert as the largest.
    disk = _tier(DISK, "cpu", "disk", here.shape.num_routed_experts * here.largest_bytes)
    # Of the text a cache learns more than a choice beforehand knows, so nothing is tied to RAM beside it.
    plan = _plan(here, (*vram, replace(ram, budget_bytes=0), disk))
    *others, on_disk = plan.bytes_per_tier().tolist()
    if on_disk <= room:
        table = plan.holder_table.table.copy()
        table[table == len(others)] = len(vram)
        return replace(plan, tiers=(*plan.tiers[: len(vram)], ram), holder_table=HolderTable(table))
    tiers = (*plan.tiers[: len(vram)], replace(plan.tiers[len(vram)], budget_bytes=room), plan.tiers[-1])
    return replace(plan, tiers=tiers)


def _plan(here: Here, tiers: tuple[PlannedTier, ...]) -> Plan:
    problem = here.problem(tiers)
    is_known = here.knows(tiers)
    if is_known:
        policy = LEAST_TIME
    else:
        policy = "hottest-per-layer" if here.stats is None else "hottest-first"
        problem = replace(problem, stats=here.stats or even_routing(here.shape))
    table = place(problem, policy)
    priced = priced_tiers(problem) if is_known else tiers
    return Plan(
        here.shape.name, here.shape.fingerprint, here.layers, here.dtype, priced, table, policy=policy
    )


def _ram_beside(vram: tuple[PlannedTier, ...], room: int) -> PlannedTier:
    name = RAM if vram[0].name == LOCAL_WORKER else LOCAL_WORKER
    return _tier(name, "cpu", "ram", room)


def _tier(name: str, device: str, kind: str, budget_bytes: int) -> PlannedTier:
    return PlannedTier(name, "this-machine", device, kind, budget_bytes, worker=LOCAL_WORKER)
