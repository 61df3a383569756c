"""Whole layers on each box, attention and all, one box after another: what llama.cpp's RPC does."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np

from placement.cost.head import head_layer_seconds, head_seconds
from placement.cost.rates import expert_rates
from placement.cost.roofline import roofline_seconds
from placement.errors import PlanDoesNotFit
from placement.given.problem import PlanningProblem
from placement.kv_size import SequenceSize
from placement.message_size import message_size
from placement.plan import LOCAL_WORKER
from placement.policies.baselines.fixed import proportional
from placement.replay.demand import count_demand
from placement.replay.evaluate import Evaluation
from placement.routing.text import Text


def pipeline(problem: PlanningProblem, text: Text) -> Evaluation:
    """Contiguous ranges of whole layers, in proportion to memory, computed one after another.

    A layer's attention, KV cache, router and shared expert are where its experts are. Embedding, lm_head
    and MTP layers stay at the head. Devices follow each other box by box in the cluster's order, the head's
    box last, so that lm_head follows the last layer, as in llama.cpp, which lists RPC devices first. Hidden
    states take one way from box to box: half the longer round trip, at the slower link's rate. Disks get
    what fits nowhere else, and of a layer on a disk the head computes everything but the experts.

    Raises:
        PlanDoesNotFit: the devices have room for fewer layers.
    """
    device_of = _device_of_layer(problem)
    shape, workload = problem.shape, problem.workload
    tokens = workload.tokens_per_step
    num_steps = len(text.trace) // tokens
    steps = text.trace[: num_steps * tokens].reshape(num_steps, tokens, shape.num_moe_layers, shape.top_k)
    is_home = [device.is_home for device in problem.devices]
    num_devices = len(problem.devices)
    as_heads = {device: _as_head(problem, device) for device in sorted(set(device_of))}
    rates = {device: expert_rates(as_head) for device, as_head in as_heads.items()}
    bound = np.zeros(num_devices)
    seconds = np.full(num_steps, _hop_seconds(problem, device_of))
    for row, layer in enumerate(shape.moe_layers):
        device = device_of[layer]
        expert_ids = steps[:, :, row]
        # All of the layer on one device: count it as device 0 of 1.
        demand = count_demand(np.zeros(expert_ids.shape, np.int16), expert_ids, 1, shape.num_experts)
        own = rates[device]
        experts_s = roofline_seconds(own, demand.distinct[:, 0], demand.pairs[:, 0], device)
        layer_s = own.busy_s.max() + experts_s
        seconds += layer_s
        bound[device] += 1
    layers_s = {device: head_layer_seconds(as_head) for device, as_head in as_heads.items()}
    outside_s = head_seconds(problem).total_s - float(head_layer_seconds(problem).sum())
    remote = sum(not is_home[device_of[layer]] for layer in shape.moe_layers)
    return Evaluation(
        moe_seconds=seconds,
        remote_layers=np.full(num_steps, remote),
        bound_share=bound / bound.sum(),
        head_s=outside_s + sum(float(layers_s[d][layer]) for layer, d in enumerate(device_of)),
    )


def _device_of_layer(problem: PlanningProblem) -> list[int]:
    """The device of every decoder layer; a dense one goes where the next MoE layer is."""
    shape, devices = problem.shape, problem.devices
    order = sorted(range(len(devices)), key=lambda i: (devices[i].is_home, devices[i].tier.node))
    order.sort(key=lambda i: devices[i].tier.name == LOCAL_WORKER)
    rooms = np.array([_room(problem, device, device == order[0]) for device in order])
    is_disk = np.array([devices[i].tier.kind == "disk" for i in order])
    memory = np.where(is_disk, 0, rooms)
    num_layers = shape.num_moe_layers
    if rooms.sum() < num_layers:
        raise PlanDoesNotFit(
            f"pipeline: the devices have room for {rooms.sum()} whole MoE layers of {num_layers}; give more "
            "memory, or quantise the experts further"
        )
    if memory.sum() >= num_layers:
        counts = proportional(memory, num_layers)
    else:
        counts = memory + proportional(rooms - memory, num_layers - int(memory.sum()))
    of_moe_layer = np.repeat(order, counts)
    row = np.searchsorted(shape.moe_layers, np.arange(shape.num_hidden_layers))
    return list(of_moe_layer[np.minimum(row, num_layers - 1)].tolist())


def _room(problem: PlanningProblem, index: int, is_first: bool) -> int:
    """MoE layers that fit a device.

    What stands beside experts is charged too, dense layers to the first device; on the head's own it is
    reserved already.
    """
    shape, workload, device = problem.shape, problem.workload, problem.devices[index]
    experts_bytes = shape.num_experts * problem.expert_bytes
    budget_bytes = device.tier.budget_bytes
    if device.tier.name == LOCAL_WORKER:
        return min(budget_bytes // experts_bytes, shape.num_moe_layers)
    weight_bytes = workload.head_bits_per_weight / 8
    attention_bytes = [
        a.parameters(shape.hidden_size) * weight_bytes
        + workload.num_sequences * SequenceSize([a], workload.kv_form).num_bytes(workload.context)
        for a in shape.attention[: shape.num_hidden_layers]
    ]
    beside_bytes = max(attention_bytes) + weight_bytes * (
        shape.router_parameters + shape.shared_expert_parameters
    )
    if is_first:
        dense_bytes = max(attention_bytes) + weight_bytes * shape.dense_ffn_parameters
        budget_bytes -= math.ceil(shape.num_dense_layers * dense_bytes)
    layers = max(budget_bytes, 0) // math.ceil(experts_bytes + beside_bytes)
    return min(layers, shape.num_moe_layers)


def _as_head(problem: PlanningProblem, index: int) -> PlanningProblem:
    """The problem as it would be with this device as the head's own; a disk leaves it as it is."""
    if problem.devices[index].tier.kind == "disk":
        return problem
    devices = [
        replace(device, tier=replace(device.tier, name=LOCAL_WORKER if i == index else f"device {i}"))
        for i, device in enumerate(problem.devices)
    ]
    return replace(problem, devices=tuple(devices))


def _hop_seconds(problem: PlanningProblem, device_of: list[int]) -> float:
    """Hidden states from the head through all boxes and back to it."""
    stops = [problem.head, *device_of, problem.head]
    message = message_size(problem.shape, problem.wires)
    num_bytes = problem.workload.tokens_per_step * message.hidden_bytes_per_row
    seconds = 0.0
    for here, there in itertools.pairwise(stops):
        ends = [problem.devices[d] for d in (here, there) if d is not None]
        if len({device.tier.node for device in ends}) == 1 and len(ends) == 2:
            continue
        round_trip_s = max(device.round_trip_s for device in ends)
        seconds += round_trip_s / 2 + num_bytes / min(device.link_bytes_per_s for device in ends)
    return seconds
