"""Figures of a probe in place of those that nobody typed."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from placement.errors import ClusterFileError
from placement.given.cluster_file import load_cluster, load_known_cluster
from placement.given.cluster_spec import Overheads
from placement.given.probe import devices_of, fill, probe_path, ram_device, read_probe, write_probe
from placement.given.probe_figures import Node, Probe
from tests.placement.given.probes import WAKES_S, gpu, link, node, probe

FILE = """
cluster_name: home
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2]}
metadata:
  potluck:
    head: desk
    nodes:
      - {name: desk, address: 10.0.0.1}
      - {name: attic, address: 10.0.0.2}
"""
TYPED = """
head: desk
nodes:
  - {name: desk, address: 10.0.0.1}
  - name: attic
    devices:
      - {name: typed, kind: ram, memory_bytes: 8GB, bandwidth_gbytes_per_s: 7, ffn_gflops: 70}
links:
  - {node: attic, round_trip_s: 0.004, bandwidth_gbits_per_s: 0.5}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "cluster.yaml"
    path.write_text(FILE)
    return path


def test_a_probe_lies_beside_the_file_under_the_clusters_name(file: Path) -> None:
    assert probe_path(file) == file.parent / ".potluck" / "home" / "probe.json"
    plain = file.with_name("plain.yaml")
    plain.write_text(TYPED)
    assert probe_path(plain) == file.parent / ".potluck" / "plain" / "probe.json"


def test_what_is_written_is_read_again_and_is_the_owners_alone(file: Path) -> None:
    where = probe_path(file)
    write_probe(probe(), where)
    assert read_probe(where) == probe()
    assert stat.S_IMODE(where.parent.stat().st_mode) == 0o700


def test_devices_and_links_that_nobody_typed_are_the_probes(file: Path) -> None:
    write_probe(probe(), probe_path(file))
    said: list[str] = []
    cluster = load_known_cluster(file, said.append)
    desk, attic = cluster.nodes
    assert said == ["figures of desk, attic as probed on 2026-11-28"]
    assert [device.kind for device in desk.devices] == ["ram", "disk"]
    assert desk.devices[0].budget_bytes == node().condition.free_bytes
    assert desk.devices[0].bandwidth_bytes_per_s == ram_device(node(), None, None).bandwidth_bytes_per_s
    assert desk.devices[0].overheads.layer_s == probe().software.layer_s
    assert attic.devices[0].overheads.layer_s == 0.0
    assert attic.devices[0].overheads.request_s == node().request_s
    assert attic.link is not None
    assert attic.link.round_trip_s == link().round_trip_s + WAKES_S
    # A third of the bytes at 100 MB/s, two thirds at 50.
    assert attic.link.bandwidth_bytes_per_s == pytest.approx(60e6)


@pytest.mark.parametrize("plain", [20e9, 90e9])
def test_memory_is_as_fast_as_kernels_read_it_and_not_as_plain_sums_do(plain: float) -> None:
    quick = node(one_row_flops=60e9, read_bytes_per_s=plain)
    found = ram_device(quick, None, None)
    # 60 GFLOP/s with one row of q8_0 (8.5 bits a weight) are 60e9 / 2 * 8.5 / 8 bytes a second.
    assert found.bandwidth_bytes_per_s == pytest.approx(60e9 / 2 * 8.5 / 8)


def test_a_card_is_a_device_whose_margin_is_reserved() -> None:
    box = node(gpus=(gpu("cuda:0"), gpu("cuda:1", free_bytes=200_000_000)))
    ram, first, second, disk = devices_of(box, None)
    assert [ram.kind, disk.kind] == ["ram", "disk"]
    assert (first.name, first.kind, first.torch_device) == ("gpu0", "vram", "cuda:0")
    # 23 GB are free, of which 5% stay free.
    assert first.budget_bytes == 21_850_000_000
    # Less than what always stays free.
    assert (second.torch_device, second.budget_bytes) == ("cuda:1", 0)
    # 1.4 TFLOP/s with one row of q8_0 (8.5 bits a weight).
    assert first.bandwidth_bytes_per_s == pytest.approx(1.4e12 / 2 * 8.5 / 8)
    assert first.host_link_bytes_per_s == 20e9
    assert [rates.form for rates in first.kernels] == ["q8_0"]
    assert first.overheads == Overheads(request_s=2e-5)


def test_the_card_that_the_head_computes_on_comes_first_with_the_heads_software() -> None:
    software = probe().software
    head, ram, other, _ = devices_of(node(gpus=(gpu("cuda:0"), gpu("cuda:1"))), software, "cuda:1")
    assert [head.torch_device, ram.kind, other.torch_device] == ["cuda:1", "ram", "cuda:0"]
    assert (head.host_link_round_trip_s, other.host_link_round_trip_s) == (2e-5, 0.0)
    assert head.overheads.moe_layer_s == software.moe_layer_s
    assert head.overheads.pass_s == software.pass_s
    assert head.overheads.layer_s == 0.0
    assert ram.overheads.layer_s == software.layer_s


def test_a_card_as_an_earlier_release_measured_it_is_read_and_is_in_no_plan() -> None:
    old = {
        "name": "a card",
        "memory_bytes": 24_000_000_000,
        "free_bytes": 23_000_000_000,
        "bandwidth_bytes_per_s": 9e11,
        "copy_bytes_per_s": 2e10,
        "flops_per_s": 5e13,
    }
    box = Node.model_validate(node().model_dump() | {"gpus": [old]})
    assert [device.kind for device in devices_of(box, None)] == ["ram", "disk"]


def test_typed_figures_win(file: Path) -> None:
    file.write_text(TYPED)
    write_probe(probe(), probe_path(file))
    said: list[str] = []
    cluster = load_known_cluster(file, said.append)
    assert cluster.nodes[1] == load_cluster(file).nodes[1]
    assert cluster.nodes[0].devices[0].name == "ram"
    assert said == [f"figures of desk as probed on 2026-11-28; those of attic as typed in {file}"]


def test_a_box_keeps_to_the_memory_the_file_allows(file: Path) -> None:
    file.write_text(FILE.replace("10.0.0.2}\n", "10.0.0.2, memory: 3GB}\n"))
    write_probe(probe(), probe_path(file))
    attic = load_known_cluster(file).nodes[1]
    assert attic.devices[0].memory_bytes == 3_000_000_000


def test_links_of_another_head_are_not_taken(file: Path) -> None:
    cluster = fill(load_cluster(file), probe(head="attic"))
    assert cluster.nodes[1].link is None
    assert cluster.nodes[0].devices[0].overheads.layer_s == 0.0


def test_without_a_probe_the_command_is_named(file: Path) -> None:
    with pytest.raises(ClusterFileError, match=r"run `potluck probe .*cluster\.yaml`"):
        load_known_cluster(file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "unknown key"),
        ({"links": {"attic": {}}}, r"links\.attic\.round_trip_s"),
        ({"format": 2}, "format"),
    ],
)
def test_a_damaged_probe_is_one_line_that_names_the_field(
    file: Path, change: dict[str, object], message: str
) -> None:
    where = probe_path(file)
    write_probe(probe(), where)
    where.write_text(json.dumps(json.loads(where.read_text()) | change))
    with pytest.raises(ClusterFileError, match=message) as error:
        load_known_cluster(file)
    assert str(where) in str(error.value)
    assert "\n" not in str(error.value)


def test_rates_must_be_numbers_above_nothing() -> None:
    fields = probe().model_dump()
    fields["links"]["attic"]["there_bytes_per_s"] = 0
    with pytest.raises(ValueError, match="greater than 0"):
        Probe.model_validate(fields)
