"""From probe numbers to a cluster file's numbers, and from those to a prediction of recorded passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from benchmarks.fidelity.chunks import ChunkRates
from benchmarks.fidelity.figures import FanOut, HeadProbe, LinkProbe, Probes, ProcessProbe
from benchmarks.fidelity.layouts import Setup, node_of
from benchmarks.fidelity.rows import fan_out_ids
from placement.cost.head import head_device, head_layer_seconds, head_seconds, shared_expert_s
from placement.cost.prefill import prefill_head_seconds, prefill_rates
from placement.cost.sharing import layer_seconds
from placement.given.cluster_spec import ClusterSpec, DeviceSpec, LinkSpec, MachineSpec, NodeSpec, Overheads
from placement.given.problem import PlanningProblem, planning_devices
from placement.kv_size import KvForm
from placement.message_size import message_size
from placement.model_shape import ModelShape
from placement.plan import Plan
from placement.replay.recorded_run import replay_decode, replay_prefill
from placement.replay.system import System
from placement.replay.tally import SimulationReport
from placement.wire_form import FLOAT32_ROWS
from placement.workload import Workload

_ROOM_BYTES = 10**12
_LEAST_ROW_S = 1e-9
_BYTES = 4  # float32 everywhere
_PLAIN = Workload(head_bits_per_weight=8 * _BYTES, kv_form=KvForm.float32)


def cluster_of(setup: Setup, rounds: Sequence[Probes], shape: ModelShape, plan: Plan) -> ClusterSpec:
    """What a cluster file would say: medians over the rounds."""
    cluster = _cluster(setup, rounds, shape, plan)
    head = cluster.head_node.devices[0]
    overheads = _head_overheads(cluster, _median_head(rounds), shape, plan.mean_expert_bytes, head.overheads)
    devices = (replace(head, overheads=overheads), *cluster.head_node.devices[1:])
    own = replace(cluster.head_node, devices=devices)
    cluster = replace(cluster, nodes=(own, *cluster.nodes[1:]))
    fan_outs = [r.together.fan_outs for r in rounds if r.together is not None and r.together.fan_outs]
    link = own.link
    if link is None or not fan_outs:
        return cluster
    # What a layer takes beyond the rest of the cost model while all are asked: of one row, and of a chunk.
    few, many = ([fan_outs_of_round[i] for fan_outs_of_round in fan_outs] for i in range(2))
    (few_s, few_rows), (many_s, many_rows) = (_extra_s(cluster, shape, plan, same) for same in (few, many))
    dispatch_s = median(r.head.dispatch_row_s for r in rounds) * (many[0].rows - 1)
    extra_row_s = (many_s - dispatch_s - few_s) / (many_rows - few_rows)
    row_bytes = _row_bytes(shape)
    row_s = max(_LEAST_ROW_S, row_bytes / link.bandwidth_bytes_per_s + extra_row_s)
    round_trip_s = max(0.0, link.round_trip_s + few_s - few_rows * extra_row_s)
    own = replace(own, link=LinkSpec(round_trip_s, row_bytes / row_s))
    return replace(cluster, nodes=(own, *cluster.nodes[1:]))


def _extra_s(
    cluster: ClusterSpec, shape: ModelShape, plan: Plan, rounds: Sequence[FanOut]
) -> tuple[float, float]:
    """Seconds beyond what the cost model says of the same layers, and the most rows a worker gets of one."""
    problem = System.build(plan, cluster, shape, _PLAIN).problem
    rates = prefill_rates(problem, rounds[0].rows)
    names = {worker.name for worker in plan.tiers}
    holds = [plan.experts_of(d.tier.name) if d.tier.name in names else {} for d in problem.devices]
    modelled_s, most_rows = [], []
    for turn in range(rounds[0].turns):
        layer, ids = fan_out_ids(shape, plan, turn, rounds[0].rows)
        on_device = [np.isin(ids, held.get(layer, ())) for held in holds]
        rows = np.array([here.any(axis=1).sum() for here in on_device])
        distinct = np.array([len(np.unique(ids[here])) for here in on_device])
        pairs = np.array([here.sum() for here in on_device])
        modelled_s.append(float(layer_seconds(rates, rows, distinct, pairs).max()))
        most_rows.append(float((rows * (rates.row_wire_s > 0)).max()))
    dispatch_s = head_device(problem).overheads.moe_layer_s
    return median(f.seconds for f in rounds) - fmean(modelled_s) - dispatch_s, fmean(most_rows)


def _cluster(setup: Setup, rounds: Sequence[Probes], shape: ModelShape, plan: Plan) -> ClusterSpec:
    size, row_bytes = plan.mean_expert_bytes, _row_bytes(shape)
    head = _median_head(rounds)
    probe = _median_process([r.head_process for r in rounds])
    attention = replace(shape.attention[0], window=0)
    flops = prefill_flops(attention.num_heads * attention.head_dim, head.context, head.chunk_rows)
    head_device = replace(_device("head", probe, size, shape), attention_flops_per_s=flops / head.attention_s)
    home, boxes = [head_device], []
    local_links: list[LinkProbe] = []
    for index, kind in enumerate(setup.links):
        node = node_of(index, kind)
        name = f"{node}-w{index}"
        device = _device(f"w{index}", _median_process([r.workers[name] for r in rounds]), size, shape)
        link = _median_link([r.links[name] for r in rounds])
        if kind == "local":
            home.append(device)
            local_links.append(link)
        else:
            boxes.append(NodeSpec(node, None, (device,), _link_spec(link, row_bytes)))
    own_link = None
    if local_links:
        link = _median_link(local_links)
        own_link = _link_spec(link, row_bytes)
    together = [r.together for r in rounds if r.together is not None]
    nodes = (NodeSpec("this-machine", None, tuple(home), own_link), *boxes)
    machines: tuple[MachineSpec, ...] = ()
    if together:
        machines = (
            MachineSpec(
                "this-machine",
                tuple(node.name for node in nodes),
                cores=together[0].cores,
                bandwidth_bytes_per_s=median(t.experts_per_s for t in together) * size,
            ),
        )
    return ClusterSpec("this-machine", nodes, machines)


def _device(name: str, probe: ProcessProbe, size: int, shape: ModelShape) -> DeviceSpec:
    return DeviceSpec(
        name,
        "ram",
        "cpu",
        _ROOM_BYTES,
        0,
        bandwidth_bytes_per_s=size / probe.read_s,
        ffn_flops_per_s=2 * shape.expert_parameters / probe.chunk.pair_s,
        overheads=Overheads(
            request_s=probe.request_s,
            expert_s=probe.chunk.expert_s,
        ),
    )


def _head_overheads(
    cluster: ClusterSpec, head: HeadProbe, shape: ModelShape, expert_bytes: int, own: Overheads
) -> Overheads:
    """What the head takes beyond the cost model's bytes and FLOPs of the same passes."""
    workload = replace(_PLAIN, context=head.context)
    problem = PlanningProblem(shape, planning_devices(cluster), expert_bytes, workload=workload)
    device = problem.devices[0]
    shared_s = shape.num_moe_layers * shared_expert_s(device, shape, workload)
    token_s = float(head_layer_seconds(problem).sum()) + shared_s
    layer_s = (head.token_s - token_s) / shape.num_hidden_layers

    empty = replace(problem, workload=replace(workload, context=0))
    chunk_s = prefill_head_seconds(empty, head.chunk_rows, is_last=False)
    chunk_s += shape.num_moe_layers * shared_expert_s(device, shape, workload, rows=head.chunk_rows)
    verifying = replace(workload, drafts=head.verify_rows - 1)
    verify_s = float(head_layer_seconds(replace(problem, workload=verifying)).sum())
    verify_s += shape.num_moe_layers * shared_expert_s(device, shape, verifying)
    batch_layer_s = (head.verify_s - verify_s) / shape.num_hidden_layers
    chunk_extra_s = head.chunk_s - chunk_s - shape.num_hidden_layers * max(0.0, batch_layer_s)

    drafting = replace(problem, workload=replace(workload, drafts=shape.num_mtp_layers))
    draft_s = (head.drafts_s - head_seconds(drafting).mtp_s) / shape.num_mtp_layers
    return replace(
        own,
        message_s=head.message_s,
        message_row_s=head.message_row_s,
        layer_s=max(0.0, layer_s),
        moe_layer_s=head.dispatch_s,
        batch_s=max(0.0, batch_layer_s) - max(0.0, layer_s),
        row_s=max(0.0, chunk_extra_s / (head.chunk_rows * shape.num_hidden_layers))
        + head.dispatch_row_s * shape.num_moe_layers / shape.num_hidden_layers,
        pass_s=max(0.0, head.logits_s - head_seconds(problem).lm_head_s),
        draft_s=max(0.0, draft_s),
    )


