"""What of a model lies in VRAM, in RAM and on the disk, by what is free; and how fast that should be."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from orchestrator.cli.here import Figures, Here
from orchestrator.cli.hybrid import plan_with_cards
from orchestrator.gpu.work_size import head_work_bytes
from orchestrator.one_box import OneBox
from orchestrator.run_memory import Demand, head_bytes, head_needs, needs_of_head, reserve_run
from placement.errors import PlanDoesNotFit
from placement.given.probe import HERE, probe_path_here, write_probe
from placement.given.probe_figures import FormRate, Gpu, Node
from placement.given.stats import RoutingStats
from placement.kv_size import PASS_ROWS, WaitingSize
from placement.residency import ResidencyRule
from tests.cuda_on_cpu.card import Card
from tests.orchestrator.command_line import Potluck, document, says
from tests.placement.given.probes import node, probe
from workers.formats.open_model import OpenModel, open_model
from workers.gpu.free import FreeVram
from workers.gpu.tier import host_bytes
from workers.gpu.workspace import WorkShape, work_bytes
from workers.memory.free import LEAST_MARGIN_BYTES, FreeMemory
from workers.probe.hardware import hardware

MARGIN = 512_000_000
DEMAND = Demand(200)
MODEL = open_model(Path(__file__).parents[2] / "models" / "potluck-tiny")
SHAPE = MODEL.shape
EXPERT_BYTES = 3 * 128 * 16 * 2
BUFFERS = host_bytes(MODEL.config)
"""RAM that experts in VRAM take, for each card."""
WORK = WorkShape(SHAPE.hidden_size, SHAPE.moe_intermediate_size, SHAPE.num_experts, SHAPE.top_k)
ROOM = MARGIN + head_work_bytes(MODEL.config, DEMAND.positions, PASS_ROWS) + 2 * work_bytes(WORK, PASS_ROWS)
"""Of VRAM, for nothing that stays."""
ALL_BYTES = SHAPE.num_routed_experts * EXPERT_BYTES


def ram(usable_bytes: int) -> FreeMemory:
    return FreeMemory(usable_bytes + LEAST_MARGIN_BYTES, "this machine")


def card_with(usable_bytes: int, name: str = "cuda:0") -> FreeVram:
    return FreeVram(name, "a card", ROOM + usable_bytes)


def measured(name: str = "cuda:0", *, faster: float = 20.0) -> Gpu:
    """A card so many times as fast as the CPU of `a_node`."""
    rate = FormRate(form="bfloat16", rows=(1, 64), flops_per_s=(faster * 1e10, faster * 2e10))
    return Gpu(
        name="a card",
        memory_bytes=24 * 10**9,
        free_bytes=23 * 10**9,
        bandwidth_bytes_per_s=faster * 1e10,
        copy_bytes_per_s=1e10,
        flops_per_s=faster * 2e10,
        device=name,
        round_trip_s=2e-5,
        kernels=(rate,),
    )


def a_node(*cards: Gpu) -> Node:
    rate = FormRate(form="bfloat16", rows=(1, 64), flops_per_s=(1e10, 2e10))
    return node().model_copy(update={"gpus": cards, "kernels": (rate,)})


def figures(*cards: Gpu) -> Figures:
    return Figures(a_node(*cards), probe().software)


def check(box: OneBox, model: OpenModel, demand: Demand, cards: Sequence[FreeVram], free: int) -> None:
    """A plan holds every expert, and takes no more than is free."""
    plan = box.plan
    plan.check(model.shape)
    plan.check_fits()
    head = needs_of_head(model.contents, model.shape, "bfloat16", demand, plan.head_device, box.split)
    held = dict(zip((tier.device for tier in plan.tiers), plan.bytes_per_tier().tolist(), strict=True))
    for card in cards:
        needed = sum(need.num_bytes for need in head.vram.get(card.device, ()))
        assert needed + held.get(card.device, 0) <= card.usable_bytes
    num_cards = sum(tier.kind == "vram" for tier in plan.tiers)
    of_head = sum(need.num_bytes for need in head.ram) + num_cards * host_bytes(model.config)
    in_ram = sum(tier.budget_bytes for tier in plan.tiers if tier.kind == "ram")
    assert of_head + in_ram <= free
    assert (plan.head_device == "cuda:0") == (box.split is not None)
    assert all(tier.worker == "head" for tier in plan.tiers)


def planned(
    *cards: FreeVram,
    free: int = 10**10,
    stats: RoutingStats | None = None,
    known: Figures | None = None,
    rule: ResidencyRule | None = None,
) -> OneBox:
    here = Here.of(MODEL, "bfloat16", DEMAND, stats, known)
    return plan_with_cards(MODEL, here, DEMAND, ram(free), cards, rule)


def text_of(num_tokens: int, hot: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """A tenth of each layer's experts, those that end in `hot`, gets nearly all choices."""
    rng = np.random.default_rng(3)
    popularity = np.where(np.arange(SHAPE.num_experts) % 10 == hot, 1.0, 0.01)
    clocks = rng.exponential(size=(num_tokens, SHAPE.num_moe_layers, SHAPE.num_experts)) / popularity
    return np.argsort(clocks, axis=-1)[..., : SHAPE.top_k]


