"""Plans survive a round trip; wrong ones are refused, naming file and field."""

from __future__ import annotations

import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from placement.answers.summary import summarise
from placement.errors import InputError, PlanDoesNotFit, PlanError
from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.kv_size import KvForm
from placement.plan import Plan, PlannedLayer, PlannedTier, like_layers
from placement.plan_file import read_plan, write_plan
from placement.workload import HeadBytes, HeadForm, HeadForms, Workload
from placement.workload_fields import workload_fields
from tests.placement.shapes import small_shape

SHAPE = small_shape()
EXPERT_BYTES = 100


def plan_of(masks: NDArray[np.bool_], budget_bytes: int = 10_000, names: list[str] | None = None) -> Plan:
    """Worker i holds `masks[i]`; the first is the head's own."""
    names = names or ["head", *(f"box{i}-ram" for i in range(1, len(masks)))]
    workers = tuple(
        PlannedTier(name, name.split("-")[0], "cpu", "ram", budget_bytes) for name in names[: len(masks)]
    )
    return Plan(
        model=SHAPE.name,
        fingerprint=SHAPE.fingerprint,
        layers=like_layers(SHAPE.moe_layers, "float32", EXPERT_BYTES),
        dtype="float32",
        tiers=workers,
        holder_table=HolderTable.from_masks(masks),
        policy="by hand",
        epoch=3,
    )


def halves() -> NDArray[np.bool_]:
    """Two workers: the first has even experts, the second odd ones."""
    even = np.broadcast_to(np.arange(SHAPE.num_experts) % 2 == 0, (SHAPE.num_moe_layers, SHAPE.num_experts))
    return np.stack([even, ~even])


@st.composite
def full_masks(draw: st.DrawFn) -> NDArray[np.bool_]:
    """Random holders, replicas too; what nobody holds goes to worker 0."""
    num_workers = draw(st.integers(1, 5))
    masks = draw(arrays(np.bool_, (num_workers, SHAPE.num_moe_layers, SHAPE.num_experts)))
    masks[0] |= ~masks.any(axis=0)
    return masks


@given(masks=full_masks())
def test_a_plan_survives_save_and_load(
    tmp_path_factory: pytest.TempPathFactory, masks: NDArray[np.bool_]
) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan = plan_of(masks)
    write_plan(plan, path)
    assert read_plan(path) == plan
    assert [p.name for p in path.parent.iterdir()] == ["plan.json"]


@given(
    costs=st.lists(
        st.tuples(*2 * [st.floats(0, 1e6, allow_nan=False, allow_infinity=False)]), min_size=2, max_size=2
    )
)
def test_the_costs_that_replicas_are_chosen_by_survive_save_and_load(
    tmp_path_factory: pytest.TempPathFactory, costs: list[tuple[float, float]]
) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    plan = plan_of(halves())
    workers = (replace(w, ask_s=a, expert_s=e) for w, (a, e) in zip(plan.tiers, costs, strict=True))
    plan = replace(plan, tiers=tuple(workers))
    write_plan(plan, path)
    loaded = read_plan(path)
    assert loaded == plan
    if any(a or e for a, e in costs):
        found = loaded.replica_costs
        assert list(zip(found.ask_s.tolist(), found.expert_s.tolist(), strict=True)) == costs


