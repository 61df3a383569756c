"""Names of the catalogue as the devices and links of a cluster file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from placement.fields.cluster_fields import parse_size
from placement.fields.overhead_fields import HEAD_ALONE, OF_LAYERS
from placement.hardware.catalogue import Catalogue
from placement.hardware.entry import Entry
from placement.hardware.figures import Figure, figures_of


def expanded_device(
    catalogue: Catalogue, entry: Entry, typed: Mapping[str, Any], *, is_head: bool
) -> dict[str, Any]:
    """A device as a cluster file writes it.

    Args:
        typed: fields that the user states; they win.
        is_head: whether the head computes on it.

    Raises:
        ValueError: a link, or a product of several sizes whose memory nobody states.
    """
    if entry.kind == "link":
        raise ValueError(f"{entry.name} is a link: name it in links, as {{node: …, hardware: {entry.name}}}")
    figures = figures_of(entry, catalogue.shares_of(entry))
    if "memory_bytes" not in figures and "memory_bytes" not in typed:
        raise ValueError(
            f"{entry.name} is sold in several sizes: expected its memory, as {{use: {entry.name}, "
            f"memory_bytes: {example_size(entry)}}}"
        )
    left_out = (set() if is_head else HEAD_ALONE) | (OF_LAYERS if entry.kind == "disk" else set())
    fields: dict[str, Any] = {"name": entry.name, "kind": entry.kind}
    if entry.torch_device is not None:
        fields["torch_device"] = entry.torch_device
    fields |= _nested({name: figure for name, figure in figures.items() if name not in left_out})
    overheads = fields.get("overheads", {}) | typed.get("overheads", {})
    fields |= typed
    rate, keys_rate = "bandwidth_gbytes_per_s", "attention_bandwidth_gbytes_per_s"
    if rate in typed and keys_rate in fields and keys_rate not in typed:
        # Keys and values lie in the same memory.
        fields[keys_rate] = min(fields[keys_rate], typed[rate])
    if overheads:
        fields["overheads"] = overheads
    if "reserved_bytes" not in typed and "reserved_bytes" in fields:
        # Of little memory a share, as systems do.
        fields["reserved_bytes"] = min(fields["reserved_bytes"], parse_size(fields["memory_bytes"]) // 2)
    return fields


def expanded_link(catalogue: Catalogue, entry: Entry, typed: Mapping[str, Any]) -> dict[str, Any]:
    """A link's round trip and bandwidth as a cluster file writes them; `typed` wins.

    Raises:
        ValueError: the entry is no link.
    """
    if entry.kind != "link":
        raise ValueError(f"{entry.name} is no link: name it in a node's hardware")
    return _nested(figures_of(entry, catalogue.shares_of(entry))) | dict(typed)


def numbered(names: Sequence[str]) -> list[str]:
    """Names of devices of one node, each once: a second of a kind is called NAME-2."""
    seen: dict[str, int] = {}
    unique = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return unique


def _nested(figures: Mapping[str, Figure]) -> dict[str, Any]:
    """With `overheads.pass_s` as a key of `overheads`."""
    fields: dict[str, Any] = {}
    for name, figure in figures.items():
        outer, _, inner = name.rpartition(".")
        (fields.setdefault(outer, {}) if outer else fields)[inner] = figure.value
    return fields


def example_size(entry: Entry) -> str:
    """A size in which such a product is sold."""
    return "2TB" if entry.kind == "disk" else "128GB" if entry.kind == "vram" else "64GB"
