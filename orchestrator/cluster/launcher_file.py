"""A cluster file as what starts and reaches boxes needs it: Ray's part and ours, held against each other."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from placement.errors import ClusterFileError
from placement.fields.cluster_fields import MOST_NAME, NAME_PATTERN, USER_PATTERN
from placement.fields.yaml_file import read_mapping, validate_fields
from placement.files.quote import quote
from placement.given.cluster_file import cluster_of
from placement.given.cluster_spec import ClusterSpec, NetworkKind, NodeSpec

STATE_FOLDER = ".potluck"
"""Beside a cluster file, and in a user's home on its boxes: a folder for each cluster lies in it."""
_RAY_PORT = 6379
# What lies in a cluster's folder, and where its path stands.
_FOLDER = re.compile(rf"{re.escape(STATE_FOLDER)}/([^/\s]+)/(?:token|tls|ray)\b")
_WITH_FOLDERS = (
    "file_mounts",
    "initialization_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
# By which a start command tells its box, as `potluck init` writes it: `for OWN in ADDRESS=NAME … none;`.
_OWN = re.compile(r"\bfor OWN in ([^;]*);")


@dataclass(frozen=True, slots=True)
class Box:
    """A node of the file, and how a command on the head's box reaches it.

    Attributes:
        user: ssh's, None for what ssh takes by itself.
        key_path: of the private key on this machine, None for what ssh takes by itself.
        venv, model, memory_cap_bytes, network: as in `NodeSpec`.
    """

    name: str
    address: str
    user: str | None
    port: int
    key_path: Path | None
    venv: str
    model: str | None
    memory_cap_bytes: int | None
    network: NetworkKind | None

    @property
    def at(self) -> str:
        """For messages: its name and address."""
        return f"{self.name} ({self.address})"


@dataclass(frozen=True, slots=True)
class Launcher:
    """What a cluster file says.

    Attributes:
        name: `cluster_name`.
        boxes: in the file's order.
        ray_port: of Ray on the head's box.
        head_start, worker_start: Ray's own start commands, one after another, for `bash`.
        notes: what is no mistake but may surprise, a line each.
    """

    path: Path
    name: str
    boxes: tuple[Box, ...]
    ray_port: int
    head_start: tuple[str, ...]
    worker_start: tuple[str, ...]
    spec: ClusterSpec
    notes: tuple[str, ...]

    @property
    def head(self) -> Box:
        return self.box(self.spec.head)

    @property
    def others(self) -> tuple[Box, ...]:
        return tuple(box for box in self.boxes if box.name != self.spec.head)

    @property
    def addresses(self) -> Mapping[str, str]:
        """By name."""
        return {box.name: box.address for box in self.boxes}

    @property
    def state_folder(self) -> Path:
        """Where this machine keeps what belongs to the cluster."""
        return self.path.resolve().parent / STATE_FOLDER / self.name

    @property
    def remote_folder(self) -> str:
        """The same on each box, in the home of ssh's user."""
        return remote_folder(self.name)

    def box(self, name: str) -> Box:
        """
        Raises:
            ClusterFileError: no node is called that.
        """
        for box in self.boxes:
            if box.name == name:
                return box
        names = ", ".join(box.name for box in self.boxes)
        raise ClusterFileError(f"{self.path}: expected one of the nodes ({names}), found {quote(name)}")


def remote_folder(name: str) -> str:
    """What belongs to the cluster of that name on a box."""
    return f"~/{STATE_FOLDER}/{name}"


def load_launcher(path: str | os.PathLike[str]) -> Launcher:
    """Read and check a cluster file that is also a Ray cluster launcher file.

    Raises:
        ClusterFileError: names file, field, what was expected and what was found.
    """
    keys = "cluster_name, provider, auth and metadata.potluck, as `potluck init` writes it"
    document = read_mapping(path, ClusterFileError, keys)
    spec = cluster_of(document, path)
    if "provider" not in document:
        raise ClusterFileError(
            f"{path}: expected Ray's part too (cluster_name, provider, auth), found a file for planning "
            "alone: `potluck init` writes one that can be started"
        )
    part = validate_fields(document, _RayModel, path, ClusterFileError)
    _check_folders(document, part.cluster_name, path)
    boxes = tuple(_box(node, index, part.auth, path) for index, node in enumerate(spec.nodes))
    addresses = {box.address: box.name for box in boxes}
    head_ip = part.provider.head_ip
    listed = [head_ip, *part.provider.worker_ips]
    for field, address in zip(
        ("head_ip", *(f"worker_ips[{i}]" for i in range(len(listed) - 1))), listed, strict=True
    ):
        if address not in addresses:
            raise ClusterFileError(
                f"{path}: provider.{field}: expected the address of a node under metadata.potluck "
                f"({', '.join(addresses)}), found {quote(address)}"
            )
        if listed.count(address) > 1:
            raise ClusterFileError(f"{path}: provider: expected each address once, found {address} again")
    if missing := [name for address, name in addresses.items() if address not in listed]:
        raise ClusterFileError(
            f"{path}: provider.worker_ips: expected the address of node {missing[0]!r} too, found it nowhere"
        )
    _check_start(part, addresses, path)
    notes = []
    if addresses[head_ip] != spec.head:
        notes.append(
            f"provider.head_ip is the address of {addresses[head_ip]}, the head is {spec.head}: Potluck goes "
            "by `head`; for Ray's own `ray up` exchange the two addresses under provider"
        )
    return Launcher(
        path=Path(path),
        name=part.cluster_name,
        boxes=boxes,
        ray_port=_ray_port(part.head_start_ray_commands, path),
        head_start=tuple(part.head_start_ray_commands),
        worker_start=tuple(part.worker_start_ray_commands),
        spec=spec,
        notes=tuple(notes),
    )


# Ray's part has more fields than these; its own reader checks them.
class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class _ProviderModel(_Lenient):
    type: Literal["local"]
    head_ip: str
    worker_ips: list[str]


class _AuthModel(_Lenient):
    ssh_user: Annotated[str, StringConstraints(pattern=USER_PATTERN, max_length=MOST_NAME)]
    ssh_private_key: Annotated[str, Field(min_length=1)] | None = None


class _RayModel(_Lenient):
    # It names folders, here and on the boxes.
    cluster_name: Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=MOST_NAME)]
    provider: _ProviderModel
    auth: _AuthModel
    head_start_ray_commands: list[str] = []
    worker_start_ray_commands: list[str] = []


