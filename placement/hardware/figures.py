"""What one entry reaches, figure by figure, and how that is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from placement.hardware.entry import ClassShares, Entry

How = Literal["data sheet", "published", "class", "assumed"]
"""Printed by the maker; published of this device; what its class reaches; by nobody."""

_OVERHEADS = ("layer_s", "batch_s", "pass_s", "draft_s")
# Of a field of the cluster file: the share of which figure of the data sheet.
_SHARES = {
    "bandwidth_gbytes_per_s": ("bandwidth_share", "bandwidth_gbytes_per_s"),
    "attention_bandwidth_gbytes_per_s": ("attention_bandwidth_share", "bandwidth_gbytes_per_s"),
    "ffn_gflops": ("arithmetic_share", "ffn_gflops"),
    "host_link_gbytes_per_s": ("host_link_share", "host_link_gbytes_per_s"),
    "bandwidth_gbits_per_s": ("bandwidth_share", "bandwidth_gbits_per_s"),
}
_READS = [field for field in _SHARES if field.endswith("bandwidth_gbytes_per_s")]
_DIGITS = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """A value in the units of a cluster file's field, how it is known, and from whom."""

    value: Any
    how: How
    source: str


def figures_of(entry: Entry, shares: ClassShares) -> dict[str, Figure]:
    """The fields of a cluster file's device, or link, that an entry gives; fields that say nothing left out.

    What the entry does not state is its class's share of the data sheet.
    """
    found: dict[str, Figure] = {}
    if entry.memory_bytes is not None:
        found["memory_bytes"] = Figure(entry.memory_bytes, "data sheet", entry.data_sheet.source)
    for field, (share_name, printed_name) in _SHARES.items():
        share, printed = getattr(shares, share_name), getattr(entry.data_sheet, printed_name)
        if share is not None and printed is not None:
            found[field] = _of_class(_rounded(printed * share), share_name, shares)
    _add_class_figures(found, entry, shares)
    if entry.reached is not None and (most := entry.reached.read_gbytes_per_s) is not None:
        for field in _READS:
            if field in found and found[field].value > most:
                found[field] = Figure(most, "published", entry.reached.source)
    if entry.assumed is not None:
        for field, value in entry.assumed.figures.items():
            found[field] = Figure(value, "assumed", entry.assumed.source)
    if entry.reached is not None:
        for field, value in entry.reached.figures.items():
            found[field] = Figure(value, "published", entry.reached.source)
    return found


def _add_class_figures(found: dict[str, Figure], entry: Entry, shares: ClassShares) -> None:
    """What a class states as it is, not as a share."""
    if entry.kind == "link":
        found["round_trip_s"] = _of_class(shares.round_trip_s, "round_trip_s", shares)
        return
    if shares.reserved_bytes:
        found["reserved_bytes"] = _of_class(shares.reserved_bytes, "reserved_bytes", shares)
    if shares.row_costs:
        found["row_costs"] = _of_class(dict(shares.row_costs), "row_costs", shares)
    if shares.host_link_round_trip_s:
        name = "host_link_round_trip_s"
        found[name] = _of_class(shares.host_link_round_trip_s, name, shares)
    for name in _OVERHEADS:
        if seconds := getattr(shares, name):
            found[f"overheads.{name}"] = _of_class(seconds, name, shares)


def _of_class(value: Any, name: str, shares: ClassShares) -> Figure:
    return Figure(value, "assumed" if name in shares.assumed else "class", shares.source)


def _rounded(value: float) -> float:
    """To the digits that such a figure can have."""
    return float(f"{value:.{_DIGITS}g}")
