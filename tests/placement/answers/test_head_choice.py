"""The head goes where whole steps are fastest, and nobody is told of a place that was not tried."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from orchestrator.cli.plan_head import heads_parts
from placement.answers.head_choice import HeadChoice, ProblemOn, choose_head, head_advice
from placement.errors import PlanDoesNotFit
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from placement.given.head_memory import head_memory_bytes
from placement.given.other_head import HeadPlace, with_head
from placement.given.problem import PlanningProblem, problem_for
from placement.policies.registry import place
from placement.routing.planning_text import even_routing, planning_text
from placement.workload import Workload
from tests.brief import search_briefly
from tests.placement.shapes import small_shape
from tests.placement.spreads import spreads

SHAPE = small_shape()
WORKLOAD = Workload(context=8, prompt_tokens_per_token=2, prefill_tokens=16)
SIZE = SHAPE.expert_bytes(16)
HEAD_BYTES = head_memory_bytes(SHAPE, WORKLOAD)
ALL_EXPERTS = SHAPE.num_routed_experts * SIZE


@pytest.fixture(autouse=True)
def brief() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        search_briefly(patch)
        yield


def memory(name: str, room: int, mbytes_per_s: float, kind: str = "ram") -> DeviceSpec:
    device = "cuda:0" if kind == "vram" else "cpu"
    rate = mbytes_per_s * 1e6
    return DeviceSpec(name, kind, device, room, 0, rate, 20 * rate)  # type: ignore[arg-type]


def two_boxes(home: DeviceSpec, *others: DeviceSpec, also_home: tuple[DeviceSpec, ...] = ()) -> ClusterSpec:
    link = LinkSpec(1e-6, 1e9)
    nodes = [NodeSpec(f"box{i}", None, (device,), link) for i, device in enumerate(others)]
    return ClusterSpec("home", (NodeSpec("home", None, (home, *also_home), None), *nodes))


def problem_on(cluster: ClusterSpec) -> PlanningProblem:
    return problem_for(SHAPE, cluster, SIZE, even_routing(SHAPE), WORKLOAD)


def chosen(cluster: ClusterSpec, on: ProblemOn = problem_on) -> HeadChoice:
    return choose_head(cluster, on, "hottest-per-layer", spreads())


ROOM = HEAD_BYTES + ALL_EXPERTS


def test_the_box_with_the_faster_memory_gets_the_head_and_its_plan() -> None:
    choice = chosen(two_boxes(memory("ram", ROOM, 10), memory("ram", ROOM, 40)))
    assert str(choice.best.place) == "box0/ram"
    gain = choice.gain(choice.best)
    assert gain is not None
    assert gain > 0.5
    assert choice.named is not None
    assert choice.gain(choice.named) == 0
    assert choice.problem.devices[choice.problem.head or 0].tier.node == "box0"
    assert choice.best.step_s == pytest.approx(1 / (choice.best.tokens_per_s or 0))


def test_equal_boxes_leave_the_head_where_the_file_has_it() -> None:
    choice = chosen(two_boxes(memory("ram", ROOM, 10), memory("ram", ROOM, 10)))
    assert choice.best is choice.named
    assert str(choice.best.place) == "home/ram"
    said = "The head stays on home/ram: no other place that was planned for in full gains more than 1%."
    assert heads_parts(choice)[-1] == said


def test_a_gpu_too_small_for_the_head_leaves_it_to_the_ram_beside_it() -> None:
    gpu, ram = memory("gpu", HEAD_BYTES // 2, 400, "vram"), memory("ram", ROOM, 10)
    choice = chosen(two_boxes(gpu, memory("ram", ROOM, 5), also_home=(ram,)))
    assert str(choice.best.place) == "home/ram"
    assert choice.named is not None
    assert choice.named.problem is None
    assert "more than its memory_bytes" in choice.named.note
    assert choice.gain(choice.best) is None
    assert choice.is_promised(choice.best) is None
    # A larger one is the best place there is.
    larger = memory("gpu", ROOM, 400, "vram")
    assert str(chosen(two_boxes(ram, memory("ram", ROOM, 5), also_home=(larger,))).best.place) == "home/gpu"


def test_a_head_without_a_device_is_given_one() -> None:
    cluster = two_boxes(memory("ram", ROOM, 10), memory("ram", ROOM, 10))
    bare = replace(cluster, nodes=(replace(cluster.nodes[0], devices=()), cluster.nodes[1]))
    choice = chosen(bare)
    assert (str(choice.best.place), choice.named) == ("box0/ram", None)


def test_where_no_head_leaves_room_the_named_ones_problem_is_told() -> None:
    with pytest.raises(PlanDoesNotFit, match="do not fit the 2 devices"):
        chosen(two_boxes(memory("ram", HEAD_BYTES, 10), memory("ram", ALL_EXPERTS // 2, 10)))


def test_all_plans_survive_as_much_as_the_named_heads() -> None:
    def surviving(cluster: ClusterSpec) -> PlanningProblem:
        return replace(problem_on(cluster), survive=int(cluster.head == "home"))

    boxes = [memory("ram", HEAD_BYTES + 2 * ALL_EXPERTS, 10 + i) for i in range(3)]
    choice = chosen(two_boxes(*boxes), surviving)
    assert {tried.problem.survive for tried in choice.tried if tried.problem} == {1}


def test_a_place_far_behind_is_ranked_but_not_searched_for() -> None:
    choice = chosen(two_boxes(memory("ram", ROOM, 100), memory("ram", ROOM, 1)))
    by_place = {str(tried.place): tried.is_planned for tried in choice.tried}
    assert by_place == {"home/ram": True, "box0/ram": False}


HALF_ROOM = HEAD_BYTES + ALL_EXPERTS // 2


@pytest.mark.parametrize(
    ("room", "faster", "is_promised"),
    [
        # Both boxes work whichever has the head, and another head is another matter all the same.
        (HALF_ROOM, 10.5, False),
        (HALF_ROOM, 12, False),
        # Only the head's box works.
        (ROOM, 14, False),
        (ROOM, 16, True),
    ],
)
def test_another_head_s_gain_is_promised_by_the_range_of_speeds(
    room: int, faster: float, is_promised: bool
) -> None:
    cluster = two_boxes(memory("ram", room, 10), memory("ram", room, faster))
    choice = chosen(cluster)
    # The best predicted is taken all the same.
    assert str(choice.best.place) == "box0/ram"
    assert choice.is_promised(choice.best) is is_promised
    assert choice.named is not None
    assert choice.is_promised(choice.named) is False
    said = [heads_parts(choice)[-1], *advised(cluster)]
    assert len(said) == (1 if faster == 10.5 else 2)
    assert [str(sentence).count("no difference we can promise") for sentence in said] == [
        int(not is_promised)
    ] * len(said)


def advised(cluster: ClusterSpec, head: HeadPlace | None = None) -> list[str]:
    problem = problem_on(cluster if head is None else with_head(cluster, head))
    table = place(problem, "hottest-per-layer")
    text = planning_text(problem)
    return head_advice(cluster, problem, table, problem_on, "hottest-per-layer", text, spreads())


def test_advice_names_a_faster_head_and_what_it_gains() -> None:
    cluster = two_boxes(memory("ram", ROOM, 10), memory("ram", ROOM, 40))
    (sentence,) = advised(cluster)
    assert "--head box0/ram" in sentence
    assert "faster" in sentence or "as fast" in sentence
    # Nobody is sent back to the slower box.
    assert advised(cluster, HeadPlace("box0", "ram")) == []


def test_no_advice_where_another_head_gains_nothing_worth_moving_it() -> None:
    assert advised(two_boxes(memory("ram", ROOM, 10), memory("ram", ROOM, 10))) == []
    assert advised(two_boxes(memory("ram", ROOM, 10), memory("ram", ROOM, 10.2))) == []
