"""Reads cluster files: YAML, checked field by field. docs/formats.md describes them.

Potluck's part stands under `metadata: {potluck: ...}` of a Ray cluster launcher file, whose schema leaves
`metadata` to its users; in a file for planning alone it may be the whole file. Units in the file are those
people quote (GB/s, Gbit/s, GFLOP/s). A node needs no more than a name and an address: what it has can be
measured.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from placement.errors import ClusterFileError, InputError
from placement.files.quote import quote
from placement.given.cluster_fields import (
    Address,
    GbitsPerS,
    GbytesPerS,
    Gflops,
    Memory,
    Name,
    NotNegative,
    Number,
    Port,
    Positive,
    RemotePath,
    RoundTrip,
    Rows,
    Text,
    User,
)
from placement.given.cluster_spec import (
    USUAL_VENV,
    ClusterSpec,
    DeviceKind,
    DeviceSpec,
    LinkSpec,
    LinkUpgrade,
    MachineSpec,
    NetworkKind,
    NodeSpec,
    Overheads,
    capped,
)
from placement.given.kernel_rates import ATTENTION, KernelRates
from placement.given.probe import with_probe
from placement.given.yaml_file import read_mapping, validate_fields
from placement.units import size
from placement.weight_format import planned_format

_MOST_NAMES = 12


def load_cluster(path: str | os.PathLike[str]) -> ClusterSpec:
    """Read and check a cluster file; what nobody typed into it is missing (`ClusterSpec.unknown_nodes`).

    Raises:
        ClusterFileError: names file, field path, what was expected and what was found.
    """
    return cluster_of(read_mapping(path, ClusterFileError, "head, nodes and links"), path)


def cluster_of(document: dict[object, object], path: str | os.PathLike[str]) -> ClusterSpec:
    """The same of what was read from `path` already."""
    part, prefix = _potluck_part(document, path)
    file = validate_fields(part, _ClusterModel, path, ClusterFileError, prefix.rstrip("."))
    return _cluster(file, f"{path}: {prefix}")


def load_known_cluster(path: str | os.PathLike[str], say: Callable[[str], None] | None = None) -> ClusterSpec:
    """A cluster file of which every device and link is known, for commands that plan.

    What nobody typed is taken from the probe that lies beside the file, if there is one.

    Args:
        say: told in one line which figures are probed.

    Raises:
        ClusterFileError: as `load_cluster` and `read_probe`, and where figures are missing.
    """
    cluster, note = with_probe(load_cluster(path), path)
    if note and say is not None:
        say(note)
    check_figures(cluster, path)
    return cluster


def check_figures(cluster: ClusterSpec, path: str | os.PathLike[str]) -> None:
    """Raise ClusterFileError where nothing says what a node has or how fast it is reached."""
    if unknown := cluster.unknown_nodes:
        node = next(node for node in cluster.nodes if node.name == unknown[0])
        what = "device" if not node.devices else "link to the head"
        more = ", nor have others" if len(unknown) > 1 else ""
        raise ClusterFileError(
            f"{path}: node {node.name!r} has no {what} typed or measured{more}: run `potluck probe {path}`, "
            f"or type {'devices' if not node.devices else 'links'} into the file"
        )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _OverheadsModel(_Strict):
    request_s: NotNegative = 0.0
    expert_s: NotNegative = 0.0
    message_s: NotNegative = 0.0
    message_row_s: NotNegative = 0.0
    layer_s: NotNegative = 0.0
    moe_layer_s: NotNegative = 0.0
    batch_s: Number = 0.0
    row_s: NotNegative = 0.0
    pass_s: NotNegative = 0.0
    draft_s: NotNegative = 0.0


# What counts on the head's own device alone, and what also counts where the policy `pipeline` runs layers.
_HEAD_OVERHEADS = {"message_s", "message_row_s", "pass_s", "draft_s"}
_LAYER_OVERHEADS = {"layer_s", "moe_layer_s", "batch_s", "row_s"}


class _MachineModel(_Strict):
    name: Name
    nodes: list[str]
    cores: Positive
    bandwidth_gbytes_per_s: GbytesPerS


class _DeviceModel(_Strict):
    name: Name
    kind: DeviceKind
    memory_bytes: Memory
    bandwidth_gbytes_per_s: GbytesPerS
    ffn_gflops: Gflops
    reserved_bytes: Memory = 0
    torch_device: str | None = None
    price_per_gbyte: NotNegative | None = None
    overheads: _OverheadsModel = _OverheadsModel()
    cores: Positive = 1.0
    host_link_gbytes_per_s: GbytesPerS | None = None
    host_link_round_trip_s: RoundTrip = 0.0
    attention_gflops: Gflops | None = None
    kernels: dict[str, dict[Rows, Gflops]] = {}


class _NodeModel(_Strict):
    name: Name
    address: Address | None = None
    devices: list[_DeviceModel] = []
    price: NotNegative | None = None
    ssh_user: User | None = None
    ssh_port: Port = 22
    model: RemotePath | None = None
    venv: RemotePath = USUAL_VENV
    memory: Memory | None = None
    network: NetworkKind | None = None


class _LinkModel(_Strict):
    node: str
    round_trip_s: RoundTrip
    bandwidth_gbits_per_s: GbitsPerS


class _LinkUpgradeModel(_Strict):
    name: Text
    nodes: list[str]
    round_trip_s: RoundTrip | None = None
    bandwidth_gbits_per_s: GbitsPerS | None = None
    price: NotNegative | None = None


class _ClusterModel(_Strict):
    head: str
    nodes: list[_NodeModel]
    links: list[_LinkModel] = []
    machines: list[_MachineModel] = []
    link_upgrades: list[_LinkUpgradeModel] = []


def _potluck_part(document: dict[object, object], path: object) -> tuple[object, str]:
    if "provider" not in document and "metadata" not in document:
        return document, ""
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or "potluck" not in metadata:
        raise ClusterFileError(
            f"{path}: metadata.potluck: expected head, nodes and links there, found nothing"
        )
    return metadata["potluck"], "metadata.potluck."


def _cluster(file: _ClusterModel, where: str) -> ClusterSpec:
    """The rules that span several fields."""
    names = [node.name for node in file.nodes]
    known = _listed(names) or "no nodes"
    _check_unique(names, f"{where}nodes")
    addresses = [node.address for node in file.nodes if node.address is not None]
    _check_unique(addresses, f"{where}nodes", "addresses")
    if file.head not in names:
        raise ClusterFileError(f"{where}head: expected one of the nodes ({known}), found {quote(file.head)}")
    links: dict[str, LinkSpec] = {}
    for index, link in enumerate(file.links):
        field = f"{where}links[{index}].node"
        if link.node not in names:
            raise ClusterFileError(f"{field}: expected one of the nodes ({known}), found {quote(link.node)}")
        if link.node in links:
            raise ClusterFileError(
                f"{field}: expected one link a node, found a second for {quote(link.node)}"
            )
        links[link.node] = LinkSpec(link.round_trip_s, link.bandwidth_gbits_per_s * 1e9 / 8)
    nodes = []
    for index, node in enumerate(file.nodes):
        field = f"{where}nodes[{index}]"
        _check_unique([device.name for device in node.devices], f"{field}.devices")
        for i, device in enumerate(node.devices):
            if (node.name, i) != (file.head, 0):
                _check_no_head_software(node, device, f"{field}.devices[{i}]")
        devices = tuple(_device(device, f"{field}.devices[{i}]") for i, device in enumerate(node.devices))
        nodes.append(
            NodeSpec(
                name=node.name,
                address=node.address,
                devices=capped(devices, node.memory),
                link=links.get(node.name),
                price=node.price,
                ssh_user=node.ssh_user,
                ssh_port=node.ssh_port,
                model=node.model,
                venv=node.venv,
                memory_cap_bytes=node.memory,
                network=node.network,
            )
        )
    upgrades = _link_upgrades(file, set(links) - {file.head}, where)
    return ClusterSpec(file.head, tuple(nodes), _machines(file, names, where), upgrades)


def _machines(file: _ClusterModel, names: list[str], where: str) -> tuple[MachineSpec, ...]:
    _check_unique([machine.name for machine in file.machines], f"{where}machines")
    taken: dict[str, str] = {}
    for index, machine in enumerate(file.machines):
        field = f"{where}machines[{index}].nodes"
        for node in machine.nodes:
            if node not in names:
                raise ClusterFileError(
                    f"{field}: expected some of the nodes ({_listed(names)}), found {quote(node)}"
                )
            if node in taken:
                raise ClusterFileError(
                    f"{field}: expected each node on one machine, found {quote(node)} on {taken[node]!r} too"
                )
            taken[node] = machine.name
    return tuple(
        MachineSpec(m.name, tuple(m.nodes), m.cores, m.bandwidth_gbytes_per_s * 1e9) for m in file.machines
    )


def _link_upgrades(file: _ClusterModel, linked: set[str], where: str) -> tuple[LinkUpgrade, ...]:
    _check_unique([upgrade.name for upgrade in file.link_upgrades], f"{where}link_upgrades")
    for index, upgrade in enumerate(file.link_upgrades):
        field = f"{where}link_upgrades[{index}]"
        unknown = [node for node in upgrade.nodes if node not in linked]
        if unknown or not upgrade.nodes:
            raise ClusterFileError(
                f"{field}.nodes: expected some of the nodes with a link to the head "
                f"({_listed(sorted(linked)) or 'none'}), found {quote(unknown[0]) if unknown else 'none'}"
            )
        if upgrade.round_trip_s is None and upgrade.bandwidth_gbits_per_s is None:
            raise ClusterFileError(
                f"{field}: expected round_trip_s, bandwidth_gbits_per_s or both, found neither"
            )
    return tuple(
        LinkUpgrade(
            name=upgrade.name,
            nodes=tuple(upgrade.nodes),
            round_trip_s=upgrade.round_trip_s,
            bandwidth_bytes_per_s=_scaled(upgrade.bandwidth_gbits_per_s, 1e9 / 8),
            price=upgrade.price,
        )
        for upgrade in file.link_upgrades
    )


def _check_no_head_software(node: _NodeModel, device: _DeviceModel, where: str) -> None:
    """On a device that is not the head's own, some measured seconds would count nowhere."""
    without_effect = _HEAD_OVERHEADS | (_LAYER_OVERHEADS if device.kind == "disk" else set())
    figures = {f"overheads.{name}": device.overheads.model_dump()[name] for name in sorted(without_effect)}
    if device.kind == "vram":
        figures["host_link_round_trip_s"] = device.host_link_round_trip_s
    for name, seconds in figures.items():
        if seconds:
            raise ClusterFileError(
                f"{where}.{name}: expected on the first device of the head's node, found on device "
                f"{device.name!r} of node {node.name!r}, where it has no effect: leave it out"
            )