@dataclass(frozen=True, slots=True)
class Prediction:
    """Reports of the same passes as the run's.

    `..._head_s`: the head's own part, shared experts left out: of a step, and of the prompt.
    """

    decode: SimulationReport
    prefill: SimulationReport
    decode_head_s: float
    prefill_head_s: float


def predict(
    cluster: ClusterSpec,
    plan: Plan,
    shape: ModelShape,
    *,
    drafts: int,
    num_prompt: int,
    prefill: Sequence[NDArray[np.integer]],
    decode: Sequence[NDArray[np.integer]],
    num_tokens: int,
) -> Prediction:
    """Replay recorded passes; the KV cache's length is the mean of the decode.

    Args:
        num_tokens: that the decode steps added.
    """
    workload = replace(
        _PLAIN,
        drafts=drafts,
        accepted_drafts=num_tokens / len(decode) - 1,
        context=num_prompt + num_tokens // 2,
    )
    system = System.build(plan, cluster, shape, workload)
    prefill_head_s, context = 0.0, 0
    for number, chunk in enumerate(prefill, 1):
        problem = replace(system.problem, workload=replace(workload, context=context))
        prefill_head_s += prefill_head_seconds(problem, len(chunk), is_last=number == len(prefill))
        context += len(chunk)
    return Prediction(
        replay_decode(system, decode, num_tokens),
        replay_prefill(system, prefill),
        system.head_s,
        prefill_head_s,
    )


