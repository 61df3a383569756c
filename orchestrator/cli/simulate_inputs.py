"""What `potluck simulate` is given: files and events, checked against each other before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from orchestrator.cli.inputs import load_plan, load_shape, name_in_errors
from orchestrator.cli.output import print_note
from placement.errors import InputError, PlanDoesNotFit, PlanError, RoutingFileError
from placement.given.cluster_file import load_known_cluster
from placement.given.head_memory import head_memory_bytes
from placement.given.other_head import as_planned, head_place
from placement.given.problem import PlanningDevice, planning_devices
from placement.given.stats import RoutingStats
from placement.model_shape import PUBLISHED_SHAPES, ModelShape
from placement.plan import LOCAL_WORKER, Plan
from placement.replay.queueing.scenario import NewPlan, Stream, WorkerLoss
from placement.replay.steps import Acceptance, split_trace
from placement.replay.system import System
from placement.units import size
from placement.workload import Workload


@dataclass(frozen=True, slots=True)
class Boxes:
    """The devices of a cluster file, with room for experts beside what the head itself needs of its own.

    Attributes:
        head_bytes: that it needs.
        context: positions in each sequence's KV cache, for which there is room.
        workload: what is simulated, its context may be longer.
    """

    path: Path
    devices: tuple[PlanningDevice, ...]
    head_bytes: int
    context: int
    shape: ModelShape
    workload: Workload

    @classmethod
    def load(
        cls,
        path: Path,
        shape: ModelShape,
        workload: Workload,
        context: int,
        say: Callable[[str], None] | None = None,
        plan: Plan | None = None,
    ) -> Boxes:
        """`say` is told which figures are probed, and whether `plan` has its head elsewhere than the file.

        Raises:
            PlanDoesNotFit: the head's own device is too small for it; names the file.
        """
        of_file = load_known_cluster(path, say)
        cluster = of_file if plan is None else as_planned(of_file, plan)
        if cluster != of_file and say is not None:
            named = head_place(of_file) or of_file.head
            say(f"simulated with the head on {head_place(cluster)}, as planned; {path} names {named}")
        head_bytes = head_memory_bytes(shape, replace(workload, context=context))
        with name_in_errors(path, PlanDoesNotFit):
            devices = planning_devices(cluster, head_bytes)
        return cls(path, devices, head_bytes, context, shape, workload)

    def system(self, plan: Plan, name: object) -> System:
        """A plan on these devices.

        Args:
            name: of the plan, for errors: its file.

        Raises:
            PlanError: a worker that the cluster does not have, or that holds more than it has room for.
        """
        if plan.head_tier is not None:
            self._check_head(plan, name)
        with name_in_errors(f"{name} on {self.path}"):
            return System.build(plan, self.devices, self.shape, self.workload)

    def _check_head(self, plan: Plan, name: object) -> None:
        held_bytes = int(plan.bytes_per_tier()[plan.head_tier])
        rooms = [d.tier.budget_bytes for d in self.devices if d.tier.name == LOCAL_WORKER]
        if rooms and held_bytes > rooms[0]:
            raise PlanDoesNotFit(
                f"{name}: device {LOCAL_WORKER!r} holds {size(held_bytes)} of experts, expected at most "
                f"{size(rooms[0])}: what {self.path} leaves beside its reserved_bytes or the "
                f"{size(self.head_bytes)} of the head's weights, KV cache and activations at --context "
                f"{self.context} and --head-bits {self.workload.head_bits_per_weight:g}; plan for this "
                "cluster with the same options of `potluck plan`"
            )


def load_system(
    plan: Plan, path: Path, cluster: Path, shape: ModelShape, workload: Workload, *, is_assumed: bool
) -> tuple[Boxes, System, list[str]]:
    """A plan on a cluster's boxes, and what is to be said about it.

    Args:
        is_assumed: nobody asked for the workload's context: that it does not fit is said, not refused.

    Raises:
        PlanError: as `Boxes.system`.
    """
    try:
        boxes = Boxes.load(cluster, shape, workload, workload.context, print_note, plan)
        return boxes, boxes.system(plan, path), []
    except PlanDoesNotFit as error:
        if not is_assumed:
            raise
        boxes = Boxes.load(cluster, shape, workload, 0, plan=plan)
        system = boxes.system(plan, path)
        return boxes, system, [f"a context of {workload.context} is assumed that does not fit: {error}"]


def shape_of(plan: Plan, path: Path, model: str | None) -> ModelShape:
    """Of `--model`, else of the model that the plan names; raises InputError where that is not known."""
    if model is None and plan.model.lower() not in PUBLISHED_SHAPES:
        raise InputError(
            f"{path}: model {plan.model!r} is not built in: expected --model with its directory or GGUF file"
        )
    return load_shape(model if model is not None else plan.model)


def tokens_of(path: Path, shape: ModelShape, in_flight: int, workload: Workload) -> NDArray[np.uint16]:
    """A recorded trace, uint16 [num_tokens, num_moe_layers, top_k], of at least one pass for each stream.

    Raises:
        RoutingFileError: names the file.
    """
    stats = RoutingStats.load(path, shape)
    if stats.trace is None:
        raise RoutingFileError(f"{path}: expected a trace, found counts only (`potluck stats --trace`)")
    needed = in_flight * workload.tokens_per_step
    if len(stats.trace) < needed:
        raise RoutingFileError(
            f"{path}: expected at least {needed} tokens, {in_flight} (--in-flight) x "
            f"{workload.tokens_per_step} (--tokens-per-step), found {len(stats.trace)}: give a longer trace, "
            "or less of these"
        )
    return stats.trace


def streams_of(
    tokens: NDArray[np.uint16], in_flight: int, workload: Workload, acceptance: Acceptance | None
) -> list[Stream]:
    """The trace cut into one text a stream; with drafts into one a sequence: each advances on its own."""
    texts = workload.num_sequences if acceptance is not None else 1
    parts = split_trace(tokens, in_flight * texts)
    return [Stream(parts[i * texts : (i + 1) * texts], acceptance) for i in range(in_flight)]


def loss_of(text: str, plan: Plan) -> WorkerLoss:
    """`--lose WORKER@SECONDS`; raises InputError."""
    worker, at_s = _at("--lose", "WORKER@SECONDS", text)
    others = [worker.name for worker in plan.workers if worker.name != LOCAL_WORKER]
    if worker not in others:
        raise InputError(
            f"--lose: expected a worker of the plan other than {LOCAL_WORKER!r}, whose loss ends every run "
            f"({', '.join(others) or 'there is none'}), found {worker!r}"
        )
    return WorkerLoss(worker, at_s)


def new_plan_of(text: str, running: Plan, running_path: Path, boxes: Boxes) -> NewPlan:
    """`--new-plan PLAN.json@SECONDS`: of the same model, form and workers as the running one.

    Raises:
        InputError, PlanError: names the option and the file.
    """
    path, at_s = _at("--new-plan", "PLAN.json@SECONDS", text)
    with name_in_errors("--new-plan"):
        new = load_plan(Path(path), boxes.shape)
    where = f"--new-plan: {path}"
    if new.layers != running.layers:
        raise PlanError(
            f"{where}: expected experts in {running.form} of {size(running.mean_expert_bytes)} as in "
            f"{running_path}, found {new.form} of {size(new.mean_expert_bytes)}"
        )
    names, expected = ([worker.name for worker in plan.tiers] for plan in (new, running))
    if names != expected:
        raise PlanError(
            f"{where}: expected the workers of {running_path} ({', '.join(expected)}), in that order, found "
            f"{', '.join(names)}"
        )
    boxes.system(new, where)
    return NewPlan(new, at_s)


def _at(option: str, form: str, text: str) -> tuple[str, float]:
    name, separator, time = text.rpartition("@")
    try:
        at_s = float(time)
    except ValueError:
        at_s = -1.0
    if not separator or not name or not 0 <= at_s < math.inf:
        raise InputError(f"{option}: expected {form}, seconds of at least 0, found {text!r}")
    return name, at_s