def test_a_plan_without_costs_prefers_the_heads_own_worker(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(plan_of(halves()), path)
    document = json.loads(path.read_text())
    for worker in document["workers"]:
        for tier in worker["tiers"]:
            del tier["ask_s"], tier["expert_s"]
    path.write_text(json.dumps(document))
    costs = read_plan(path).replica_costs
    assert costs.ask_s[0] == 0 < costs.expert_s[0] < costs.ask_s[1]
    assert costs.expert_s[0] == costs.expert_s[1]


def test_the_file_is_plain_json_another_program_can_evaluate(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_plan(plan_of(halves()), path)
    document = json.loads(path.read_text())
    assert document["format"] == "potluck-plan"
    assert document["version"] == 2
    assert document["layers"] == {str(n): {"form": "float32", "expert_bytes": 100} for n in (1, 2, 3)}
    worker = document["workers"][1]
    assert (worker["name"], worker["node"]) == ("box1-ram", "box1")
    assert worker["tiers"][0]["experts"]["2"] == [1, 3, 5, 7, 9]
    assert worker["tiers"][0]["kind"] == "ram"


def test_experts_are_listed_by_absolute_layer() -> None:
    plan = plan_of(halves())
    assert plan.experts_of("head") == dict.fromkeys((1, 2, 3), (0, 2, 4, 6, 8))
    with pytest.raises(PlanError, match="'attic' is not in the plan: expected head, box1-ram"):
        plan.experts_of("attic")


def test_layers_without_experts_are_left_out() -> None:
    masks = halves()
    masks[0] = True
    masks[1, :2] = False
    assert list(plan_of(masks).experts_of("box1-ram")) == [3]


def test_two_workers_of_one_name_are_refused() -> None:
    with pytest.raises(PlanError, match="tiers: expected unique names, found 'a' 2 times"):
        plan_of(halves(), names=["a", "a"])


def test_an_expert_nobody_holds_is_refused() -> None:
    masks = halves()
    masks[1, 2, 7] = False
    with pytest.raises(PlanError, match="no tier holds expert 7 of layer 3"):
        plan_of(masks)


def test_a_plan_for_another_model_is_refused() -> None:
    plan = plan_of(halves())
    plan.check(SHAPE)
    with pytest.raises(PlanError, match=r"plan for another model: made for .small. \(3 MoE layers x 10"):
        plan.check(small_shape(num_experts=12, name="big"))


def test_a_plan_without_a_layer_of_the_model_is_refused() -> None:
    plan = plan_of(halves())
    shorter = replace(plan, layers=plan.layers[:2], holder_table=HolderTable.from_masks(halves()[:, :2]))
    with pytest.raises(PlanError, match=r"layers: .*missing layers: \[3\], unknown ones: none"):
        shorter.check(SHAPE)


def test_a_plan_that_does_not_fit_says_by_how_many_bytes() -> None:
    plan_of(halves(), budget_bytes=1500).check_fits()
    with pytest.raises(
        PlanDoesNotFit,
        match=r"'head': 15 experts need 1\.5 kB, 1 B more than its budget_bytes of 1\.5 kB",
    ):
        plan_of(halves(), budget_bytes=1499).check_fits()


TIER = ("workers", 1, "tiers", 0)


def edited(document: dict[str, Any], path: list[Any], value: Any) -> None:
    """Set or, with value ..., remove the entry at `path`."""
    *parents, last = path
    target: Any = document
    for key in parents:
        target = target[key]
    if value is ...:
        del target[last]
    else:
        target[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["format"], "recipe", "format: expected 'potluck-plan'"),
        (["version"], 3, "version: expected 1 to 2, found 3"),
        (["version"], True, "version: expected 1 to 2, found True"),
        (["version"], 2.0, "version: expected 1 to 2, found 2.0"),
        (
            ["layers", "9" * 5000],
            {"form": "q4", "expert_bytes": 1},
            "layers: expected ascending layer numbers",
        ),
        (
            ["layers", "2", "expert_bytes"],
            2**62,
            r"layers.2.expert_bytes: expected a whole number of at most",
        ),
        (["digests"], {"a\u001b[31m": 1}, r"digests of 'a\\x1b"),
        (["epoch"], ..., "epoch: missing"),
        (["epoch"], -1, "epoch: expected a whole number of at least 0, found -1"),
        (["epoch"], True, "epoch: expected a whole number"),
        (["colour"], "blue", "plan: unknown field 'colour'; expected format, "),
        (["workers", 1, "colour"], "blue", r"workers\[1\]: unknown field 'colour'; expected name, "),
        (["model"], "", "model: expected text"),
        (["dtype"], "q4", "dtype: expected float32 or bfloat16, found 'q4'"),
        (["layers", "2", "expert_bytes"], 0, r"layers.2.expert_bytes: expected a whole number of at least 1"),
        (["layers", "2", "form"], 5, "layers.2.form: expected text"),
        (["layers", "1.5"], {"form": "q4", "expert_bytes": 1}, "layers: expected ascending layer numbers"),
        (["layers", "0"], {"form": "q4", "expert_bytes": 1}, "layers: expected ascending layer numbers"),
        (["layers"], "1,2,3", "layers: expected an object"),
        (["layers"], {}, "layers: expected an object"),
        (["digests"], ["x"], "digests: expected an object"),
        (["survive"], -1, "survive: expected a whole number"),
        (["survive"], 2**40, "survive: expected a whole number of at most"),
        (["workers"], [], "workers: expected a list of at least one"),
        (["workers", 0, "tiers"], [], r"workers\[0\].tiers: expected a list of at least one"),
        (["workers", 0], "head", r"workers\[0\]: expected an object"),
        (
            [*TIER, "kind"],
            "tape",
            r"tiers\[0\].kind: expected vram, ram, disk, found 'tape'",
        ),
        (
            [*TIER, "budget_bytes"],
            1.5,
            r"tiers\[0\].budget_bytes: expected a whole number",
        ),
        ([*TIER, "ask_s"], -1, r"tiers\[0\].ask_s: expected seconds"),
        ([*TIER, "expert_s"], True, r"tiers\[0\].expert_s: expected seconds"),
        (
            [*TIER, "expert_s"],
            math.inf,
            r"tiers\[0\].expert_s: expected seconds",
        ),
        ([*TIER, "ask_s"], 10**400, r"tiers\[0\].ask_s: expected seconds"),
        (["num_experts"], 10**12, "num_experts: expected a whole number of at most 65535"),
        (["epoch"], 10**400, "epoch: expected a whole number of at most"),
        (["workers", 1, "name"], ..., r"workers\[1\].name: missing"),
        ([*TIER, "name"], "head", "expected unique names, found 'head' 2 times"),
        ([*TIER, "experts"], [], r"tiers\[0\].experts: expected an object"),
        (
            [*TIER, "experts", "4"],
            [1],
            r"tiers\[0\].experts: expected layers of the plan, found '4'",
        ),
        (
            [*TIER, "experts", "2"],
            [1, 10],
            "experts.2: expected experts under 10, found 10",
        ),
        ([*TIER, "experts", "2"], [3, 1], "experts.2: expected ascending numbers"),
        (
            [*TIER, "experts", "2"],
            [-1],
            "experts.2: expected a whole number of at least 0",
        ),
        ([*TIER, "experts", "2"], ..., "no tier holds expert 1 of layer 2"),
        (["num_experts"], 11, "no tier holds expert 10 of layer 1"),
    ],
)
def test_a_wrong_field_is_refused_by_name(tmp_path: Path, path: list[Any], value: Any, message: str) -> None:
    file = tmp_path / "plan.json"
    write_plan(plan_of(halves()), file)
    document = json.loads(file.read_text())
    edited(document, path, value)
    file.write_text(json.dumps(document))
    with pytest.raises(PlanError, match=message) as caught:
        read_plan(file)
    assert "plan.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "not JSON"), (b"{", "not JSON"), (b"\xff\xfe", "not UTF-8"), (b"[]", "this is not a plan")],
)
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "plan.json"
    file.write_bytes(content)
    with pytest.raises(PlanError, match=message):
        read_plan(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"plan.json: No such file"):
        read_plan(tmp_path / "plan.json")


