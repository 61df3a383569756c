"""A decode step as llama.cpp and its like run it: whole layers, one device after another.

Nothing overlaps: while a layer's experts are computed in RAM its GPU waits, and boxes work in turn. So times
add up, where our own runtime takes the longest of them. What a part takes on a device is the cost model's
(docs/cost-model.md); where parts lie is what a published command line says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from benchmarks.published.measurements import Measurement
from benchmarks.published.models import file_form, published_model
from placement.cost.head import decoder_layer_s, mtp_head_s, shared_expert_s, weights_s
from placement.cost.rates import expert_rates
from placement.cost.roofline import work_alone_seconds
from placement.errors import InputError
from placement.files.quote import quote
from placement.given.cluster_file import cluster_of
from placement.given.problem import PlanningDevice, PlanningProblem, planning_devices
from placement.hardware.catalogue import Catalogue
from placement.hardware.expand import expanded_device, expanded_link, numbered
from placement.kv_size import KvForm
from placement.model_shape import AttentionShape, ModelShape
from placement.workload import Workload

_ROOM_BYTES = 10**13
"""Of every device: a measurement that was published did fit."""
_QUERY_HEADS_A_READ = 8
"""Of one key and value head, in llama.cpp's kernels for one new token (fattn.cu: ncols2 is 8 at most)."""
_KNOW_SOCKETS = ("ktransformers",)
"""Other engines let pages lie on any socket; on two, half of what a core reads comes from the other one."""
_BANDWIDTH = "bandwidth_gbytes_per_s"


@dataclass(frozen=True, slots=True)
class Places:
    """Which device computes what, by index.

    Attributes:
        trunk: of each layer, all but its routed experts; the last of them has lm_head too.
        experts: of each MoE layer.
    """

    trunk: tuple[int, ...]
    experts: tuple[int, ...]


def predicted_tokens_per_s(measurement: Measurement, catalogue: Catalogue) -> float:
    """What the catalogue's shares say of a published measurement.

    Raises:
        InputError: a model, form or device that is not known, or a split that its devices do not allow.
    """
    problem, tokens = problem_of(measurement, catalogue)
    return tokens / step_s(problem, places_of(measurement, problem))


def problem_of(measurement: Measurement, catalogue: Catalogue) -> tuple[PlanningProblem, float]:
    """The model on the measurement's devices, and the tokens that one of its steps gives."""
    acceptance = (measurement.acceptance or [])[: measurement.drafts]
    workload = Workload(
        drafts=measurement.drafts, accepted_drafts=sum(acceptance), context=measurement.context
    )
    devices = devices_of(
        measurement.of_boxes, measurement.link, measurement.engine, catalogue, f"measurement {measurement.id}"
    )
    file = (measurement.model, measurement.quant, measurement.weight_bytes)
    return problem_on(devices, *file, workload), workload.tokens_out_per_step


def devices_of(
    boxes: Sequence[Sequence[str]], link: str | None, engine: str, catalogue: Catalogue, where: str
) -> tuple[PlanningDevice, ...]:
    """The catalogue's devices as an engine finds them, with room for whatever was published.

    Args:
        boxes: names of each box's devices; the head computes on the first of all.
        link: between the first box and each other one, None for a single box.
        where: what the names are from, for errors.

    Raises:
        ValueError: a name that the catalogue has not.
    """
    nodes, links = [], []
    for number, names in enumerate(boxes):
        devices = []
        for position, (name, unique) in enumerate(zip(names, numbered(names), strict=True)):
            entry = catalogue.entry(name)
            typed = {} if entry.memory_bytes else {"memory_bytes": _ROOM_BYTES}
            fields = expanded_device(catalogue, entry, typed, is_head=number == position == 0)
            if engine not in _KNOW_SOCKETS:
                fields |= {
                    key: value / entry.sockets for key, value in fields.items() if key.endswith(_BANDWIDTH)
                }
            devices.append({**fields, "name": unique})
        nodes.append({"name": f"box-{number}", "devices": devices})
        if number:
            figures = expanded_link(catalogue, catalogue.entry(link), {})
            links.append({"node": f"box-{number}", **figures})
    return planning_devices(cluster_of({"head": "box-0", "nodes": nodes, "links": links}, where))


def problem_on(
    devices: Sequence[PlanningDevice], model: str, quant: str, weight_bytes: float | None, workload: Workload
) -> PlanningProblem:
    """A published file of a model on devices.

    Keys and values count in 16 bits whatever they are kept in: engines' kernels unpack fewer bits to that, so
    these save room, not time.

    Raises:
        InputError: a model or form that is not known.
    """
    shape = published_model(model)
    form = file_form(quant).scaled_to(shape, weight_bytes)
    whole = replace(workload, head_forms=form.head_forms(), kv_form=KvForm.bfloat16)
    return PlanningProblem(shape, tuple(devices), shape.expert_bytes(form.experts), workload=whole)


