"""The pay map's border, run: `python -m benchmarks.fidelity.border [--json FILE]`.

Each cell is a box with some of the experts in RAM and all on an SSD, and a second box behind a link, as in
`benchmarks/studies/pay_map.py`, on a model that two cores run. The three families of plans (experts over the
network, whole layers, one box) are made by the planner's own policies, predicted from a probe, and run. All
three are plans of experts: the head computes attention, and 'whole layers' asks the second box for all
experts of a layer or for none.

*Real*: the runtime, its messages and encryption, the link's bandwidth, what the kernels compute. *Played*:
the memory's rate of both boxes and the SSD's (experts lie in memory, and a tier waits after computing until
its bytes would have come), the round trip (a relay).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.fidelity.boxes import (
    HEAD,
    BoxSetup,
    Figures,
    box_device,
    head_experts,
    name_of,
    on_the_heads_core,
    probe_boxes,
    running_boxes,
)
from benchmarks.fidelity.hosts import NET
from benchmarks.fidelity.model import write_model
from benchmarks.fidelity.run import Model
from benchmarks.namespaces import Host, hosts
from benchmarks.studies.pay_map import BASELINES, FAMILIES, family_of
from orchestrator.dispatch.dispatcher import Dispatcher, unwatched
from orchestrator.generate import GenerationParams, generate
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.step35 import Step35Model
from placement.answers.planner import as_plan
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, NodeSpec
from placement.given.probe import ram_device
from placement.given.problem import PlanningProblem, planning_devices
from placement.given.stats import RoutingStats
from placement.kv_size import KvForm
from placement.message_size import MAX_MESSAGE_ROWS
from placement.plan import Plan
from placement.policies.registry import POLICIES
from placement.replay.evaluate import evaluate
from placement.replay.recorded_run import replay_decode
from placement.replay.system import System
from placement.workload import Workload

PROMPT_TOKENS, RUN_TOKENS, STATS_TOKENS = 16, 11, 96
HOME_RAM, ATTIC_RAM = 1, 3
"""Devices of a cell: the head's processor comes first, without room; then home's RAM, its SSD, the attic."""
WORKLOAD = Workload(head_bits_per_weight=32, kv_form=KvForm.float32, context=PROMPT_TOKENS + RUN_TOKENS // 2)
_RAM, _SSD = "ram", "ssd"


@dataclass(frozen=True, slots=True)
class Cell:
    """`home_share` of the experts fits the first box's RAM; rates in GB/s, the round trip in ms."""

    home_share: float
    memory: float
    ssd: float
    round_trip_ms: float

    @property
    def box(self) -> BoxSetup:
        return BoxSetup(
            min(1.0, 1.15 - self.home_share),
            "2500mbit",
            self.round_trip_ms / 2e3,
            self.memory * 1e9,
        )


CELLS = (
    # Experts should win.
    Cell(0.5, 0.8, 0.1, 4.0),
    Cell(0.5, 0.4, 0.05, 10.0),
    Cell(0.7, 0.8, 0.05, 8.0),
    Cell(0.5, 1.6, 0.2, 2.0),
    # Whole layers.
    Cell(0.5, 1.6, 0.1, 120.0),
    Cell(0.4, 1.6, 0.1, 160.0),
    Cell(0.5, 0.8, 0.05, 200.0),
    Cell(0.7, 0.8, 0.05, 200.0),
    # One box.
    Cell(0.9, 1.6, 0.8, 100.0),
    Cell(0.97, 1.6, 0.8, 60.0),
    Cell(0.97, 0.8, 0.6, 100.0),
    Cell(0.9, 1.6, 1.2, 60.0),
)


@dataclass(frozen=True, slots=True)
class CellResult:
    """Seconds of a decode step by family, predicted and measured; of a text that no plan has seen."""

    cell: Cell
    predicted_s: dict[str, float]
    measured_s: dict[str, float]

    @property
    def predicted(self) -> str:
        return min(self.predicted_s, key=lambda family: self.predicted_s[family])

    @property
    def measured(self) -> str:
        return min(self.measured_s, key=lambda family: self.measured_s[family])

    @property
    def margin(self) -> float:
        """How much slower the next family was than the winner."""
        first, second, *_ = sorted(self.measured_s.values())
        return second / first - 1


