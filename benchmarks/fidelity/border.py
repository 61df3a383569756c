"""The pay map's border, run: `python -m benchmarks.fidelity.border [--only NUMBER] [--json FILE]`.

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

from benchmarks.fidelity.boxes import (
    HEAD,
    BoxSetup,
    Figures,
    box_device,
    head_experts,
    name_of,
    on_the_heads_core,
    probe_boxes,
    probe_links,
    running_boxes,
)
from benchmarks.fidelity.hosts import NET
from benchmarks.fidelity.kept_rows import KeptRows, at_most, ended_tidily
from benchmarks.fidelity.model import write_model
from benchmarks.fidelity.run import Model
from benchmarks.namespaces import Host, hosts
from benchmarks.studies.pay_map import BASELINES, FAMILIES, family_of
from orchestrator.dispatch.dispatcher import Dispatcher, unwatched
from orchestrator.generate import GenerationParams, generate
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling_params import SamplingParams
from placement.answers.planner import as_plan
from placement.errors import PotluckError
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, NodeSpec
from placement.given.probe import link_spec, ram_device
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

PROMPT_TOKENS, RUN_TOKENS, STATS_TOKENS = 4, 9, 96
CELL_S = 600.0
"""What takes longer is given up: on a machine where nothing else runs a cell takes about a minute."""
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
    # Experts win, less and less clearly.
    Cell(0.5, 1.6, 0.2, 2.0),
    Cell(0.7, 1.6, 0.2, 8.0),
    Cell(0.7, 1.6, 0.2, 20.0),
    Cell(0.5, 1.6, 0.2, 20.0),
    Cell(0.5, 1.6, 0.2, 40.0),
    # One box wins, by little where whole layers come near.
    Cell(0.7, 1.6, 0.2, 60.0),
    Cell(0.5, 1.6, 0.2, 80.0),
    Cell(0.4, 1.6, 0.2, 120.0),
    # One box, clearly.
    Cell(0.5, 1.6, 0.2, 160.0),
    Cell(0.7, 1.6, 0.2, 120.0),
    Cell(0.9, 1.6, 0.2, 60.0),
    Cell(0.9, 1.6, 0.8, 60.0),
)
"""On the model of `benchmarks/fidelity/model.py`; along 0.5 and 0.7 at home only the round trip grows."""


@dataclass(frozen=True, slots=True)
class CellResult:
    """Seconds of a decode step by family, predicted and measured, of a text that no plan has seen."""

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
    def predicted_margin(self) -> float:
        """How much slower the next family should be than the winner."""
        return _margin(self.predicted_s)

    @property
    def margin(self) -> float:
        """How much slower the next family was than the winner."""
        return _margin(self.measured_s)

    @property
    def errors(self) -> dict[str, float]:
        return {family: self.predicted_s[family] / seconds - 1 for family, seconds in self.measured_s.items()}


def _margin(seconds: Mapping[str, float]) -> float:
    first, second, *_ = sorted(seconds.values())
    return second / first - 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ties`: cells whose predicted difference is smaller than the median error of all times.

    They are no proof either way, so they count as neither right nor wrong.
    """

    right: int
    wrong: int
    ties: int
    median_error: float
    worst_error: float


def verdict(results: Sequence[CellResult]) -> Verdict:
    errors = [abs(error) for result in results for error in result.errors.values()]
    least = median(errors)
    told = [result for result in results if result.predicted_margin >= least]
    right = sum(result.predicted == result.measured for result in told)
    return Verdict(right, len(told) - right, len(results) - len(told), least, max(errors))


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
            NodeSpec(name_of(0), None, (attic,), link_spec(link, figures.software, figures.head)),
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


def judge(model: Model, cell: Cell, machine: Host, figures: Figures, stats: RoutingStats) -> CellResult:
    """Probe the link, plan each family, run it, and predict the passes that ran."""
    figures = replace(figures, links=probe_links((cell.box,), (machine,)))
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
    params = GenerationParams(max_tokens=tokens, sampling=SamplingParams(seed=seed), ignore_eos=True)
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
    only: Annotated[
        list[int] | None, typer.Option(help="Cells by number, from 1; all when left out.")
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Folder to keep the model in.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Keep cells here; those it has are in the summary too.")
    ] = None,
) -> None:
    """Run the cells, print each as it is measured, and how often the winner was the predicted one."""
    kept, failed = KeptRows(json_file), 0
    with ExitStack() as stack:
        stack.enter_context(ended_tidily())
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(on_the_heads_core())
        loaded = Model.load(write_model(model or scratch))
        stats = statistics(loaded)
        (machine,) = stack.enter_context(hosts(1, NET))
        # The rates that decide are played, so one probe of the boxes serves all cells.
        figures = probe_boxes(machine, loaded.directory)
        print(HEADING, flush=True)
        for number, cell in enumerate(CELLS, 1):
            if only and number not in only:
                continue
            try:
                with at_most(CELL_S):
                    result = judge(loaded, cell, machine, figures, stats)
            except (PotluckError, RuntimeError, OSError) as error:
                print(f"cell {number}: no figures: {error}", flush=True)
                failed += 1
                continue
            print(line(number, result), flush=True)
            kept.keep(str(number), asdict(result))
    results = [CellResult(**{**row, "cell": Cell(**row["cell"])}) for row in kept.rows.values()]
    if results:
        found = verdict(results)
        print(
            f"the winner was the predicted one in {found.right} cells and another in {found.wrong}; "
            f"{found.ties} are ties: predicted to differ by less than the median error of all times, "
            f"{found.median_error:.1%} (worst {found.worst_error:.1%})"
        )
    raise typer.Exit(1 if failed else 0)


HEADING = (
    f"{'cell':4} {'at home':>7} {'memory':>6} {'SSD GB/s':>8} {'trip ms':>7}  "
    + "".join(f"{family + ', ms':>20}" for family in FAMILIES)
    + f"  {'predicted':>12} {'by':>5}  {'measured':>12} {'by':>5}"
)


def line(number: int, result: CellResult) -> str:
    """A cell: by family the milliseconds predicted / measured, and who won by how much."""
    cell = result.cell
    times = "".join(f"{_both(result, family):>20}" for family in FAMILIES)
    return (
        f"{number:4} {cell.home_share:7.0%} {cell.memory:6g} {cell.ssd:8g} {cell.round_trip_ms:7g}  {times}"
        f"  {result.predicted:>12} {result.predicted_margin:5.0%}  {result.measured:>12} {result.margin:5.0%}"
    )


def _both(result: CellResult, family: str) -> str:
    if family not in result.measured_s:
        return "no such plan"
    return f"{result.predicted_s[family] * 1e3:.0f} / {result.measured_s[family] * 1e3:.0f}"


if __name__ == "__main__":
    typer.run(main)