def skewed() -> RoutingStats:
    return RoutingStats.from_trace(SHAPE, text_of(300, 3), "skewed")


def turning() -> RoutingStats:
    """Others are used in the second half."""
    text = np.concatenate([text_of(300, 3), text_of(300, 7)])
    return RoutingStats.from_trace(SHAPE, text, "turning")


@given(
    vram=st.integers(0, 30_000_000),
    free=st.integers(4_000_000, 80_000_000),
    other=st.booleans(),
    rule=st.sampled_from([None, *ResidencyRule]),
)
def test_what_is_planned_fits_what_is_free_and_leaves_out_nothing(
    vram: int, free: int, *, other: bool, rule: ResidencyRule | None
) -> None:
    cards = [card_with(vram), *([card_with(4_000_000, "cuda:1")] if other else [])]
    try:
        box = planned(*cards, free=free, rule=rule)
    except PlanDoesNotFit:
        assert free < 8_000_000 + len(cards) * BUFFERS
        return
    check(box, MODEL, DEMAND, cards, free)


def test_experts_of_several_sizes_fit_too(tmp_path: Path) -> None:
    types = FileTypes((("q4_k", "q4_k", "q6_k"), ("q4_k", "q4_k", "q4_k")), "q4_k", "q6_k", "q4_k")
    model = open_model(write_random_gguf(tmp_path / "mixed.gguf", SMALL, types))
    demand = Demand(300, num_drafts=1)
    here = Here.of(model, "bfloat16", demand)
    all_bytes = model.shape.num_routed_experts * here.largest_bytes
    rng, kinds = np.random.default_rng(0), set[tuple[str, ...]]()
    for _ in range(200):
        card = card_with(int(rng.integers(2 * all_bytes)))
        free = int(rng.integers(host_bytes(model.config), host_bytes(model.config) + 3 * all_bytes))
        try:
            box = plan_with_cards(model, here, demand, ram(free), [card])
        except PlanDoesNotFit:
            continue
        check(box, model, demand, [card], free)
        kinds.add(tuple(tier.kind for tier in box.plan.tiers))
    assert kinds >= {("vram", "ram"), ("vram", "ram", "disk")}


def test_without_statistics_each_layer_has_as_many_experts_in_vram() -> None:
    plan = planned(card_with(8_000_000)).plan
    counts = plan.holder_table.mask(0).sum(axis=1)
    assert [tier.kind for tier in plan.tiers] == ["vram", "ram"]
    assert counts.min() > 0
    assert counts.max() - counts.min() <= 1


def test_with_statistics_the_hottest_experts_are_in_vram() -> None:
    stats = skewed()
    plan = planned(card_with(8_000_000), stats=stats).plan
    there = plan.holder_table.mask(0)
    assert stats.counts[there].min() >= stats.counts[~there].max()


def test_the_planner_decides_where_this_machine_was_measured() -> None:
    stats = skewed()
    box = planned(card_with(8_000_000), stats=stats, known=figures(measured()))
    share = stats.counts[box.plan.holder_table.mask(0)].sum() / stats.counts.sum()
    even = planned(card_with(8_000_000), known=figures(measured()))
    assert share > 0.8
    assert box.plan.policy == even.plan.policy == "least-time"
    assert box.step_s is not None
    assert even.step_s is not None
    assert 0 < box.step_s < even.step_s


def test_a_faster_card_or_more_of_it_is_predicted_to_be_faster() -> None:
    def step_s(vram: int, faster: float) -> float:
        found = planned(card_with(vram), known=figures(measured(faster=faster))).step_s
        assert found is not None
        return found

    slow = step_s(8_000_000, 10)
    assert step_s(8_000_000, 40) < slow
    assert step_s(16_000_000, 10) < slow