def test_saving_into_a_missing_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_plan(plan_of(halves()), tmp_path / "no" / "plan.json")


WORKLOADS = st.builds(
    Workload,
    num_sequences=st.integers(1, 99),
    context=st.integers(0, 10**6),
    head_bits_per_weight=st.floats(1, 64),
    kv_form=st.sampled_from(KvForm),
    head_forms=st.none()
    | st.just(HeadForms(*(HeadForm(form, 5.25) for form in ("q4_k", "float32", "q6_k", "q8_0")))),
    head_bytes=st.none() | st.builds(HeadBytes, st.integers(0, 2**40), st.integers(0, 2**40)),
    prompt_tokens_per_token=st.floats(0, 1e6),
    prefill_tokens=st.integers(1, 10**6),
)


@given(workload=WORKLOADS, acceptance=st.lists(st.floats(0, 1), max_size=3), is_known=st.booleans())
def test_what_a_plan_was_made_for_survives_save_and_load(
    tmp_path_factory: pytest.TempPathFactory, workload: Workload, acceptance: list[float], is_known: bool
) -> None:
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    drafts, known = len(acceptance), tuple(acceptance * is_known)
    full = replace(workload, drafts=drafts, accepted_drafts=drafts / 2, acceptance=known)
    plan = replace(plan_of(halves()), workload=full)
    write_plan(plan, path)
    assert read_plan(path).workload == full


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["assumes"], "chat", "assumes: expected an object with sequences, .*, found 'chat'"),
        (["assumes", "context"], ..., "assumes.context: missing"),
        (["assumes", "beams"], 4, "assumes: unknown field 'beams'"),
        (["assumes", "sequences"], 0, "assumes.sequences: expected a whole number of at least 1"),
        (["assumes", "head_bits"], 0.5, "assumes.head_bits: expected a number of at least 1"),
        (["assumes", "kv_bits"], 12, "assumes.kv_bits: expected one of 8, 16, 32, found 12"),
        (["assumes", "activation_bits"], "8", "assumes.activation_bits: expected a whole number"),
        (["assumes", "head_bytes"], {"trunk": 1}, "assumes.head_bytes.mtp: missing"),
        (["assumes", "head_forms"], {"attention": "q8_0"}, "assumes.head_forms.router: missing"),
        (["assumes", "accepted_drafts"], 1, "assumes.accepted_drafts: .* at most 0, found 1"),
        (["assumes", "acceptance"], [0.5], "assumes.acceptance: expected a chance for each of the 0"),
        (["assumes", "acceptance"], "half", "assumes.acceptance: expected a chance for each"),
        (["assumes", "prompt_ratio"], math.nan, "assumes.prompt_ratio: expected a number"),
    ],
)
def test_a_wrong_field_of_the_workload_is_refused_by_name(
    tmp_path: Path, path: list[Any], value: Any, message: str
) -> None:
    file = tmp_path / "plan.json"
    write_plan(replace(plan_of(halves()), workload=Workload()), file)
    document = json.loads(file.read_text())
    edited(document, path, value)
    file.write_text(json.dumps(document))
    with pytest.raises(PlanError, match=f"plan.json: {message}"):
        read_plan(file)


