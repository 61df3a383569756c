"""Holders for losses: as many as any placement could have, beside an integer program."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp

from placement.given.problem import PlanningProblem
from placement.plan import LOCAL_WORKER
from placement.policies.cover import Boxes, Cover, lacking_experts
from tests.placement.boxes import device
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=2, num_experts=6)
NUM_EXPERTS = SHAPE.num_routed_experts
SIZE = SHAPE.expert_bytes(16)


def problem_with(rooms: dict[str, int], survive: int) -> PlanningProblem:
    devices = tuple(device(name, room, SIZE) for name, room in rooms.items())
    return PlanningProblem(SHAPE, devices, SIZE, survive=survive)


@st.composite
def placements(draw: st.DrawFn) -> tuple[PlanningProblem, np.ndarray]:
    """Boxes with or without a head, and any single holders that fit."""
    names = [*([LOCAL_WORKER] if draw(st.booleans()) else []), *"abcd"[: draw(st.integers(1, 4))]]
    rooms = [draw(st.integers(0, NUM_EXPERTS)) for _ in names]
    if sum(rooms) < NUM_EXPERTS:
        rooms[0] = NUM_EXPERTS
    problem = problem_with(dict(zip(names, rooms, strict=True)), draw(st.integers(0, 3)))
    places = np.repeat(np.arange(len(names)), rooms)
    chosen = np.random.default_rng(draw(st.integers(0, 999))).permutation(places)[:NUM_EXPERTS]
    masks = (np.arange(len(names))[:, None] == chosen).reshape(len(names), 2, 6)
    return problem, masks


def fewest_short(problem: PlanningProblem) -> int:
    """Holders that the best placement lacks, by an integer program: held[expert, box], short[expert]."""
    num_boxes, wanted = len(problem.devices), problem.survive + 1
    num_held = NUM_EXPERTS * num_boxes
    weights = [wanted if d.tier.name == LOCAL_WORKER else 1 for d in problem.devices]
    ones, eye = np.ones(num_boxes), np.eye(NUM_EXPERTS)
    enough = np.hstack([np.kron(eye, weights), eye])
    some = np.hstack([np.kron(eye, ones), np.zeros((NUM_EXPERTS, NUM_EXPERTS))])
    fits = np.hstack([np.kron(np.ones(NUM_EXPERTS), np.eye(num_boxes)), np.zeros((num_boxes, NUM_EXPERTS))])
    found = milp(
        np.concatenate([np.zeros(num_held), np.ones(NUM_EXPERTS)]),
        integrality=np.concatenate([np.ones(num_held), np.zeros(NUM_EXPERTS)]),
        bounds=Bounds(0, np.concatenate([np.ones(num_held), np.full(NUM_EXPERTS, np.inf)])),
        constraints=[
            LinearConstraint(enough, wanted, np.inf),
            LinearConstraint(some, 1, np.inf),
            LinearConstraint(fits, 0, problem.capacities()),
        ],
    )
    assert found.x is not None
    return round(float(found.fun))


@settings(max_examples=150, deadline=None)
@given(placements())
def test_as_many_experts_get_holders_as_in_any_placement(
    case: tuple[PlanningProblem, np.ndarray],
) -> None:
    problem, masks = case
    cover = Cover(problem, masks)
    cover.complete(np.random.default_rng(0).random((2, 6)))
    held = cover.masks.sum(axis=(1, 2))
    assert (held <= problem.capacities()).all()
    assert (cover.room == problem.capacities() - held).all()
    assert cover.masks.any(axis=0).all()
    assert (cover.short == Boxes.of(problem).short(cover.masks, problem.survive)).all()
    fewest = fewest_short(problem)
    assert cover.short.sum() == fewest
    assert (fewest == 0) == (lacking_experts(problem, problem.survive) == 0)


def test_two_devices_of_one_box_are_lost_together() -> None:
    problem = problem_with({"a": 12, "b": 12, "c": 12}, survive=1)
    same = replace(problem.devices[1].tier, worker="a", node="a")
    problem = replace(
        problem, devices=(problem.devices[0], replace(problem.devices[1], tier=same), problem.devices[2])
    )
    masks = np.zeros((3, 2, 6), np.bool_)
    masks[:2] = True
    assert (Boxes.of(problem).short(masks, 1) == 1).all()
    cover = Cover(problem, masks)
    cover.complete(np.ones((2, 6)))
    assert cover.masks[2].all()


def test_what_the_head_holds_needs_no_second_holder_and_a_disk_gets_none() -> None:
    problem = problem_with({LOCAL_WORKER: 6, "a": 6}, survive=1)
    disk = device("b", 12, SIZE, tier="disk")
    problem = replace(problem, devices=(*problem.devices, disk))
    masks = np.zeros((3, 2, 6), np.bool_)
    masks[0, 0] = masks[1, 1] = True
    cover = Cover(problem, masks)
    cover.complete(np.ones((2, 6)))
    assert cover.short.tolist() == [[0] * 6, [1] * 6]
    assert not cover.masks[2].any()


def test_the_coldest_expert_makes_way() -> None:
    # All that is left is room in c, which holds the only expert that is short of a holder.
    problem = problem_with({"a": 11, "b": 11, "c": 3}, survive=1)
    masks = np.zeros((3, 2, 6), np.bool_)
    masks[0].ravel()[:11] = masks[1].ravel()[:11] = True
    masks[2, 1, 5] = True
    heat = np.arange(12.0)[::-1].reshape(2, 6)
    heat[0, 4] = -1
    cover = Cover(problem, masks)
    cover.complete(heat)
    assert not cover.short.any()
    assert cover.masks[2, 0, 4]
    assert cover.masks[:, 0, 4].sum() == 2


@pytest.mark.parametrize(
    ("rooms", "losses", "lacking"),
    [
        ({LOCAL_WORKER: 12, "a": 0}, 1, 0),
        ({LOCAL_WORKER: 4, "a": 8}, 1, 8),
        ({LOCAL_WORKER: 4, "a": 8, "b": 8}, 1, 0),
        ({LOCAL_WORKER: 4, "a": 99, "b": 5}, 1, 3),
        ({"a": 12, "b": 12, "c": 12}, 2, 0),
        ({"a": 12, "b": 12, "c": 12}, 3, 12),
    ],
)
def test_the_room_that_is_missing_is_told(rooms: dict[str, int], losses: int, lacking: int) -> None:
    assert lacking_experts(problem_with(rooms, 0), losses) == lacking
