"""`potluck hardware`: the catalogue that cluster files take names from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
import yaml

from orchestrator.cli.options import Json
from orchestrator.cli.output import console, print_json, print_note, table
from orchestrator.cli.planning_only import is_planning_only, what_runs
from placement.errors import InputError
from placement.hardware.catalogue import Catalogue, packaged_catalogue
from placement.hardware.entry import CLASSES, Entry, HardwareClass
from placement.hardware.expand import example_size, expanded_device, expanded_link
from placement.hardware.figures import Figure, figures_of

_TITLES: dict[HardwareClass, str] = {
    "discrete-gpu": "Graphics cards",
    "apple-m1": "Apple's chips, M1",
    "apple-m2-m3": "Apple's chips, M2 and M3",
    "apple-m4-m5": "Apple's chips, M4 and M5",
    "unified-pc": "PCs whose GPU and CPU share memory",
    "desktop-ram": "RAM of desktops",
    "server-ram": "RAM of servers and workstations",
    "laptop-ram": "RAM of laptops",
    "disk": "Disks",
    "wired": "Cables",
    "wireless": "Radio",
}
# Of a cluster file's fields: what a reader calls them, in the order they are shown.
_WORDS = {
    "memory_bytes": "memory",
    "reserved_bytes": "for the system",
    "bandwidth_gbytes_per_s": "reads weights, GB/s",
    "attention_bandwidth_gbytes_per_s": "reads keys and values, GB/s",
    "ffn_gflops": "multiplies, GFLOP/s",
    "host_link_gbytes_per_s": "host link, GB/s",
    "host_link_round_trip_s": "host link, round trip",
    "bandwidth_gbits_per_s": "carries, Gbit/s",
    "round_trip_s": "round trip",
    "row_costs": "pass of some rows, times",
    "overheads.layer_s": "software of a layer",
    "overheads.batch_s": "of a layer, several rows",
    "overheads.pass_s": "software of a pass",
    "overheads.draft_s": "software of a draft",
}
_HOW = {
    "data sheet": "as printed",
    "published": "published",
    "class": "as its class",
    "assumed": "assumed",
}
_FIRST_FIELDS = ("name", "kind", "memory_bytes")
"""Of a typed device: what a reader looks for."""
_GIB = 2**30
_MARK = "†"


def hardware(
    name: Annotated[str | None, typer.Argument(help="One entry to explain.", metavar="[NAME]")] = None,
    json: Json = False,
) -> None:
    """List the hardware that cluster files may name, or say what is known of one kind."""
    catalogue = packaged_catalogue()
    entries = list(catalogue.entries.values()) if name is None else [_entry(catalogue, name)]
    if json:
        print_json({"hardware": [_document(catalogue, entry) for entry in entries]})
        return
    if name is not None:
        _explain(catalogue, entries[0])
        return
    for hardware_class in CLASSES:
        of_class = [entry for entry in entries if entry.hardware_class == hardware_class]
        console.print(_listed(catalogue, _TITLES[hardware_class], of_class))
    print_note(f"{_MARK} planning only: `potluck hardware NAME` says what of such a box runs")
    print_note("`potluck hardware NAME` says where the figures of one come from, and what to write for it")


def _entry(catalogue: Catalogue, name: str) -> Entry:
    try:
        return catalogue.entry(name)
    except ValueError as error:
        raise InputError(str(error)) from None


def _listed(catalogue: Catalogue, title: str, entries: Sequence[Entry]) -> Any:
    """One class: what is printed of each, and what plans count."""
    is_link = entries[0].kind == "link"
    field = "bandwidth_gbits_per_s" if is_link else "bandwidth_gbytes_per_s"
    rows = []
    for entry in entries:
        figures = figures_of(entry, catalogue.shares_of(entry))
        second = f"{1e3 * figures['round_trip_s'].value:g} ms" if is_link else _memory(entry)
        printed, reached = getattr(entry.data_sheet, field), figures[field]
        name = f"{entry.name} {_MARK}" if is_planning_only(entry) else entry.name
        rows.append([name, second, f"{printed:g}", f"{reached.value:g}", _HOW[reached.how]])
    unit = "Gbit/s" if is_link else "GB/s"
    columns = ["name", "round trip" if is_link else "memory", "printed", "reached", "known"]
    return table(f"{title}, {unit}", columns, rows)


def _memory(entry: Entry) -> str:
    return "as you say" if entry.memory_bytes is None else _text_size(entry.memory_bytes)


def _explain(catalogue: Catalogue, entry: Entry) -> None:
    shares = catalogue.shares_of(entry)
    figures = figures_of(entry, shares)
    rows = [
        [_WORDS[field], _printed(entry, field), _value(field, figure), _HOW[figure.how]]
        for field, figure in _in_order(figures)
    ]
    columns = ["", "printed", "a plan counts", "known"]
    console.print(table(f"{entry.name}: {entry.title}", columns, rows))
    console.print("\n".join(_sources(entry, shares.source)) + "\n", markup=False)
    if (runs := what_runs(entry)) is not None:
        console.print(f"{runs}\n", markup=False)
    console.print("In a cluster file:\n")
    console.print(_cluster_lines(catalogue, entry), markup=False, soft_wrap=True)


def _in_order(figures: dict[str, Figure]) -> list[tuple[str, Figure]]:
    return [(field, figures[field]) for field in _WORDS if field in figures]


def _printed(entry: Entry, field: str) -> str:
    if field == "memory_bytes":
        return _memory(entry)
    printed = getattr(entry.data_sheet, field, None)
    return "" if printed is None else f"{printed:g}"


def _value(field: str, figure: Figure) -> str:
    if isinstance(figure.value, dict):
        return ", ".join(f"{rows}: {times:g}" for rows, times in figure.value.items())
    if field.endswith("_bytes"):
        return _text_size(figure.value)
    return (
        f"{1e3 * figure.value:g} ms"
        if field.endswith("_s") and "_per_s" not in field
        else f"{figure.value:g}"
    )


def _sources(entry: Entry, of_class: str) -> list[str]:
    lines = [f"printed: {entry.data_sheet.source}"]
    if entry.reached is not None:
        most = entry.reached.read_gbytes_per_s
        what = "" if most is None else f"a program that only reads gets {most:g} GB/s; "
        lines.append(f"published: {what}{entry.reached.source}")
    lines.append(f"as its class ({entry.hardware_class}): {of_class}")
    if entry.assumed is not None:
        lines.append(f"assumed: {entry.assumed.source}")
    return lines


def _cluster_lines(catalogue: Catalogue, entry: Entry) -> str:
    """What to write for it: its name, or the same figures typed."""
    if entry.kind == "link":
        typed = _flow({"node": "NODE", **expanded_link(catalogue, entry, {})})
        return f"links:\n- {{node: NODE, hardware: {entry.name}}}\n\nor, typed:\n\nlinks:\n- {typed}"
    stated = {} if entry.memory_bytes is not None else {"memory_bytes": example_size(entry)}
    item = _flow({"use": entry.name, **stated}) if stated else entry.name
    fields = expanded_device(catalogue, entry, stated, is_head=True)
    fields = {name: fields[name] for name in (*_FIRST_FIELDS, *fields) if name in fields}
    for name in ("memory_bytes", "reserved_bytes"):
        if isinstance(fields.get(name), int):
            fields[name] = _text_size(fields[name])
    where = "" if entry.kind == "disk" else ", for the device that the head computes on"
    return f"hardware: [{item}]\n\nor, typed{where}:\n\ndevices:\n- {_flow(fields)}"


def _flow(fields: dict[str, Any]) -> str:
    """One line of YAML, whole numbers without a point."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        return int(value) if isinstance(value, float) and value.is_integer() else value

    text: str = yaml.safe_dump(plain(fields), default_flow_style=True, sort_keys=False, width=10**6)
    return text.strip()


def _text_size(num_bytes: int) -> str:
    """Exactly, as people write it."""
    return f"{num_bytes // _GIB}GiB" if num_bytes % _GIB == 0 else f"{num_bytes / 1e9:g}GB"


def _document(catalogue: Catalogue, entry: Entry) -> dict[str, Any]:
    figures = figures_of(entry, catalogue.shares_of(entry))
    return {
        "name": entry.name,
        "class": entry.hardware_class,
        "title": entry.title,
        "kind": entry.kind,
        "planning_only": is_planning_only(entry),
        "data_sheet": entry.data_sheet.model_dump(exclude_none=True),
        "read_gbytes_per_s": None if entry.reached is None else entry.reached.read_gbytes_per_s,
        "figures": {
            field: {"value": figure.value, "known": figure.how, "source": figure.source}
            for field, figure in _in_order(figures)
        },
    }