def test_a_card_that_was_not_measured_makes_no_prediction() -> None:
    assert planned(card_with(8_000_000), known=figures()).step_s is None
    assert planned(known=figures()).step_s is not None


def test_where_vram_is_too_small_parts_of_the_head_stay_on_the_cpu() -> None:
    box = planned(card_with(1_500_000))
    assert box.split is not None
    assert not box.split.is_all_in_vram
    assert "stay on the CPU: VRAM has room for" in box.reason
    assert " ms" not in box.reason
    with_times = planned(card_with(1_500_000), known=figures(measured()))
    assert " ms, in VRAM " in with_times.reason


def test_experts_that_fit_neither_memory_stay_on_the_disk_behind_a_cache() -> None:
    box = planned(card_with(8_000_000), free=BUFFERS + 6_000_000)
    plan = box.plan
    assert [(tier.name, tier.kind) for tier in plan.tiers] == [
        ("head", "vram"), ("head-ram", "ram"), ("head-disk", "disk")
    ]  # fmt: skip
    in_vram, in_ram, on_disk = plan.bytes_per_tier().tolist()
    assert in_ram == 0
    assert in_vram + on_disk == ALL_BYTES
    assert 0 < plan.tiers[1].budget_bytes < on_disk
    assert "a cache of" in box.reason


@pytest.mark.parametrize("rule", [ResidencyRule.lru, ResidencyRule.lfu])
def test_a_cache_in_vram_has_all_its_room_and_every_expert_a_home_in_ram(rule: ResidencyRule) -> None:
    cards = [card_with(8_000_000)]
    fixed, box = planned(*cards, rule=ResidencyRule.fixed), planned(*cards, rule=rule)
    check(box, MODEL, DEMAND, cards, 10**10)
    assert box.plan.experts_per_tier().tolist() == [0, SHAPE.num_routed_experts]
    assert box.plan.tiers[0] == fixed.plan.tiers[0]
    assert box.cache is not None
    assert (box.cache.rule, dict(box.cache.frequencies)) == (rule, {})
    assert "a cache of" in box.reason
    assert "in VRAM of cuda:0" in box.reason


def test_a_cache_begins_with_what_statistics_say_a_step_uses() -> None:
    stats = skewed()
    demand = Demand(200, num_drafts=2)
    here = Here.of(MODEL, "bfloat16", demand, stats)
    box = plan_with_cards(MODEL, here, demand, ram(10**10), [card_with(8_000_000)], ResidencyRule.lfu)
    assert box.cache is not None
    first = SHAPE.moe_layers[0]
    expected = 1 - (1 - stats.counts[0] / stats.num_tokens) ** 3
    np.testing.assert_allclose(box.cache.frequencies[first], expected)
    assert list(box.cache.frequencies) == list(SHAPE.moe_layers)


def test_a_second_card_beside_a_cache_has_experts_of_its_own() -> None:
    cards = [card_with(9_000_000), card_with(8_000_000, "cuda:1")]
    box = planned(*cards, rule=ResidencyRule.lfu)
    check(box, MODEL, DEMAND, cards, 10**10)
    here, there, in_ram = box.plan.experts_per_tier().tolist()
    assert here == 0
    assert there > 0
    assert there + in_ram == SHAPE.num_routed_experts


def test_where_ram_is_too_small_for_all_experts_they_are_fixed_and_the_line_says_so() -> None:
    given = {"free": BUFFERS + 6_000_000}
    box, fixed = (
        planned(card_with(8_000_000), **given, rule=ResidencyRule.lru),
        planned(card_with(8_000_000), **given, rule=ResidencyRule.fixed),
    )
    assert (box.plan.holder_table.table == fixed.plan.holder_table.table).all()
    assert box.cache is not None
    assert box.cache.rule is ResidencyRule.fixed
    assert "fixed, since a cache in VRAM needs room for one there and for all experts in RAM" in box.reason
    assert "since a cache" not in fixed.reason