def _check_folders(document: Mapping[object, object], name: str, path: object) -> None:
    """Ray's part names the cluster's folder in many places, each with `cluster_name` in it."""
    for field in _WITH_FOLDERS:
        for found in _FOLDER.findall(str(document.get(field, ""))):
            if found != name:
                raise ClusterFileError(
                    f"{path}: {field}: expected {STATE_FOLDER}/{name}, the folder of cluster_name, found "
                    f"{quote(f'{STATE_FOLDER}/{found}')}: use one name in the whole file, or write it anew "
                    "with `potluck init`"
                )


def _check_start(part: _RayModel, names: Mapping[str, str], path: object) -> None:
    """Commands that tell their box by its address, and name it to Ray, know each box by the file's name.

    Args:
        names: by address.
    """
    for field, commands in (
        ("head_start_ray_commands", part.head_start_ray_commands),
        ("worker_start_ray_commands", part.worker_start_ray_commands),
    ):
        for listed in _OWN.findall(" ".join(commands)):
            found = dict(word.split("=", 1) for word in listed.split() if "=" in word)
            for address, name in names.items():
                if found.get(address) != name:
                    there = quote(f"{address}={found[address]}") if address in found else "nothing of it"
                    raise ClusterFileError(
                        f"{path}: {field}: expected {address}={name} after `for OWN in`, as the node is "
                        f"called under metadata.potluck, found {there}: use one name and address in the "
                        "whole file, or write it anew with `potluck init`"
                    )


def _box(node: NodeSpec, index: int, auth: _AuthModel, path: object) -> Box:
    if node.address is None:
        raise ClusterFileError(
            f"{path}: metadata.potluck.nodes[{index}].address: expected the IPv4 address of {node.name!r}, "
            "which is to be started, found nothing"
        )
    key = auth.ssh_private_key
    return Box(
        name=node.name,
        address=node.address,
        user=node.ssh_user or auth.ssh_user,
        port=node.ssh_port,
        key_path=None if key is None else Path(key).expanduser(),
        venv=node.venv,
        model=node.model,
        memory_cap_bytes=node.memory_cap_bytes,
        network=node.network,
    )


def _ray_port(commands: list[str], path: object) -> int:
    found = {int(port) for port in re.findall(r"--port[= ](\d{1,5})\b", " ".join(commands))}
    if len(found) > 1 or any(not 0 < port < 65_536 for port in found):
        raise ClusterFileError(
            f"{path}: head_start_ray_commands: expected one --port, 1 to 65535, found {sorted(found)}"
        )
    return found.pop() if found else _RAY_PORT