def prefill_flops(width: int, context: int, rows: int) -> float:
    """Of causal attention of `rows` queries behind `context` others, `width` = heads x head_dim."""
    return 4.0 * width * (rows * context + rows * (rows + 1) / 2)


def _row_bytes(shape: ModelShape) -> float:
    message = message_size(shape, (FLOAT32_ROWS,))
    return message.request_bytes_per_row + message.reply_bytes_per_row


def _link_spec(link: LinkProbe, row_bytes: float) -> LinkSpec:
    # A bucket lets the first bytes of a message through at once: less than nothing is left of the round trip.
    return LinkSpec(max(0.0, link.round_trip_s), row_bytes / link.row_s)


def _median_head(rounds: Sequence[Probes]) -> HeadProbe:
    heads = [r.head for r in rounds]
    times = [f.name for f in fields(HeadProbe) if f.name.endswith("_s")]
    return replace(heads[0], **{name: median(getattr(h, name) for h in heads) for name in times})


def _median_process(probes: Sequence[ProcessProbe]) -> ProcessProbe:
    chunk = ChunkRates(median(p.chunk.expert_s for p in probes), median(p.chunk.pair_s for p in probes))
    return ProcessProbe(median(p.read_s for p in probes), chunk, median(p.request_s for p in probes))


def _median_link(probes: Sequence[LinkProbe]) -> LinkProbe:
    return LinkProbe(*(median(getattr(p, f.name) for p in probes) for f in fields(LinkProbe)))