def test_a_recorded_text_and_a_probe_choose_between_fixed_experts_and_a_cache() -> None:
    known = figures(measured())
    steady = planned(card_with(4_000_000), stats=skewed(), known=known)
    changing = planned(card_with(4_000_000), stats=turning(), known=known)
    assert steady.cache is not None
    assert steady.cache.rule is ResidencyRule.fixed
    assert steady.plan.experts_per_tier()[0] > 0
    assert changing.cache is not None
    assert changing.cache.rule is not ResidencyRule.fixed
    assert changing.plan.experts_per_tier()[0] == 0
    said = re.search(
        r"; on the text of --stats a step takes ([\d.]+) ms with fixed experts in VRAM, ([\d.]+) with lru, "
        r"([\d.]+) with lfu: (lru|lfu);",
        changing.reason,
    )
    assert said is not None
    of_rule = dict(zip(("fixed", "lru", "lfu"), map(float, said.groups()[:3]), strict=True))
    assert of_rule[said[4]] == min(of_rule.values()) < of_rule["fixed"]
    assert changing.step_s is not None
    assert changing.split is not None
    whole_s = changing.step_s - (changing.split.seconds - changing.split.gpu_only_s)
    assert 1e3 * whole_s == pytest.approx(of_rule[said[4]], abs=0.06)
    assert not changing.is_most


def test_without_a_text_or_a_probe_experts_are_fixed_and_an_asked_cache_is_predicted_at_the_least() -> None:
    known = figures(measured())
    counts = turning().without_trace()
    for box in (
        planned(card_with(4_000_000), stats=turning()),
        planned(card_with(4_000_000), stats=counts, known=known),
        planned(card_with(4_000_000), stats=turning(), known=known, rule=ResidencyRule.fixed),
    ):
        assert box.cache is not None
        assert box.cache.rule is ResidencyRule.fixed
        assert "--stats" not in box.reason
    asked = planned(card_with(4_000_000), stats=counts, known=known, rule=ResidencyRule.lfu)
    assert asked.is_most
    in_ram = planned(card_with(4_000_000), stats=counts, known=known)
    assert asked.step_s is not None
    assert in_ram.step_s is not None
    assert asked.step_s > in_ram.step_s


def test_several_cards_all_hold_experts_and_the_first_the_head() -> None:
    plan = planned(card_with(8_000_000, "cuda:1"), card_with(9_000_000)).plan
    assert [(tier.name, tier.device) for tier in plan.tiers] == [
        ("head", "cuda:1"), ("head-gpu0", "cuda:0"), ("head-ram", "cpu")
    ]  # fmt: skip
    assert plan.experts_per_tier().min() > 0


def test_a_card_without_room_leaves_all_to_the_cpu_and_says_so() -> None:
    box = planned(FreeVram("cuda:0", "a card", 400_000_000))
    assert [tier.kind for tier in box.plan.tiers] == ["ram"]
    assert "400.0 MB of VRAM free: too little for any use" in box.reason


def test_the_heads_bytes_are_counted_once_wherever_they_lie() -> None:
    contents = MODEL.contents
    whole = needs_of_head(contents, SHAPE, "bfloat16", DEMAND, "cuda")
    assert list(whole.vram) == ["cuda:0"]
    kept = head_bytes(contents, "bfloat16").trunk
    embedding = SHAPE.vocab_size * SHAPE.hidden_size * 2
    has_own = any(tensor.part.value == "output" for tensor in contents.tensors)
    assert whole.vram["cuda:0"][0].num_bytes == kept - (embedding if has_own else 0)
    assert whole.ram[0].num_bytes == embedding
    on_cpu = needs_of_head(contents, SHAPE, "bfloat16", DEMAND, "cpu")
    assert on_cpu.ram == tuple(head_needs(contents, SHAPE, "bfloat16", DEMAND))
    assert on_cpu.vram == {}
    assert whole.vram["cuda:0"][1].num_bytes == on_cpu.ram[1].num_bytes


def test_rows_that_wait_for_mtp_layers_on_a_card_are_counted_in_ram() -> None:
    demand = Demand(200, num_drafts=2)
    whole = needs_of_head(MODEL.contents, SHAPE, "bfloat16", demand, "cuda")
    trunk = SHAPE.num_hidden_layers
    waiting = WaitingSize.of(SHAPE.attention[trunk : trunk + 2], SHAPE.hidden_size).num_bytes(200)
    assert whole.ram[1].num_bytes == waiting > 0
    on_cpu = needs_of_head(MODEL.contents, SHAPE, "bfloat16", demand, "cpu")
    assert whole.vram["cuda:0"][1].num_bytes + waiting == on_cpu.ram[1].num_bytes