def _device(device: _DeviceModel, where: str) -> DeviceSpec:
    if device.reserved_bytes > device.memory_bytes:
        raise ClusterFileError(
            f"{where}.reserved_bytes: expected at most memory_bytes ({size(device.memory_bytes)}), "
            f"found {size(device.reserved_bytes)}"
        )
    for field in ("host_link_gbytes_per_s", "host_link_round_trip_s"):
        if not getattr(device, field) or device.kind == "vram":
            continue
        raise ClusterFileError(
            f"{where}.{field}: expected on devices of kind 'vram' only, found on "
            f"{device.kind!r}: leave it out"
        )
    if device.overheads.batch_s < -device.overheads.layer_s:
        raise ClusterFileError(
            f"{where}.overheads.batch_s: expected at least -layer_s ({-device.overheads.layer_s:g}), "
            f"which it is added to, found {device.overheads.batch_s:g}"
        )
    return DeviceSpec(
        name=device.name,
        kind=device.kind,
        torch_device=device.torch_device or ("cuda" if device.kind == "vram" else "cpu"),
        memory_bytes=device.memory_bytes,
        reserved_bytes=device.reserved_bytes,
        bandwidth_bytes_per_s=device.bandwidth_gbytes_per_s * 1e9,
        ffn_flops_per_s=device.ffn_gflops * 1e9,
        price_per_gbyte=device.price_per_gbyte,
        overheads=Overheads(**device.overheads.model_dump()),
        cores=device.cores,
        host_link_bytes_per_s=_scaled(device.host_link_gbytes_per_s, 1e9),
        host_link_round_trip_s=device.host_link_round_trip_s,
        attention_flops_per_s=_scaled(device.attention_gflops, 1e9),
        kernels=tuple(_kernel_rates(form, rates, where) for form, rates in device.kernels.items()),
    )


def _kernel_rates(form: str, gflops: dict[int, float], where: str) -> KernelRates:
    field = f"{where}.kernels.{quote(form)}"
    name = form
    if form != ATTENTION:
        try:
            name = planned_format(form).name
        except InputError as error:
            raise ClusterFileError(f"{field}: {error}, or {ATTENTION}") from None
    if 1 not in gflops:
        raise ClusterFileError(
            f"{field}: expected GFLOP/s by rows of a pass, 1 row among them, found none of 1"
        )
    rows = tuple(sorted(gflops))
    return KernelRates(name, rows, tuple(gflops[number] * 1e9 for number in rows))


def _listed(names: list[str]) -> str:
    """The first of them."""
    more = "" if len(names) <= _MOST_NAMES else f" and {len(names) - _MOST_NAMES} more"
    return ", ".join(names[:_MOST_NAMES]) + more


def _scaled(number: float | None, unit: float) -> float | None:
    return None if number is None else number * unit


def _check_unique(names: list[str], where: str, what: str = "names") -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise ClusterFileError(f"{where}: expected unique {what}, found {quote(name)} {times} times")