def places_of(measurement: Measurement, problem: PlanningProblem) -> Places:
    """Where its engine puts the layers, and the experts of each.

    GPUs take whole layers in turn, as many as their memory's part of all of it. `all` and `cpu` use the first
    device that fits the name.

    Raises:
        InputError: a split whose kind of device it does not have.
    """
    shape, kinds = problem.shape, [device.tier.kind for device in problem.devices]
    fast = [index for index, kind in enumerate(kinds) if kind == "vram"]
    slow = [index for index, kind in enumerate(kinds) if kind == "ram"]
    in_ram = measurement.split.startswith("experts-in-ram")
    if ((measurement.split == "cpu" or in_ram) and not slow) or (in_ram and not fast):
        raise InputError(
            f"measurement {quote(measurement.id)}: split {measurement.split} needs a device of kind ram"
            f"{' and one of kind vram' if in_ram else ''}, found {', '.join(kinds)}"
        )
    if measurement.split == "cpu":
        chosen = slow[:1]
    elif measurement.split == "all":
        chosen = [0]
    else:
        chosen = fast or slow
    sizes = [problem.devices[index].tier.budget_bytes for index in chosen]
    trunk = _in_turn(chosen, sizes, shape.num_hidden_layers)
    experts = [trunk[layer] for layer in shape.moe_layers]
    if in_ram:
        number = measurement.layers_in_ram
        count = len(experts) if number is None else min(number, len(experts))
        experts[:count] = slow[:1] * count
    return Places(trunk, tuple(experts))


def step_s(problem: PlanningProblem, places: Places) -> float:
    """Seconds of one decode step, one part after another."""
    shape, workload, devices = problem.shape, problem.workload, problem.devices
    rows = workload.tokens_per_step
    moe = dict(zip(shape.moe_layers, places.experts, strict=True))
    # Equal layers are computed once.
    alike: Counter[tuple[int, int | None, AttentionShape]] = Counter()
    example: dict[tuple[int, int | None, AttentionShape], int] = {}
    for layer, home in enumerate(places.trunk):
        kind = (home, moe.get(layer), shape.attention[layer])
        alike[kind] += 1
        example[kind] = layer
    experts_s = _experts_s(problem)
    total_s = 0.0
    for kind, count in alike.items():
        home, expert_home, _ = kind
        layer_s = _layer_s(problem, example[kind], devices[home])
        if expert_home is not None:
            layer_s += shared_expert_s(devices[home], shape, workload) + experts_s[expert_home]
            if expert_home != home:
                # Rows go down to the CPU and sums come back.
                layer_s += devices[expert_home].round_trip_s
        total_s += count * layer_s
    last = devices[places.trunk[-1]]
    total_s += weights_s("output", shape.lm_head_parameters, rows, workload, last)
    for draft in range(min(workload.drafts, shape.num_mtp_layers)):
        total_s += mtp_head_s(shape, draft, workload, last)
    # Each device that takes over begins a graph of its own.
    stretches = 1 + sum(before != after for before, after in pairwise(places.trunk))
    return total_s + stretches * devices[0].overheads.pass_s + _between_boxes_s(problem, places)


def _layer_s(problem: PlanningProblem, layer: int, device: PlanningDevice) -> float:
    """A decoder layer without experts: keys and values are read again for each eight heads of a query."""
    shape, workload = problem.shape, problem.workload
    attention = shape.attention[layer]
    whole_s = decoder_layer_s(shape, layer, workload, device)
    reads = attention.num_heads / attention.num_kv_heads / _QUERY_HEADS_A_READ
    if reads <= 1:
        return whole_s
    return whole_s + (reads - 1) * (
        whole_s - decoder_layer_s(shape, layer, replace(workload, context=0), device)
    )


def distinct_experts(shape: ModelShape, rows: int) -> float:
    """Of a layer, that so many rows need if each chooses by itself and all experts are chosen alike."""
    return shape.num_experts * (1 - (1 - shape.top_k / shape.num_experts) ** rows)


def _experts_s(problem: PlanningProblem) -> list[float]:
    """Of one MoE layer, by the device that has all of them."""
    rates, shape, rows = expert_rates(problem), problem.shape, problem.workload.tokens_per_step
    each = np.ones(len(problem.devices))
    seconds = work_alone_seconds(rates, distinct_experts(shape, rows) * each, rows * shape.top_k * each)
    return [float(of_device) for of_device in seconds]


def _between_boxes_s(problem: PlanningProblem, places: Places) -> float:
    """A row's hidden state to each box in turn, and its logits' row back to the head."""
    devices = problem.devices
    nodes = [devices[index].tier.node for index in places.trunk]
    home = devices[0].tier.node
    total_s = 0.0
    for index, (before, after) in enumerate(pairwise(nodes)):
        if before != after:
            other = devices[places.trunk[index + 1 if after != home else index]]
            total_s += _hop_s(problem, other)
    return total_s + (_hop_s(problem, devices[places.trunk[-1]]) if nodes[-1] != home else 0.0)


def _hop_s(problem: PlanningProblem, device: PlanningDevice) -> float:
    """Half a round trip, and a float32 row."""
    return device.round_trip_s / 2 + 4 * problem.shape.hidden_size / device.link_bytes_per_s


def _in_turn(chosen: Sequence[int], sizes: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """The device of each layer: `chosen` one after another, in proportion to their sizes."""
    places: list[int] = []
    for number, index in enumerate(chosen):
        end = round(num_layers * sum(sizes[: number + 1]) / sum(sizes))
        places += [index] * (end - len(places))
    return tuple(places)
