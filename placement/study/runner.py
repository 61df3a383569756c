"""Runs the cells of a study, in this process or in several, and gives rows as they come."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from placement.bound import lower_bound_s
from placement.cluster_spec import ClusterSpec
from placement.cost import head_seconds
from placement.errors import InputError, PlanDoesNotFit
from placement.model_shape import ModelShape
from placement.problem import problem_for
from placement.quantisation import bits_per_weight
from placement.study.grid import Cell
from placement.study.measure import measure
from placement.study.results import Row
from placement.study.routing_source import Routing, RoutingSource


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
        for cell in todo:
            yield run_cell(shape, cell)
        return
    # Not forked: a fork would copy the locks of whatever threads the caller's libraries have started.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, max(len(todo), 1)), mp_context=context) as pool:
        waiting = [pool.submit(run_cell, shape, cell) for cell in todo]
        try:
            for future in as_completed(waiting):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def run_cell(shape: ModelShape, cell: Cell) -> Row:
    """Plan and judge one cell."""
    workload = cell.workload
    empty = Row(
        key=cell.key,
        cluster=cell.cluster.stem,
        trace=cell.trace.name,
        quant=cell.quant,
        sequences=cell.batch.sequences,
        drafts=cell.batch.drafts,
        accepted_drafts=cell.batch.accepted,
        context=cell.context,
        policy=cell.policy,
    )
    routing = _routing(shape, cell.trace).as_passes(workload)
    size = shape.expert_bytes(bits_per_weight(cell.quant))
    try:
        problem = problem_for(shape, _cluster(cell.cluster), size, routing.planned, workload)
        found = measure(problem, cell.policy, routing)
        bound_s = lower_bound_s(problem, routing.held_out) + head_seconds(problem).total_s
    except PlanDoesNotFit as error:
        return replace(empty, note=str(error))
    return replace(
        empty,
        tokens_per_s=found.tokens_per_s,
        step_s=found.step_s,
        step_p95_s=found.step_p95_s,
        moe_s=found.moe_s,
        head_s=found.head_s,
        remote_layers_per_token=found.remote_layers_per_token,
        bound_by=found.bound_by,
        replicas=found.replicas,
        plan_s=found.plan_s,
        lower_bound_s=bound_s,
        gap=found.step_s / bound_s - 1,
        hit_share=found.hit_share,
    )


@lru_cache(maxsize=4)
def _routing(shape: ModelShape, source: RoutingSource) -> Routing:
    return source.load(shape)


@lru_cache(maxsize=16)
def _cluster(path: Path) -> ClusterSpec:
    return ClusterSpec.load(path)
