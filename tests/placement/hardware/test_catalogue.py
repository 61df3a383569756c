"""The catalogue: every entry is a device or link of a cluster file, and says how its figures are known."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from placement.errors import HardwareFileError
from placement.fields.overhead_fields import HEAD_ALONE
from placement.given.device_fields import DeviceModel, check_no_head_software, device_spec
from placement.given.hardware_items import HardwareItem, named_devices
from placement.hardware.catalogue import CATALOGUE, REACHED, packaged_catalogue, read_catalogue
from placement.hardware.entry import CLASSES
from placement.hardware.expand import expanded_device, expanded_link
from placement.hardware.figures import figures_of
from placement.hardware.spread import SPREADS

ENTRIES = packaged_catalogue().entries
LINKS = [name for name, entry in ENTRIES.items() if entry.kind == "link"]
DEVICES = [name for name in ENTRIES if name not in LINKS]


def stated(name: str) -> HardwareItem:
    """With memory where it must be stated."""
    size = {} if ENTRIES[name].memory_bytes is not None else {"memory_bytes": "64GB"}
    return HardwareItem.model_validate({"use": name, **size})


def test_there_are_devices_of_every_class() -> None:
    classes = Counter(entry.hardware_class for entry in ENTRIES.values())
    assert set(classes) == set(CLASSES)
    assert len(DEVICES) >= 40


@pytest.mark.parametrize("is_head", [True, False])
def test_every_device_is_one_of_a_cluster_file(is_head: bool) -> None:
    for name in DEVICES:
        (named,) = named_devices([stated(name)], "hardware", is_head=is_head)
        if not is_head:
            check_no_head_software("box", named, name)
        device = device_spec(named, name)
        sheet = ENTRIES[name].data_sheet
        assert sheet.bandwidth_gbytes_per_s is not None
        assert 0 < device.bandwidth_bytes_per_s <= sheet.bandwidth_gbytes_per_s * 1e9, name
        assert 0 < device.budget_bytes <= device.memory_bytes
        assert device.name == name


def test_every_link_has_a_round_trip_and_a_bandwidth() -> None:
    for name in LINKS:
        link = expanded_link(packaged_catalogue(), ENTRIES[name], {})
        assert set(link) == {"round_trip_s", "bandwidth_gbits_per_s"}
        assert 0 < link["round_trip_s"] < 0.1
        assert link["bandwidth_gbits_per_s"] <= ENTRIES[name].data_sheet.bandwidth_gbits_per_s


def test_names_and_titles_say_so_where_a_device_has_two_sockets() -> None:
    for entry in ENTRIES.values():
        assert entry.name.endswith("-2s") == ("two sockets" in entry.title) == (entry.sockets == 2)


def test_software_of_the_head_alone_is_left_out_elsewhere() -> None:
    left_out: set[str] = set()
    for name in DEVICES:
        head, other = (
            expanded_device(packaged_catalogue(), ENTRIES[name], {"memory_bytes": 1 << 36}, is_head=is_head)
            for is_head in (True, False)
        )
        assert not dotted(other) & HEAD_ALONE, name
        assert dotted(head) - dotted(other) <= HEAD_ALONE, name
        left_out |= dotted(head) - dotted(other)
    assert left_out == {"host_link_round_trip_s", "overheads.pass_s", "overheads.draft_s"}


def dotted(fields: dict[str, Any]) -> set[str]:
    """Names of fields, those of software as `overheads.pass_s`."""
    return {*fields, *(f"overheads.{name}" for name in fields.get("overheads", {}))} - {"overheads"}


def test_no_fold_of_a_line_stands_within_the_name_of_a_source() -> None:
    """YAML puts a blank where a line of text ends: `owner/` at its end became `owner/ repository`."""
    sources = [shares.source for shares in packaged_catalogue().classes.values()]
    for entry in ENTRIES.values():
        parts = (entry.data_sheet, entry.reached, entry.assumed)
        sources += [part.source for part in parts if part is not None]
    assert not [source for source in sources if re.search(r"\S/\s", source)]


def test_the_catalogue_comes_with_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["placement.hardware"]
    assert all(any(path.match(pattern) for pattern in patterns) for path in (CATALOGUE, REACHED, SPREADS))


ENTRY: dict[str, Any] = {
    "name": "card",
    "class": "discrete-gpu",
    "title": "A card",
    "kind": "vram",
    "memory_bytes": "24GB",
    "data_sheet": {"bandwidth_gbytes_per_s": 1000, "ffn_gflops": 100_000, "source": "a sheet"},
}
SHARES: dict[str, Any] = {
    "source": "a benchmark",
    "assumed": ["arithmetic_share"],
    "bandwidth_share": 0.8,
    "attention_bandwidth_share": 0.5,
    "arithmetic_share": 0.4,
    "layer_s": 1e-5,
    "row_costs": {2: 1.5},
}


def written(tmp_path: Path, *entries: dict[str, Any], shares: dict[str, Any] = SHARES) -> Path:
    (tmp_path / "reached.yaml").write_text(yaml.safe_dump(dict.fromkeys(CLASSES, shares), sort_keys=False))
    path = tmp_path / "catalogue.yaml"
    path.write_text(yaml.safe_dump({"hardware": list(entries)}))
    return path


def known(tmp_path: Path, entry: dict[str, Any]) -> dict[str, tuple[Any, str, str]]:
    catalogue = read_catalogue(written(tmp_path, entry), tmp_path / "reached.yaml")
    found = catalogue.entry(entry["name"])
    given = figures_of(found, catalogue.shares_of(found))
    return {field: (figure.value, figure.how, figure.source) for field, figure in given.items()}


def test_what_nobody_measured_is_the_classs_share_of_the_data_sheet(tmp_path: Path) -> None:
    found = known(tmp_path, ENTRY)
    assert found["memory_bytes"] == (24 * 10**9, "data sheet", "a sheet")
    assert found["bandwidth_gbytes_per_s"] == (800, "class", "a benchmark")
    assert found["attention_bandwidth_gbytes_per_s"] == (500, "class", "a benchmark")
    assert found["ffn_gflops"] == (40_000, "assumed", "a benchmark")
    assert found["row_costs"] == ({2: 1.5}, "class", "a benchmark")
    assert found["overheads.layer_s"] == (1e-5, "class", "a benchmark")
    assert "host_link_gbytes_per_s" not in found


def test_what_was_published_of_a_device_counts_before_its_class(tmp_path: Path) -> None:
    reached = {"bandwidth_gbytes_per_s": 910, "source": "somebody"}
    found = known(
        tmp_path, ENTRY | {"reached": reached, "assumed": {"ffn_gflops": 50_000, "source": "nobody"}}
    )
    assert found["bandwidth_gbytes_per_s"] == (910, "published", "somebody")
    assert found["ffn_gflops"] == (50_000, "assumed", "nobody")


def test_no_bandwidth_is_more_than_what_a_program_that_reads_gets(tmp_path: Path) -> None:
    found = known(tmp_path, ENTRY | {"reached": {"read_gbytes_per_s": 550, "source": "somebody"}})
    assert found["bandwidth_gbytes_per_s"] == (550, "published", "somebody")
    assert found["attention_bandwidth_gbytes_per_s"] == (500, "class", "a benchmark")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidth": 3}, r"catalogue.yaml: hardware\[0\].bandwidth: unknown key"),
        ({"class": "toaster"}, r"hardware\[0\].class: expected "),
        ({"memory_bytes": 24}, r"hardware\[0\].memory_bytes: .*is 24GB meant"),
        ({"kind": "link"}, "expected kind link with classes wired and wireless only"),
        ({"data_sheet": {"source": "a sheet"}}, "expected data_sheet.bandwidth_gbytes_per_s"),
        ({"data_sheet": {"bandwidth_gbytes_per_s": 1}}, r"hardware\[0\].data_sheet.source: expected a value"),
    ],
)
def test_a_wrong_entry_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(HardwareFileError, match=message):
        read_catalogue(written(tmp_path, ENTRY | change), tmp_path / "reached.yaml")


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HardwareFileError, match=r"hardware\[1\].name: 'card' again"):
        read_catalogue(written(tmp_path, ENTRY, ENTRY), tmp_path / "reached.yaml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidth_share": 1.2}, "discrete-gpu.bandwidth_share: expected a share, at most 1, found 1.2"),
        ({"bandwith_share": 1.0}, "discrete-gpu.bandwith_share: unknown key"),
        ({"assumed": ["speed"]}, "discrete-gpu.assumed: expected names of figures, found 'speed'"),
        ({"row_costs": {1: 1.0}}, "row_costs: expected rows from 2 on"),
        ({"row_costs": {2: 1.5, 4: 1.4}}, "row_costs: expected passes of more rows to take at least as long"),
    ],
)
def test_a_wrong_class_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path, ENTRY, shares=SHARES | change)
    with pytest.raises(HardwareFileError, match=f"reached.yaml: .*{message}"):
        read_catalogue(path, tmp_path / "reached.yaml")


def test_a_class_that_is_missing_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, ENTRY)
    (tmp_path / "reached.yaml").write_text(yaml.safe_dump(dict.fromkeys(CLASSES[1:], SHARES)))
    with pytest.raises(HardwareFileError, match=r"reached.yaml: discrete-gpu: expected just the classes"):
        read_catalogue(path, tmp_path / "reached.yaml")


def test_the_fields_of_items_are_those_of_devices() -> None:
    assert set(HardwareItem.model_fields) - {"use"} == set(DeviceModel.model_fields) - {"kind"}