def problem_of(model: Model, cell: Cell, figures: Figures, stats: RoutingStats) -> PlanningProblem:
    """The cell as the planner sees it: what was probed, but for the rates that are played."""
    shape = model.shape
    expert_bytes = shape.expert_bytes(32)
    everything = shape.num_routed_experts * expert_bytes
    # The head computes on memory that it does not play, and which has no room for experts.
    own = ram_device(figures.head, figures.software, figures.software.attention)
    own = replace(own, name="cpu", memory_bytes=everything, reserved_bytes=everything)

    def played(device: DeviceSpec, name: str, kind: str, gbytes_per_s: float, share: float) -> DeviceSpec:
        return replace(
            device,
            name=name,
            kind="disk" if kind == "disk" else "ram",
            memory_bytes=int(share * shape.num_routed_experts) * expert_bytes,
            reserved_bytes=0,
            bandwidth_bytes_per_s=min(device.bandwidth_bytes_per_s, gbytes_per_s * 1e9),
        )

    bare = ram_device(figures.head, None, None)
    link = figures.links[name_of(0)]
    home = (
        own,
        played(bare, _RAM, "ram", cell.memory, cell.home_share),
        played(bare, _SSD, "disk", cell.ssd, 1.0),
    )
    attic = played(box_device(figures, cell.box), _RAM, "ram", cell.memory, cell.box.share)
    cluster = ClusterSpec(
        HEAD,
        (
            NodeSpec(HEAD, None, home, None),
            NodeSpec(name_of(0), None, (attic,), LinkSpec(link.round_trip_s, link.bytes_per_s)),
        ),
    )
    return PlanningProblem(
        shape, planning_devices(cluster), expert_bytes, stats, WORKLOAD, expert_form="float32"
    )


def best_of_families(problem: PlanningProblem, stats: RoutingStats) -> dict[str, Plan]:
    """Of the study's simple policies' plans, the quickest of each family by the cost model.

    The planner's own plan is left out: it mixes families, and where one wins it is nearly that one.
    """
    trace = stats.trace
    assert trace is not None
    best: dict[str, tuple[float, Plan]] = {}
    for policy in BASELINES:
        table = POLICIES[policy](problem)
        seconds = evaluate(problem, table, trace).mean_s
        family = family_of(table, HOME_RAM, ATTIC_RAM)
        if family not in best or seconds < best[family][0]:
            best[family] = seconds, as_plan(problem, table, policy, "float32")
    return {family: best[family][1] for family in FAMILIES if family in best}


def judge(model: Model, cell: Cell, machine: Host, stats: RoutingStats) -> CellResult:
    """Probe the boxes, plan each family, run it, and predict the passes that ran."""
    figures = probe_boxes((cell.box,), (machine,))
    problem = problem_of(model, cell, figures, stats)
    predicted, measured = {}, {}
    for family, plan in best_of_families(problem, stats).items():
        seconds, passes = run(model, plan, cell, machine)
        system = System.build(plan, problem.devices, model.shape, WORKLOAD)
        predicted[family] = replay_decode(system, passes, len(passes)).duration_s / len(passes)
        measured[family] = seconds
    return CellResult(cell, predicted, measured)


def run(model: Model, plan: Plan, cell: Cell, machine: Host) -> tuple[float, list[NDArray[np.uint16]]]:
    """Seconds of a decode step, and the routing of those that were timed."""
    paces = {f"{HEAD}-{_RAM}": cell.memory * 1e9, f"{HEAD}-{_SSD}": cell.ssd * 1e9}
    local = head_experts(plan, model, paces)
    with running_boxes(plan, model, (cell.box,), (machine,)) as clients:
        dispatcher = Dispatcher(*unwatched(plan, clients), local=local, max_rows=MAX_MESSAGE_ROWS)
        return decode(model, dispatcher, RUN_TOKENS, seed=5)