def test_experts_in_vram_are_no_part_of_what_is_set_aside_in_ram(card: Card) -> None:
    card.set("memory", MARGIN + 11_000_000)
    box = planned(FreeVram("cuda:0", "a card", MARGIN + 11_000_000))
    head = needs_of_head(MODEL.contents, SHAPE, "bfloat16", DEMAND, "cuda:0", box.split)
    reservation, own = reserve_run(box.plan, head, MODEL, workers_here=True)
    reservation.close()
    in_vram, in_ram = box.plan.bytes_per_tier().tolist()
    assert in_vram > 0
    of_head = sum(need.num_bytes for need in head.ram)
    assert sum(need.num_bytes for need in own) == of_head + in_ram + BUFFERS
    card.set("others", 9_000_000)
    with pytest.raises(
        PlanDoesNotFit, match=r"^device cuda:0: .* are missing: expected .* \(.* experts on 'head'\)"
    ):
        reserve_run(box.plan, head, MODEL, workers_here=True)


def test_generate_predicts_from_a_probe_of_this_machine_and_shows_it_beside_the_run(
    potluck: Potluck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = (
        "generate",
        "--model",
        MODEL.path,
        "--token-ids",
        "5,6,7",
        "--max-tokens",
        4,
        "--device",
        "cpu",
    )
    code, _, err = potluck(*command)
    assert code == 0
    assert "`potluck probe` measures this machine" in err
    assert document(potluck(*command, "--json"))["predicted_tokens_per_s"] is None
    found = a_node()
    found = found.model_copy(update={"hardware": hardware()})
    write_probe(probe(HERE, {HERE: found}), probe_path_here())
    code, _, err = potluck(*command)
    assert code == 0, err
    assert "it should write " in err
    assert "  predicted" in err
    with_probe = document(potluck(*command, "--json"))["predicted_tokens_per_s"]
    assert with_probe is not None
    assert f"should write {with_probe:.1f} tokens/s" in err
    # Other hardware than was measured.
    fields = json.loads(probe_path_here().read_text())
    fields["nodes"][HERE]["hardware"]["fingerprint"] = "other"
    probe_path_here().write_text(json.dumps(fields))
    assert document(potluck(*command, "--json"))["predicted_tokens_per_s"] is None


@pytest.mark.card
def test_generate_keeps_what_was_asked_in_vram_and_says_where_experts_were_computed(
    potluck: Potluck, card: Card, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    card.set("memory", MARGIN + 150_000_000)
    turning().save(tmp_path / "text.npz")
    command = ("generate", "--model", MODEL.path, "--token-ids", "5,6,7", "--max-tokens", 12, "--ignore-eos")
    expected = document(potluck(*command, "--device", "cpu", "--json"))
    assert expected["computed"] == {
        "vram": 0, "vram_cache": 0, "vram_passing": 0, "ram": 1, "disk": 0, "elsewhere": 0
    }  # fmt: skip
    for rule in ("auto", "fixed", "lru", "lfu"):
        given = (*command, "--device", "cuda", "--stats", tmp_path / "text.npz", "--residency", rule)
        made = document(potluck(*given, "--json"))
        assert made["token_ids"] == expected["token_ids"]
        shares = made["computed"]
        assert sum(shares.values()) == pytest.approx(1)
        assert (shares["vram"] > 0) == (rule in ("auto", "fixed"))
    code, _, err = potluck(*given)
    assert code == 0, err
    assert "a cache of" in err
    assert "Copied from RAM to cards" in err
    assert "kept there, in the background" in err


def test_a_card_that_was_asked_for_and_is_too_small_is_refused(potluck: Potluck, card: Card) -> None:
    card.set("memory", 300_000_000)
    command = ("generate", "--model", MODEL.path, "--token-ids", "5,6", "--max-tokens", 2, "--json")
    code, _, err = potluck(*command, "--device", "cuda")
    assert code == 2
    assert says(err, "--device cuda: … of VRAM free: too little for any use … or --device cpu")
    # By itself a run does without such a card.
    assert document(potluck(*command, "--device", "auto"))["computed"]["vram"] == 0


def test_a_cache_in_vram_where_there_is_none_is_refused(potluck: Potluck) -> None:
    command = ("generate", "--model", MODEL.path, "--token-ids", "5,6", "--max-tokens", 2)
    for where in (("--device", "cpu"), ("--workers", 2)):
        code, _, err = potluck(*command, *where, "--residency", "lru", "--json")
        assert code == 2
        assert says(err, "--residency lru: a cache in VRAM … leave it out (--device cuda says why")
    code, _, err = potluck(*command, "--residency", "mru", "--json")
    assert code == 2
    assert "mru" in err
