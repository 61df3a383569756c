"""Runs the cells of a study, in this process or in several, and gives rows as they come."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from placement.answers.prediction_range import LikelySpeed, range_for
from placement.answers.study.grid import Cell, Setting
from placement.answers.study.measure import measure
from placement.answers.study.results import Row
from placement.answers.study.routing_source import Routing, RoutingSource
from placement.bounds.bound import lower_bound_s
from placement.cost.head import head_seconds
from placement.errors import InputError, PlanDoesNotFit
from placement.given.cluster_file import load_known_cluster
from placement.given.cluster_spec import ClusterSpec
from placement.given.problem import PlanningProblem, problem_for
from placement.hardware.spread import packaged_spreads
from placement.model_shape import ModelShape
from placement.policies.registry import RUN_POLICIES
from placement.weight_format import planned_format


def run_cells(shape: ModelShape, todo: Sequence[Cell], processes: int) -> Iterator[Row]:
    """Rows in the order in which cells finish.

    Args:
        processes: 1 runs here; more start as many processes, which end when the iterator does.

    Raises:
        ClusterFileError, RoutingFileError: of the first cell whose inputs are wrong (`check_inputs` says so
            before); cells whose experts do not fit are rows like others.
    """
    if processes < 1:
        raise InputError(f"processes: expected at least 1, found {processes}")
    if processes == 1:
        known: dict[Setting, float | None] = {}
        for cell in todo:
            if cell.setting not in known:
                known[cell.setting] = bound_s(shape, cell.setting)
            yield _bounded(run_cell(shape, cell), known[cell.setting])
        return
    # Not forked: a fork would copy the locks of whatever threads the caller's libraries have started.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, max(len(todo), 1)), mp_context=context) as pool:
        bounds: dict[Setting, Future[float | None]] = {}
        waiting: dict[Future[Row], Setting] = {}
        for cell in todo:
            # Before the first cell it belongs to, so that no row waits long for its bound.
            if cell.setting not in bounds:
                bounds[cell.setting] = pool.submit(bound_s, shape, cell.setting)
            waiting[pool.submit(run_cell, shape, cell)] = cell.setting
        try:
            for done in as_completed(waiting):
                yield _bounded(done.result(), bounds[waiting[done]].result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def bound_s(shape: ModelShape, setting: Setting) -> float | None:
    """Seconds of a step that no plan beats in this setting; None where no plan fits."""
    routing = _routing(shape, setting.trace).as_passes(setting.workload)
    try:
        problem = _problem(shape, setting, routing)
    except PlanDoesNotFit:
        return None
    return lower_bound_s(problem, routing.held_out) + head_seconds(problem).total_s


def run_cell(shape: ModelShape, cell: Cell) -> Row:
    """Plan and judge one cell; what `bound_s` gives is left out."""
    setting = cell.setting
    empty = Row(
        key=cell.key,
        cluster=setting.cluster.stem,
        trace=setting.trace.name,
        quant=setting.quant,
        sequences=setting.batch.sequences,
        drafts=setting.batch.drafts,
        accepted_drafts=setting.batch.accepted,
        context=setting.context,
        policy=cell.policy,
    )
    routing = _routing(shape, setting.trace).as_passes(setting.workload)
    try:
        problem = _problem(shape, setting, routing)
        found = measure(problem, cell.policy, routing)
    except PlanDoesNotFit as error:
        return replace(empty, note=str(error))
    speed = LikelySpeed(found.tokens_per_s, range_for(problem, found.table, packaged_spreads()))
    return replace(
        empty,
        tokens_per_s=speed.tokens_per_s,
        tokens_per_s_low=speed.low,
        tokens_per_s_high=speed.high,
        range_basis=speed.range.basis,
        step_s=found.step_s,
        step_p95_s=found.step_p95_s,
        moe_s=found.moe_s,
        head_s=found.head_s,
        remote_layers_per_token=found.remote_layers_per_token,
        bound_by=found.bound_by,
        replicas=found.replicas,
        plan_s=found.plan_s,
        hit_share=found.hit_share,
    )


def _bounded(row: Row, lower_bound_s: float | None) -> Row:
    """With the bound, where it holds: for plans."""
    if row.step_s is None or lower_bound_s is None or row.policy in RUN_POLICIES:
        return row
    return replace(row, lower_bound_s=lower_bound_s, gap=row.step_s / lower_bound_s - 1)


def _problem(shape: ModelShape, setting: Setting, routing: Routing) -> PlanningProblem:
    size = shape.expert_bytes(planned_format(setting.quant).bits)
    cluster, workload = _cluster(setting.cluster), setting.workload
    return problem_for(shape, cluster, size, routing.planned, workload, expert_form=setting.quant)


@lru_cache(maxsize=4)
def _routing(shape: ModelShape, source: RoutingSource) -> Routing:
    return source.load(shape)


@lru_cache(maxsize=16)
def _cluster(path: Path) -> ClusterSpec:
    return load_known_cluster(path)