def test_a_plan_may_say_outright_that_it_assumes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    write_plan(plan_of(halves()), file)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"assumes": None}))
    assert read_plan(file).workload is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": dict.fromkeys(range(30_000), 1)}, "at most 1024 layers, found 30000"),
        (
            {
                "layers": {layer: {"form": "q4", "expert_bytes": 1} for layer in range(1024)},
                "num_experts": 65_535,
            },
            "are more than 268435456; expected",
        ),
        ({"model": "x" * 20_000_000}, "model: expected at most 200 characters, found 20000000"),
        ({"format": "x" * 20_000_000}, "this is not a plan"),
        ({"x" * 20_000_000: 1}, "unknown field 'xxx"),
        ({"epoch": "digits"}, "not JSON: Exceeds the limit"),
        ({"workers": [1] * 5000}, "workers: expected a list of at least one and at most 4096"),
    ],
    ids=["layers", "places", "text", "format", "name", "number", "workers"],
)
def test_absurd_sizes_end_in_one_short_line_before_they_are_allocated(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    file = tmp_path / "plan.json"
    write_plan(plan_of(halves()), file)
    document = json.loads(file.read_text())
    text = json.dumps(document | {"workers": document["workers"] * 5} | fields)
    file.write_text(text.replace('"digits"', "1" + "0" * 5000))
    tracemalloc.start()
    try:
        with pytest.raises(PlanError, match=message) as caught:
            read_plan(file)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(str(caught.value)) < len(str(file)) + 500
    assert peak_bytes < 10 * file.stat().st_size + 50e6


def test_nesting_without_end_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text("[" * 200_000)
    with pytest.raises(PlanError, match="nested more than 64 deep; expected a plan"):
        read_plan(file)


def test_the_summary_counts_bytes_shares_and_remote_layers() -> None:
    plan = plan_of(halves())
    # Three tokens: all experts even, one odd in layer 3, all odd.
    trace = np.array([[[0, 2]] * 3, [[0, 2], [0, 2], [0, 3]], [[1, 3]] * 3])
    summary = summarise(plan, RoutingStats.from_trace(SHAPE, trace, "by hand"))
    head, box = summary.workers
    assert (head.num_experts, head.held_bytes, head.is_home) == (15, 1500, True)
    assert (box.num_experts, box.held_bytes, box.is_home) == (15, 1500, False)
    assert head.share_of_activations == pytest.approx(11 / 18)
    assert box.share_of_activations == pytest.approx(7 / 18)
    assert summary.remote_layers_per_token == pytest.approx((0 + 1 + 3) / 3)
    assert summary.basis == "trace"
    assert summary.replicas == 0


def test_without_statistics_the_summary_has_no_shares() -> None:
    summary = summarise(plan_of(halves()))
    assert summary.workers[0].share_of_activations is None
    assert summary.remote_layers_per_token is None
    assert summary.basis is None


def test_without_a_head_worker_every_worker_is_remote() -> None:
    plan = plan_of(halves(), names=["a-ram", "b-ram"])
    assert plan.local_worker is None
    assert not plan.tiers_at_home().any()
    assert plan.local_tiers == ()
    assert not plan.tiers_at_home().any()


def test_a_box_is_one_worker_with_a_tier_for_each_device() -> None:
    masks = np.concatenate([halves(), np.zeros_like(halves()[:1])])
    plan = plan_of(masks)
    head, gpu, ram = plan.tiers
    boxed = replace(plan, tiers=(head, *(replace(tier, node="den", worker="den") for tier in (gpu, ram))))
    assert [(worker.name, worker.node, worker.tiers) for worker in boxed.workers] == [
        ("head", "head", (0,)),
        ("den", "den", (1, 2)),
    ]
    assert boxed.worker_of_tier.tolist() == [0, 1, 1]
    assert boxed.experts_of("den") == boxed.experts_of_tier(1)
    assert [worker.name for worker in boxed.asked_workers] == ["den"]
    gone = boxed.without([1])
    assert gone.experts_per_worker(3).tolist() == [15, 0, 0]
    with pytest.raises(PlanError, match="worker 'den': expected one node, found 'den' and 'attic'"):
        replace(boxed, tiers=(*boxed.tiers[:2], replace(boxed.tiers[2], node="attic")))


def test_layers_may_differ_in_form_and_bytes(tmp_path: Path) -> None:
    plan = plan_of(halves())
    layers = (
        PlannedLayer(1, "q8_0", 10),
        PlannedLayer(2, "q8_0/q8_0/float16", 30),
        PlannedLayer(3, "q8_0", 10),
    )
    mixed = replace(plan, layers=layers, digests={"model.gguf": "sha256:00"}, survive=2)
    assert mixed.form == "q8_0, q8_0/q8_0/float16"
    assert mixed.bytes_per_tier().tolist() == [5 * (10 + 30 + 10)] * 2
    with pytest.raises(PlanDoesNotFit):
        replace(mixed, tiers=tuple(replace(tier, budget_bytes=249) for tier in mixed.tiers)).check_fits()
    write_plan(mixed, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == mixed


VERSION_1 = {
    "format": "potluck-plan",
    "version": 1,
    "model": SHAPE.name,
    "fingerprint": SHAPE.fingerprint,
    "epoch": 3,
    "policy": "by hand",
    "dtype": "q4",
    "expert_bytes": EXPERT_BYTES,
    "num_experts": 10,
    "moe_layers": [1, 2, 3],
    "workload": workload_fields(Workload(context=7)),
    "workers": [
        {
            "name": name,
            "node": node,
            "device": "cpu",
            "tier": tier,
            "budget_bytes": 10_000,
            "ask_s": 0.5,
            "experts": {str(layer): list(range(first, 10, 2)) for layer in (1, 2, 3)},
        }
        for first, (name, node, tier) in enumerate([("head", "study", "vram"), ("den-ram", "den", "ram")])
    ],
}


def test_version_1_still_loads(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(VERSION_1))
    plan = read_plan(file)
    assert (plan.form, plan.dtype) == ("q4", "bfloat16")
    assert plan.workload == Workload(context=7)
    assert plan.experts_of("head") == dict.fromkeys((1, 2, 3), (0, 2, 4, 6, 8))
    assert [(w.name, w.node, w.tiers) for w in plan.workers] == [
        ("head", "study", (0,)),
        ("den-ram", "den", (1,)),
    ]
    assert plan.tiers[1].ask_s == 0.5
    write_plan(plan, file)
    assert read_plan(file) == plan
    assert json.loads(file.read_text())["version"] == 2


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["workers", 1, "tier"], "tape", r"workers\[1\].tier: expected vram, ram, disk, found 'tape'"),
        (["moe_layers"], [1, 1, 2], "moe_layers: expected ascending numbers"),
        (["expert_bytes"], 0, "expert_bytes: expected a whole number of at least 1"),
        (["layers"], {}, "unknown field 'layers'"),
        (["workload", "context"], ..., "workload.context: missing"),
    ],
)
def test_a_wrong_field_of_version_1_is_refused_by_name(
    tmp_path: Path, path: list[Any], value: Any, message: str
) -> None:
    document = json.loads(json.dumps(VERSION_1))
    edited(document, path, value)
    (tmp_path / "plan.json").write_text(json.dumps(document))
    with pytest.raises(PlanError, match=message):
        read_plan(tmp_path / "plan.json")