def decode(
    model: Model, dispatcher: Dispatcher, tokens: int, seed: int
) -> tuple[float, list[NDArray[np.uint16]]]:
    """Mean seconds of a decode step, and every step's routing."""
    config = model.config
    head = Step35Model(config, model.weights, torch.float32, dispatcher, dispatcher.timer)
    head.recorder = RoutingRecorder(config.moe_layers, config.moe_num_experts, config.moe_top_k)
    prompt = [int(i) for i in np.random.default_rng(seed).integers(3, 4000, PROMPT_TOKENS)]
    params = GenerationParams(max_tokens=tokens, temperature=1.0, seed=seed, ignore_eos=True)
    result = generate(head, prompt, params)
    passes = head.recorder.passes()[1:]
    return result.decode_s / len(passes), passes


def statistics(model: Model) -> RoutingStats:
    """Of another text, which this process runs by itself."""
    shape = model.shape
    everything = ClusterSpec(
        HEAD,
        (NodeSpec(HEAD, None, (DeviceSpec("ram", "ram", "cpu", 10**12, 0, 1e9, 1e9),), None),),
    )
    problem = PlanningProblem(
        shape, planning_devices(everything), shape.expert_bytes(32), expert_form="float32"
    )
    plan = as_plan(problem, POLICIES["uniform"](problem), "uniform", "float32")
    local = head_experts(plan, model, {})
    dispatcher = Dispatcher(*unwatched(plan, {}), local=local, max_rows=MAX_MESSAGE_ROWS)
    _, passes = decode(model, dispatcher, STATS_TOKENS, seed=9)
    return RoutingStats.from_trace(shape, np.concatenate(passes), "another text")


def main(
    only: Annotated[list[int] | None, typer.Option(help="Cells by number, from 1.")] = None,
    model: Annotated[Path | None, typer.Option(help="Folder to keep the model in.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the cells here.")] = None,
) -> None:
    """Run the cells and print who won and who should have."""
    console, results = Console(), list[CellResult]()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(on_the_heads_core())
        loaded = Model.load(write_model(model or scratch))
        stats = statistics(loaded)
        (machine,) = stack.enter_context(hosts(1, NET))
        for number, cell in enumerate(CELLS, 1):
            if only and number not in only:
                continue
            results.append(judge(loaded, cell, machine, stats))
            console.print(
                f"cell {number}: predicted {results[-1].predicted}, measured {results[-1].measured}"
            )
            if json_file is not None:
                json_file.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    console.print(table(results))
    right = sum(result.predicted == result.measured for result in results)
    errors = [
        abs(result.predicted_s[family] / seconds - 1)
        for result in results
        for family, seconds in result.measured_s.items()
    ]
    console.print(
        f"the winner was the predicted one in {right} of {len(results)} cells; "
        f"times: median error {median(errors):.1%}, worst {max(errors):.1%}"
    )


def table(results: Sequence[CellResult]) -> Table:
    found = Table(
        "at home", "memory GB/s", "SSD GB/s", "round trip ms", *FAMILIES, "predicted", "measured", "by"
    )
    for result in results:
        cell = result.cell
        times = [_both(result.predicted_s, result.measured_s, family) for family in FAMILIES]
        found.add_row(
            f"{cell.home_share:.0%}",
            f"{cell.memory:g}",
            f"{cell.ssd:g}",
            f"{cell.round_trip_ms:g}",
            *times,
            result.predicted,
            result.measured,
            f"{result.margin:.0%}",
        )
    return found


def _both(predicted: Mapping[str, float], measured: Mapping[str, float], family: str) -> str:
    if family not in measured:
        return "no such plan"
    return f"{predicted[family] * 1e3:.0f} / {measured[family] * 1e3:.0f}"


if __name__ == "__main__":
    typer.run(main)
