"""probe.json: where it lies, reading and writing it, and what it says in place of figures nobody typed."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from placement.errors import ClusterFileError
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.files.atomic import replacing
from placement.files.json_file import read_json
from placement.given.cluster_spec import (
    ClusterSpec,
    DeviceSpec,
    LinkSpec,
    Overheads,
    capped,
)
from placement.given.kernel_rates import KernelRates
from placement.given.probe_figures import Disk, FormRate, Gpu, HeadSoftware, Link, Node, Probe
from placement.vram import usable_vram_bytes
from placement.weight_format import FORMATS

STATE_FOLDER = ".potluck"
FILE_NAME = "probe.json"
HERE = "this-machine"
"""What a box is called that is measured without a cluster file."""
_MOST_BYTES = 8_000_000
_EXPECTED = "what `potluck probe` writes"


def probe_path(cluster: str | os.PathLike[str]) -> Path:
    """Where the figures of a cluster file lie: `.potluck/NAME/probe.json` beside it.

    NAME is its `cluster_name`, without one the file's own name.

    Raises:
        ClusterFileError: the file cannot be read.
    """
    path = Path(cluster)
    name = read_mapping(path, ClusterFileError, "head, nodes and links").get("cluster_name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        name = path.stem
    return path.resolve().parent / STATE_FOLDER / name / FILE_NAME


def probe_path_here() -> Path:
    """Where the figures of this machine alone lie: in the folder that the command is called in."""
    return Path(STATE_FOLDER) / HERE / FILE_NAME


def read_probe(path: Path) -> Probe:
    """
    Raises:
        ClusterFileError: names the file, and the field that is not as expected.
    """
    document = read_json(path, ClusterFileError, _EXPECTED, most_bytes=_MOST_BYTES)
    return validate_fields(document, Probe, path, ClusterFileError)


def write_probe(probe: Probe, path: Path) -> None:
    """Make the folder, for its owner alone, where it is missing.

    Raises:
        InputError: it cannot be written there.
    """
    path.parent.parent.mkdir(mode=0o700, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    with replacing(path) as file:
        file.write((probe.model_dump_json(indent=1) + "\n").encode())


def with_probe(cluster: ClusterSpec, path: str | os.PathLike[str]) -> tuple[ClusterSpec, str]:
    """The cluster of the file at `path` with a probe's figures where nobody typed any.

    Returns:
        The cluster, and one line that says whose figures were probed; empty where none were.

    Raises:
        ClusterFileError: as `read_probe`.
    """
    where = probe_path(path)
    if not where.exists():
        return cluster, ""
    probe = read_probe(where)
    filled = fill(cluster, probe)
    probed = [new.name for old, new in zip(cluster.nodes, filled.nodes, strict=True) if old != new]
    if not probed:
        return cluster, ""
    typed = [node.name for node in filled.nodes if node.name not in probed]
    rest = f"; those of {', '.join(typed)} as typed in {path}" if typed else ""
    return filled, f"figures of {', '.join(probed)} as probed on {probe.date[:10]}{rest}"


def fill(cluster: ClusterSpec, probe: Probe) -> ClusterSpec:
    """Devices and links that nobody typed, as `probe` found them; what is typed stays."""
    nodes = []
    for node in cluster.nodes:
        found, link = probe.nodes.get(node.name), probe.links.get(node.name)
        filled = node
        if found is not None and not node.devices:
            software = probe.software if node.name == cluster.head == probe.head else None
            filled = replace(node, devices=capped(devices_of(found, software), node.memory_cap_bytes))
        # Links are seen from the head: after a move to another box they are not these.
        if link is not None and node.link is None and probe.head == cluster.head != node.name:
            filled = replace(filled, link=link_spec(link, probe.software, probe.nodes.get(probe.head), found))
        nodes.append(filled)
    return replace(cluster, nodes=tuple(nodes))


def link_spec(link: Link, software: HeadSoftware, *ends: Node | None) -> LinkSpec:
    """A link as the cost model has it. Who has waited for the other works more slowly for a moment."""
    wakes_s = (software.wake_s, *(end.wake_s for end in ends if end is not None))
    return LinkSpec(link.round_trip_s + sum(wakes_s), link.bytes_per_s, "probed")


def devices_of(
    node: Node, software: HeadSoftware | None, head_on: str | None = None
) -> tuple[DeviceSpec, ...]:
    """What a run can use of a box: its RAM, its cards and its disk.

    A card counts where our own kernels were timed on it; one that an earlier release looked at does not.

    Args:
        software: on the head's box.
        head_on: the card that the head computes on, such as "cuda:0"; it comes first then. None: the CPU.
    """
    ram = ram_device(node, software, None if software is None else software.attention)
    timed = [gpu for gpu in node.gpus if gpu.kernels]
    first = [_card_device(gpu, software) for gpu in timed if gpu.device == head_on]
    others = [_card_device(gpu, None) for gpu in timed if gpu.device != head_on]
    disk = () if node.disk is None else (_disk_device(node.disk, ram),)
    return (*first, ram, *others, *disk)


def ram_device(node: Node, software: HeadSoftware | None, attention: FormRate | None) -> DeviceSpec:
    """RAM and the CPU. What is not free counts as reserved; memory is as fast as our kernels read it."""
    condition, hardware = node.condition, node.hardware
    kernels = (*node.kernels, *([attention] if attention is not None else []))
    one_row = [rate.flops_per_s[0] * _bits(rate.form) / 16 for rate in node.kernels]
    own = {} if software is None else software.model_dump(exclude={"attention", "wake_s"})
    return DeviceSpec(
        "ram",
        "ram",
        "cpu",
        hardware.memory_bytes,
        hardware.memory_bytes - min(hardware.memory_bytes, condition.free_bytes),
        bandwidth_bytes_per_s=max(one_row),
        ffn_flops_per_s=node.flops_per_s,
        overheads=Overheads(request_s=node.request_s, **own),
        cores=float(node.threads),
        kernels=tuple(KernelRates(rate.form, rate.rows, rate.flops_per_s) for rate in kernels),
        figures_from="probed",
    )


def _card_device(gpu: Gpu, software: HeadSoftware | None) -> DeviceSpec:
    """A card. What is not free counts as reserved, and so does what stays free.

    Args:
        software: where the head computes on it. The CPU's part of a layer, a row and a larger pass is left
            out of it: the card is told once what to do between two MoE layers.
    """
    one_row = [rate.flops_per_s[0] * _bits(rate.form) / 16 for rate in gpu.kernels]
    overheads = Overheads(request_s=gpu.round_trip_s)
    if software is not None:
        overheads = Overheads(
            message_s=software.message_s,
            message_row_s=software.message_row_s,
            moe_layer_s=software.moe_layer_s,
            pass_s=software.pass_s,
            draft_s=software.draft_s,
        )
    return DeviceSpec(
        f"gpu{gpu.device.partition(':')[2]}",
        "vram",
        gpu.device,
        gpu.memory_bytes,
        gpu.memory_bytes - usable_vram_bytes(min(gpu.free_bytes, gpu.memory_bytes)),
        bandwidth_bytes_per_s=max(one_row),
        ffn_flops_per_s=gpu.flops_per_s,
        overheads=overheads,
        host_link_bytes_per_s=gpu.copy_bytes_per_s,
        host_link_round_trip_s=0.0 if software is None else gpu.round_trip_s,
        kernels=tuple(KernelRates(rate.form, rate.rows, rate.flops_per_s) for rate in gpu.kernels),
        figures_from="probed",
    )


def _disk_device(disk: Disk, ram: DeviceSpec) -> DeviceSpec:
    """Experts on it are the model's own files, so nothing needs to be free there."""
    return DeviceSpec(
        "disk",
        "disk",
        "cpu",
        disk.num_bytes,
        0,
        bandwidth_bytes_per_s=disk.bytes_per_s,
        ffn_flops_per_s=ram.ffn_flops_per_s,
        figures_from="probed",
    )


def _bits(form: str) -> float:
    return FORMATS[form].bits
