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
from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from placement.errors import ClusterFileError
from placement.fields.cluster_fields import (
    Address,
    GbitsPerS,
    GbytesPerS,
    Memory,
    Name,
    NotNegative,
    Port,
    Positive,
    RemotePath,
    RoundTrip,
    Text,
    User,
)
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.files.quote import quote
from placement.given.cluster_spec import (
    USUAL_VENV,
    ClusterSpec,
    DeviceSpec,
    FiguresFrom,
    LinkSpec,
    LinkUpgrade,
    MachineSpec,
    NetworkKind,
    NodeSpec,
    capped,
)
from placement.given.device_fields import (
    DeviceModel,
    check_no_head_software,
    device_spec,
    scaled,
)
from placement.given.hardware_items import CatalogueName, Hardware, link_figures, named_devices
from placement.given.probe import with_probe

_MOST_NAMES = 12
_LINK_FIGURES = {"round_trip_s", "bandwidth_gbits_per_s"}


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
        what, typed = "device", "type devices or hardware into the file"
        if node.devices:
            what = "link to the head"
            typed = f"type it under links: - {{node: {node.name}, hardware: ethernet-2.5g}}"
        more = ", nor have others" if len(unknown) > 1 else ""
        raise ClusterFileError(
            f"{path}: node {node.name!r} has no {what} typed or measured{more}: run `potluck probe {path}`, "
            f"or {typed}"
        )


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _MachineModel(_Strict):
    name: Name
    nodes: list[str]
    cores: Positive
    bandwidth_gbytes_per_s: GbytesPerS


class _NodeModel(_Strict):
    name: Name
    address: Address | None = None
    devices: list[DeviceModel] = []
    hardware: list[Hardware] = []
    price: NotNegative | None = None
    ssh_user: User | None = None
    ssh_port: Port = 22
    model: RemotePath | None = None
    venv: RemotePath = USUAL_VENV
    memory: Memory | None = None
    network: NetworkKind | None = None


class _LinkModel(_Strict):
    node: str
    hardware: CatalogueName | None = None
    round_trip_s: RoundTrip | None = None
    bandwidth_gbits_per_s: GbitsPerS | None = None


class _LinkUpgradeModel(_Strict):
    name: Text
    nodes: list[str]
    hardware: CatalogueName | None = None
    round_trip_s: RoundTrip | None = None
    bandwidth_gbits_per_s: GbitsPerS | None = None
    price: NotNegative | None = None


class _ClusterModel(_Strict):
    # What is missing is said with the nodes' names.
    head: str = ""
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
        found = quote(file.head) if file.head else "nothing"
        raise ClusterFileError(f"{where}head: expected one of the nodes ({known}), found {found}")
    links: dict[str, LinkSpec] = {}
    for index, link in enumerate(file.links):
        field = f"{where}links[{index}].node"
        if link.node not in names:
            raise ClusterFileError(f"{field}: expected one of the nodes ({known}), found {quote(link.node)}")
        if link.node in links:
            raise ClusterFileError(
                f"{field}: expected one link a node, found a second for {quote(link.node)}"
            )
        links[link.node] = _link(link, f"{where}links[{index}]")
    nodes = []
    for index, node in enumerate(file.nodes):
        field = f"{where}nodes[{index}]"
        devices = _devices(node, field, is_head=node.name == file.head)
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


def _link(link: _LinkModel, where: str) -> LinkSpec:
    """Of what is typed, and of the kind that is named for the rest."""
    figures = _link_figures(link, where)
    for field in sorted(_LINK_FIGURES, reverse=True):
        if field not in figures:
            raise ClusterFileError(
                f"{where}.{field}: expected a value, or a kind of link such as hardware: ethernet-2.5g; "
                "found nothing"
            )
    source: FiguresFrom = "typed" if link.hardware is None else "catalogue"
    return LinkSpec(figures["round_trip_s"], figures["bandwidth_gbits_per_s"] * 1e9 / 8, source)


def _link_figures(link: _LinkModel | _LinkUpgradeModel, where: str) -> dict[str, float]:
    """Those of its fields that are known; raises ClusterFileError where its kind is that of no link."""
    typed = link.model_dump(include=_LINK_FIGURES, exclude_none=True)
    return typed if link.hardware is None else link_figures(link.hardware, typed, f"{where}.hardware")


def _devices(node: _NodeModel, where: str, *, is_head: bool) -> tuple[DeviceSpec, ...]:
    """Those that are typed, or those that are named."""
    if node.devices and node.hardware:
        raise ClusterFileError(
            f"{where}: expected devices or hardware, found both: figures of one's own may stand in "
            "hardware too, as {use: NAME, bandwidth_gbytes_per_s: …}"
        )
    where = f"{where}.{'hardware' if node.hardware else 'devices'}"
    devices = node.devices or named_devices(node.hardware, where, is_head=is_head)
    _check_unique([device.name for device in devices], where)
    for i, device in enumerate(devices):
        if not is_head or i:
            check_no_head_software(node.name, device, f"{where}[{i}]")
    source: FiguresFrom = "catalogue" if node.hardware else "typed"
    specs = tuple(device_spec(device, f"{where}[{i}]", source) for i, device in enumerate(devices))
    if not node.hardware:
        return specs
    return tuple(replace(spec, hardware=item.use) for spec, item in zip(specs, node.hardware, strict=True))


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
    found = []
    for index, upgrade in enumerate(file.link_upgrades):
        field = f"{where}link_upgrades[{index}]"
        unknown = [node for node in upgrade.nodes if node not in linked]
        if unknown or not upgrade.nodes:
            raise ClusterFileError(
                f"{field}.nodes: expected some of the nodes with a link to the head "
                f"({_listed(sorted(linked)) or 'none'}), found {quote(unknown[0]) if unknown else 'none'}"
            )
        figures = _link_figures(upgrade, field)
        if not figures:
            raise ClusterFileError(
                f"{field}: expected round_trip_s, bandwidth_gbits_per_s or both, found neither"
            )
        found.append(
            LinkUpgrade(
                name=upgrade.name,
                nodes=tuple(upgrade.nodes),
                round_trip_s=figures.get("round_trip_s"),
                bandwidth_bytes_per_s=scaled(figures.get("bandwidth_gbits_per_s"), 1e9 / 8),
                price=upgrade.price,
            )
        )
    return tuple(found)


def _listed(names: list[str]) -> str:
    """The first of them."""
    more = "" if len(names) <= _MOST_NAMES else f" and {len(names) - _MOST_NAMES} more"
    return ", ".join(names[:_MOST_NAMES]) + more


def _check_unique(names: list[str], where: str, what: str = "names") -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise ClusterFileError(f"{where}: expected unique {what}, found {quote(name)} {times} times")
