"""Cluster files: the shipped one is valid for Ray and for us, wrong ones are refused by field."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from placement.answers.planner import make_plan
from placement.errors import ClusterFileError
from placement.given.cluster_file import check_figures, load_cluster, load_known_cluster
from placement.given.cluster_spec import ClusterSpec, NodeSpec
from placement.given.kernel_rates import NO_ROW_COSTS, KernelRates, RowCosts
from placement.given.problem import planning_devices
from placement.model_shape import STEP_3_5_FLASH
from placement.weight_format import planned_format

SHIPPED = Path(__file__).parents[3] / "cluster.yaml"

GPU_BOX: dict[str, Any] = {
    "name": "study",
    "devices": [
        {
            "name": "gpu",
            "kind": "vram",
            "memory_bytes": "24GB",
            "reserved_bytes": "14GB",
            "bandwidth_gbytes_per_s": 936,
            "ffn_gflops": 60000,
        },
        {
            "name": "ram",
            "kind": "ram",
            "memory_bytes": "64GiB",
            "bandwidth_gbytes_per_s": 65.5,
            "ffn_gflops": 500,
        },
    ],
}
CPU_BOX: dict[str, Any] = {
    "name": "attic",
    "address": "192.168.1.12",
    "devices": [
        {
            "name": "ram",
            "kind": "ram",
            "memory_bytes": 64000000000,
            "bandwidth_gbytes_per_s": 40,
            "ffn_gflops": 300,
        }
    ],
}
LINK: dict[str, Any] = {"node": "attic", "round_trip_s": 0.0003, "bandwidth_gbits_per_s": 2.5}


def good() -> dict[str, Any]:
    document = {"head": "study", "nodes": [GPU_BOX, CPU_BOX], "links": [LINK]}
    return json.loads(json.dumps(document))  # type: ignore[no-any-return]


def load(tmp_path: Path, document: object) -> ClusterSpec:
    path = tmp_path / "boxes.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return load_cluster(path)


def test_the_shipped_file_is_a_valid_ray_cluster_file() -> None:
    ray = importlib.util.find_spec("ray")
    assert ray is not None
    assert ray.submodule_search_locations is not None
    schema_file = Path(ray.submodule_search_locations[0]) / "autoscaler" / "ray-schema.json"
    jsonschema.validate(yaml.safe_load(SHIPPED.read_text()), json.loads(schema_file.read_text()))


def test_the_shipped_boxes_hold_step_3_5_flash_together_and_none_alone() -> None:
    cluster = load_cluster(SHIPPED)
    assert len(cluster.nodes) == 3
    size = STEP_3_5_FLASH.expert_bytes(planned_format("q4").bits)
    make_plan(STEP_3_5_FLASH, cluster, policy="uniform", dtype="q4", expert_bytes=size)
    needed = size * STEP_3_5_FLASH.num_routed_experts
    assert all(sum(d.memory_bytes for d in node.devices) < needed for node in cluster.nodes)


def test_the_shipped_addresses_are_those_ray_starts() -> None:
    document = yaml.safe_load(SHIPPED.read_text())
    provider = document["provider"]
    addresses = [node.address for node in load_cluster(SHIPPED).nodes]
    assert addresses == [provider["head_ip"], *provider["worker_ips"]]
    assert document["max_workers"] == len(provider["worker_ips"])


def test_a_node_needs_a_name_and_an_address_only(tmp_path: Path) -> None:
    nodes = [{"name": "study", "address": "192.168.1.10"}, {"name": "attic", "address": "192.168.1.11"}]
    cluster = load(tmp_path, {"head": "study", "nodes": nodes})
    assert [node.devices for node in cluster.nodes] == [(), ()]
    assert cluster.nodes[1] == NodeSpec("attic", "192.168.1.11", (), None)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"nodes": [{"name": "study"}]}, r"boxes.yaml: node 'study' has no device .*`potluck probe"),
        (
            {"nodes": [GPU_BOX, {"name": "attic"}, {"name": "den"}]},
            r"node 'attic' has no device typed or measured, nor have others: run `potluck probe ",
        ),
        (
            {"nodes": [GPU_BOX, CPU_BOX]},
            "node 'attic' has no link to the head typed .* or type it under links: - {node: attic, hard",
        ),
    ],
)
def test_a_plan_needs_what_is_neither_typed_nor_measured(
    document: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "boxes.yaml"
    cluster = load(tmp_path, {"head": "study"} | document)
    with pytest.raises(ClusterFileError, match=message) as found:
        check_figures(cluster, path)
    assert len(str(found.value).splitlines()) == 1
    with pytest.raises(ClusterFileError, match=message):
        load_known_cluster(path)


def test_a_head_without_devices_needs_none_where_others_have_some(tmp_path: Path) -> None:
    document = good()
    document["nodes"][0] = {"name": "study"}
    assert load(tmp_path, document).unknown_nodes == ()


def test_how_a_box_is_reached_is_read(tmp_path: Path) -> None:
    document = good()
    document["nodes"][1] |= {
        "ssh_user": "anna",
        "ssh_port": 2222,
        "model": "/data/step",
        "venv": "~/v",
        "network": "cable",
    }
    attic = load(tmp_path, document).nodes[1]
    assert (attic.ssh_user, attic.ssh_port, attic.model, attic.venv) == ("anna", 2222, "/data/step", "~/v")
    assert attic.network == "cable"
    study = load(tmp_path, document).nodes[0]
    assert (study.ssh_user, study.ssh_port, study.model, study.network) == (None, 22, None, None)
    assert study.venv == "~/potluck/.venv"


@pytest.mark.parametrize(
    ("memory", "reserved", "cap", "left"),
    [
        # A cap above what the box has changes nothing, nor does it take what is reserved twice.
        ("64GB", "4GB", "100GB", 60),
        ("64GB", "4GB", "62GB", 60),
        ("64GB", "4GB", "24GB", 24),
        ("64GB", "50GB", "24GB", 14),
        ("64GB", "4GB", 0, 0),
    ],
)
def test_a_cap_bounds_what_experts_take(
    memory: str, reserved: str, cap: object, left: int, tmp_path: Path
) -> None:
    document = good()
    ram = document["nodes"][1]["devices"][0] | {"memory_bytes": memory, "reserved_bytes": reserved}
    document["nodes"][1] |= {"devices": [ram], "memory": cap}
    (device,) = load(tmp_path, document).nodes[1].devices
    assert device.budget_bytes == left * 10**9


def test_a_cap_is_shared_by_a_boxs_memories_and_no_matter_of_its_gpu(tmp_path: Path) -> None:
    document = good()
    gpu, ram = document["nodes"][0]["devices"]
    second = ram | {"name": "far", "memory_bytes": "50GB"}
    document["nodes"][0] |= {"devices": [gpu, ram | {"memory_bytes": "50GB"}, second], "memory": "70GB"}
    devices = load(tmp_path, document).head_node.devices
    assert [device.budget_bytes // 10**9 for device in devices] == [10, 50, 20]


def test_a_cap_counts_the_heads_own_needs(tmp_path: Path) -> None:
    """What the head needs comes out of the cap, not out of what lies above it."""
    document = good()
    document["nodes"][0] = {**CPU_BOX, "name": "study", "address": "192.168.1.10", "memory": "30GB"}
    head = planning_devices(load(tmp_path, document), head_bytes=20 * 10**9)[0]
    assert head.tier.budget_bytes == 10 * 10**9


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("address", "attic.local", "expected an IPv4 address such as 192.168.1.11, found 'attic.local'"),
        ("address", "fe80::1", "found IPv6: 'fe80::1'"),
        ("address", "0.0.0.0", "expected the address of one box, found '0.0.0.0'"),
        ("address", 10, "expected an IPv4 address"),
        ("ssh_user", "-oProxyCommand=x", "expected letters, digits"),
        ("ssh_port", 0, "expected a port, 1 to 65535, found 0"),
        ("ssh_port", True, "expected a port, 1 to 65535, found True"),
        ("model", "step", "expected a path that begins with / or ~/, found 'step'"),
        ("venv", "/a\nb", "expected a path that begins with / or ~/"),
        ("memory", 24, "is 24GB meant"),
        ("network", "fibre", "expected 'cable' or 'wifi', found 'fibre'"),
    ],
)
def test_a_wrong_way_to_a_box_is_refused(field: str, value: object, message: str, tmp_path: Path) -> None:
    document = good()
    document["nodes"][1][field] = value
    with pytest.raises(ClusterFileError, match=rf"nodes\[1\].{field}: .*{message}"):
        load(tmp_path, document)


def test_two_boxes_have_two_addresses(tmp_path: Path) -> None:
    document = good()
    document["nodes"][0]["address"] = document["nodes"][1]["address"]
    with pytest.raises(
        ClusterFileError, match=r"nodes: expected unique addresses, found '192\.168\.1\.12' 2"
    ):
        load(tmp_path, document)


@pytest.mark.parametrize("nested", [True, False])
def test_units_become_bytes_and_seconds(tmp_path: Path, nested: bool) -> None:
    document = good()
    if nested:
        document = {"cluster_name": "x", "provider": {"type": "local"}, "metadata": {"potluck": document}}
    cluster = load(tmp_path, document)
    gpu, ram = cluster.head_node.devices
    assert gpu.budget_bytes == 10_000_000_000
    assert gpu.torch_device == "cuda"
    assert ram.memory_bytes == 64 * 2**30
    assert ram.torch_device == "cpu"
    assert ram.bandwidth_bytes_per_s == 65.5e9
    assert ram.ffn_flops_per_s == 500e9
    attic = cluster.nodes[1]
    assert attic.link is not None
    assert attic.link.round_trip_s == 0.0003
    assert attic.link.bandwidth_bytes_per_s == 312_500_000
    assert attic.address == "192.168.1.12"
    assert cluster.head_node.link is None


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("memory_bytes", "9" * 400, "expected a size of memory that exists, found '9999"),
        ("memory_bytes", "999999999999TB", "expected a size of memory that exists"),
        ("ffn_gflops", 10**400, r"expected a number of at most 1e\+18, found 1000"),
        ("ffn_gflops", float("inf"), r"expected a number of at most 1e\+18, found inf"),
        ("ffn_gflops", float("nan"), "expected a number, found nan"),
        ("ffn_gflops", 1e-300, "expected a number of at least 1e-18, found 1e-300"),
    ],
)
def test_numbers_of_no_device_are_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    document = good()
    document["nodes"][1]["devices"][0][field] = value
    with pytest.raises(ClusterFileError, match=rf"devices\[0\].{field}: {message}") as caught:
        load(tmp_path, document)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("nodes", 1, "devices", 0, "memory_bytes"), 128, "found 128, which is 128 B: is 128GB meant?"),
        (("nodes", 1, "devices", 0, "memory_bytes"), " 0.5 ", "is 0.5GB meant?"),
        (("nodes", 1, "devices", 0, "memory_bytes"), 64000, "which is 64.0 kB: is 64000MB meant?"),
        (("nodes", 1, "devices", 0, "reserved_bytes"), 6, "found 6, which is 6 B: is 6GB meant?"),
        (
            ("nodes", 1, "devices", 0, "reserved_bytes"),
            "80GB",
            "at most memory_bytes (64.0 GB), found 80.0 GB",
        ),
        (
            ("links", 0, "round_trip_s"),
            0.3,
            "expected seconds, at most 0.2, found 0.3: are 0.3 ms meant? Then write 0.0003",
        ),
        (("links", 0, "round_trip_s"), "2", "are 2 ms meant? Then write 0.002"),
        (
            ("nodes", 1, "devices", 0, "bandwidth_gbytes_per_s"),
            67200,
            "expected GB/s, at most 20,000, found 67200: is it in MB/s? Then write 67.2",
        ),
        (
            ("nodes", 1, "devices", 0, "ffn_gflops"),
            3e8,
            "at most 10,000,000, found 300000000.0: is it in MFLOP/s? Then write 300000",
        ),
        (
            ("links", 0, "bandwidth_gbits_per_s"),
            2.5e9,
            "at most 10,000, found 2500000000.0: is it in Mbit/s?",
        ),
    ],
)
def test_a_figure_in_another_unit_is_refused_with_what_to_write(
    tmp_path: Path, path: tuple[Any, ...], value: object, message: str
) -> None:
    document: Any = good()
    target = document
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ClusterFileError, match=rf"{path[-1]}: .*{re.escape(message)}"):
        load(tmp_path, document)


def test_small_memory_with_its_unit_and_slow_links_are_taken(tmp_path: Path) -> None:
    document = good()
    document["nodes"][1]["devices"][0] |= {"memory_bytes": "24KB", "reserved_bytes": 0}
    document["links"][0]["round_trip_s"] = 0.2
    cluster = load(tmp_path, document)
    assert cluster.nodes[1].devices[0].memory_bytes == 24_000
    assert cluster.nodes[1].link is not None
    assert cluster.nodes[1].link.round_trip_s == 0.2


def test_long_names_and_long_lists_of_them_are_cut_in_errors(tmp_path: Path) -> None:
    document = good()
    document["x" * 5000] = 1
    with pytest.raises(ClusterFileError, match=r"x…: unknown key") as raised:
        load(tmp_path, document)
    assert len(str(raised.value)) < 400
    document = good()
    document["nodes"] += [{"name": f"box{index}"} for index in range(1000)]
    document["head"] = "y" * 5000
    with pytest.raises(ClusterFileError, match=r"box9 and 990 more\), found 'yyy") as raised:
        load(tmp_path, document)
    assert len(str(raised.value)) < 400


def test_numbers_yaml_takes_for_text_are_read(tmp_path: Path) -> None:
    text = yaml.safe_dump(good()).replace("0.0003", "3e-4")
    cluster = load(tmp_path, text)
    assert cluster.nodes[1].link is not None
    assert cluster.nodes[1].link.round_trip_s == 0.0003


def test_what_keys_and_rows_cost_reaches_the_planner(tmp_path: Path) -> None:
    document = good()
    gpu = document["nodes"][0]["devices"][0]
    gpu |= {"attention_bandwidth_gbytes_per_s": 400, "row_costs": {4: 1.6, 2: 1.2}}
    head, ram, _ = planning_devices(load(tmp_path, document))
    assert head.attention_bandwidth_bytes_per_s == 400e9
    assert head.row_costs == RowCosts((1, 2, 4), (1.0, 1.2, 1.6))
    assert (ram.row_costs, ram.attention_bandwidth_bytes_per_s) == (NO_ROW_COSTS, None)


def test_measured_software_and_shared_machines_reach_the_planner(tmp_path: Path) -> None:
    document = good()
    gpu, ram = document["nodes"][0]["devices"]
    gpu |= {"host_link_gbytes_per_s": 25, "attention_gflops": 9000, "overheads": {"message_s": 1e-4}}
    ram |= {"cores": 4, "overheads": {"request_s": 2e-4}, "kernels": {"q4": {4: 90, 1: 50}}}
    document["machines"] = [
        {"name": "tower", "nodes": ["study", "attic"], "cores": 16, "bandwidth_gbytes_per_s": 80}
    ]
    devices = {device.tier.name: device for device in planning_devices(load(tmp_path, document))}
    head, home = devices["head"], devices["study-ram"]
    assert (head.host_link_bytes_per_s, head.attention_flops_per_s) == (25e9, 9e12)
    assert (head.overheads.message_s, home.overheads.request_s, home.cores) == (1e-4, 2e-4, 4)
    assert home.kernels == (KernelRates("q4_k", (1, 4), (50e9, 90e9)),)
    assert head.machine is None  # memory of its own
    assert home.machine is devices["attic-ram"].machine
    assert home.machine is not None
    assert home.machine.bandwidth_bytes_per_s == 80e9


def test_rows_of_a_gpu_head_cross_the_host_link_to_the_other_devices_of_its_box(tmp_path: Path) -> None:
    document = good()
    gpu, _ = document["nodes"][0]["devices"]

    def reached() -> dict[str, tuple[float, float]]:
        devices = planning_devices(load(tmp_path, document))
        return {device.tier.name: (device.round_trip_s, device.link_bytes_per_s) for device in devices}

    without = reached()
    assert without["head"] == without["study-ram"] == (0.0, math.inf)
    attic_s, attic_bytes_per_s = without["attic-ram"]
    gpu |= {"host_link_round_trip_s": 2e-5}
    without["attic-ram"] = attic_s + 2e-5, attic_bytes_per_s
    assert reached() == without | {"study-ram": (2e-5, math.inf)}
    gpu |= {"host_link_gbytes_per_s": 25}
    assert reached() == without | {"study-ram": (2e-5, 25e9)}
    # What was measured between processes of the box counts in its place.
    document["links"].append({"node": "study", "round_trip_s": 1e-4, "bandwidth_gbits_per_s": 8})
    assert reached() == without | {"study-ram": (1e-4, 1e9)}


@pytest.mark.parametrize(
    ("machines", "message"),
    [
        ([["study", "cellar"]], r"machines\[0\].nodes: expected some of the nodes \(study, attic.*'cellar'"),
        ([["study"], ["study"]], r"machines\[1\].nodes: .*found 'study' on"),
    ],
)
def test_a_machine_of_unknown_or_shared_nodes_is_refused(
    tmp_path: Path, machines: list[list[str]], message: str
) -> None:
    document = good()
    document["machines"] = [
        {"name": f"m{i}", "nodes": nodes, "cores": 2, "bandwidth_gbytes_per_s": 20}
        for i, nodes in enumerate(machines)
    ]
    with pytest.raises(ClusterFileError, match=message):
        load(tmp_path, document)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernels": {"q4": {2: 50}}}, r"devices\[1\].kernels.'q4': expected .* 1 row among them"),
        (
            {"kernels": {"q99": {1: 50}}},
            r"devices\[1\].kernels.'q99': quantisation 'q99': expected .*attention",
        ),
        ({"row_costs": {1: 1.0}}, r"devices\[1\].row_costs: expected rows from 2 on"),
        ({"row_costs": {2: 0.9}}, r"row_costs: expected passes of more rows to take at least"),
        (
            {"attention_bandwidth_gbytes_per_s": 0},
            r"attention_bandwidth_gbytes_per_s: expected a number above",
        ),
        ({"kernels": {"q4": {0: 50}}}, r"kernels.q4.0.*expected a number of rows, 1 to 65,536, found 0"),
        ({"host_link_gbytes_per_s": 25}, r"devices\[1\].host_link_gbytes_per_s: expected on devices of kind"),
        (
            {"host_link_round_trip_s": 1e-5},
            r"devices\[1\].host_link_round_trip_s: expected on devices of kind",
        ),
        (
            {"kind": "vram", "host_link_round_trip_s": 1e-5},
            r"devices\[1\].host_link_round_trip_s: expected on the first device of the head's node",
        ),
        (
            {"overheads": {"request_ms": 1}},
            r"overheads.request_ms: unknown key",
        ),
        ({"overheads": {"request_s": -1}}, r"overheads.request_s: .*found -1"),
        ({"name": "x" * 65}, r"devices\[1\].name: expected a shorter text, found 'xxx"),
        (
            {"overheads": {"layer_s": 1e-4, "batch_s": -2e-4}},
            r"overheads.batch_s: .*-layer_s.*found -0.0002",
        ),
    ],
)
def test_wrong_software_or_a_bus_without_a_gpu_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    document = good()
    document["nodes"][0]["devices"][1] |= change
    with pytest.raises(ClusterFileError, match=message):
        load(tmp_path, document)


def test_a_number_too_long_to_show_is_refused_in_a_line(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    document = good()
    document["nodes"][0]["devices"][0]["ffn_gflops"] = "HERE"
    path.write_text(yaml.safe_dump(document).replace("HERE", "0x" + "f" * 5000))
    with pytest.raises(ClusterFileError, match=r"ffn_gflops: expected a number.*found a number of thousands"):
        load_cluster(path)


@pytest.mark.parametrize("name", ["message_s", "message_row_s", "pass_s", "draft_s"])
def test_software_of_the_head_alone_is_refused_elsewhere(tmp_path: Path, name: str) -> None:
    document = good()
    gpu, ram = document["nodes"][0]["devices"]
    gpu["overheads"] = {name: 1e-4}
    ram["overheads"] = {"request_s": 1e-4, "row_s": 1e-4}
    load(tmp_path, document)
    ram["overheads"][name] = 1e-4
    message = rf"nodes\[0\].devices\[1\].overheads.{name}: .* device 'ram' of node 'study', where it has no"
    with pytest.raises(ClusterFileError, match=message):
        load(tmp_path, document)


def test_software_of_layers_is_refused_where_no_layer_runs(tmp_path: Path) -> None:
    document = good()
    document["nodes"][1]["devices"][0] |= {"kind": "disk", "overheads": {"layer_s": 1e-4}}
    with pytest.raises(
        ClusterFileError, match=r"nodes\[1\].devices\[0\].overheads.layer_s: .* has no effect"
    ):
        load(tmp_path, document)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["heads"], 1, "heads: unknown key.*head, nodes, links"),
        (["nodes", 1, "cpu"], 1, r"nodes\[1\].cpu: unknown key"),
        (
            ["nodes", 0, "devices", 1, "size"],
            1,
            r"nodes\[0\].devices\[1\].size: unknown key",
        ),
        (["links", 0, "speed"], 1, r"links\[0\].speed: unknown key"),
        (["head"], ..., r"head: expected one of the nodes \(study, attic\), found nothing"),
        (["head"], "cellar", r"head: .*found 'cellar'"),
        (["nodes"], [], r"head: expected one of the nodes \(no nodes\)"),
        (
            ["nodes", 1],
            "attic",
            r"nodes\[1\]: expected a mapping with name, address, devices, .*, found",
        ),
        (["nodes", 1, "name"], "study", "nodes: expected unique names, found 'study' 2 times"),
        (["nodes", 1, "name"], "the attic", r"nodes\[1\].name: expected letters, digits"),
        (
            ["nodes", 0, "devices", 1, "name"],
            "gpu",
            r"nodes\[0\].devices: expected unique names, found 'gpu'",
        ),
        (
            ["nodes", 0, "devices", 0, "kind"],
            "hbm",
            r"nodes\[0\].devices\[0\].kind: .*found 'hbm'",
        ),
        (
            ["nodes", 0, "devices", 0, "memory_bytes"],
            -1,
            r"nodes\[0\].devices\[0\].memory_bytes: .*found -1",
        ),
        (
            ["nodes", 0, "devices", 0, "memory_bytes"],
            "24 gigs",
            r"nodes\[0\].devices\[0\].memory_bytes: expected bytes or a size",
        ),
        (
            ["nodes", 0, "devices", 0, "memory_bytes"],
            True,
            r"nodes\[0\].devices\[0\].memory_bytes: expected bytes or a size",
        ),
        (
            ["nodes", 0, "devices", 0, "memory_bytes"],
            ...,
            r"nodes\[0\].devices\[0\].memory_bytes: expected a value, found nothing",
        ),
        (
            ["nodes", 0, "devices", 0, "reserved_bytes"],
            "25GB",
            r"nodes\[0\].devices\[0\].reserved_bytes: expected at most memory_bytes",
        ),
        (
            ["nodes", 0, "devices", 0, "bandwidth_gbytes_per_s"],
            0,
            r"nodes\[0\].devices\[0\].bandwidth_gbytes_per_s: .*found 0",
        ),
        (
            ["nodes", 0, "devices", 0, "ffn_gflops"],
            "fast",
            r"nodes\[0\].devices\[0\].ffn_gflops: expected a number, found 'fast'",
        ),
        (
            ["nodes", 0, "devices", 0, "ffn_gflops"],
            float("nan"),
            r"nodes\[0\].devices\[0\].ffn_gflops: expected a number, found nan",
        ),
        (
            ["nodes", 0, "devices", 0, "ffn_gflops"],
            float("inf"),
            r"nodes\[0\].devices\[0\].ffn_gflops: .*found inf",
        ),
        (["links", 0, "round_trip_s"], -0.1, r"links\[0\].round_trip_s: expected a number of at least 0"),
        (["links", 0, "round_trip_s"], None, r"links\[0\].round_trip_s: expected a value"),
        (["links", 0, "node"], "cellar", r"links\[0\].node: .*found 'cellar'"),
        (["links"], [LINK, LINK], r"links\[1\].node: .*found a second for 'attic'"),
        (["links"], "none", r"links: expected a list, found 'none'"),
    ],
)
@pytest.mark.parametrize("nested", [True, False])
def test_a_wrong_field_is_refused_by_its_path(
    tmp_path: Path, path: list[Any], value: Any, message: str, nested: bool
) -> None:
    document = good()
    target: Any = document
    for key in path[:-1]:
        target = target[key]
    if value is ...:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    prefix = "metadata.potluck." if nested else ""
    with pytest.raises(ClusterFileError, match=f"boxes.yaml: {prefix}{message}") as caught:
        load(tmp_path, {"metadata": {"potluck": document}} if nested else document)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a mapping with head, nodes and links, found nothing"),
        ("- 1", "expected a mapping"),
        ("a: [", "not YAML"),
        (
            "cluster_name: x\nprovider: {type: local}\n",
            "metadata.potluck: expected head, nodes and links there",
        ),
        ("metadata: {other: 1}\n", "metadata.potluck: expected head, nodes and links there"),
        (
            "metadata: {potluck: 3}\n",
            "metadata.potluck: .*found 3",
        ),
    ],
)
def test_a_file_that_is_no_cluster_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ClusterFileError, match=message):
        load(tmp_path, text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterFileError, match=r"none.yaml: No such file"):
        load_cluster(tmp_path / "none.yaml")


def test_a_misspelt_key_is_named_before_the_one_that_is_then_missing(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "head: a\nnodes:\n  - name: a\n    devices:\n"
        "      - {name: ram, kind: ram, memory: 64GB, bandwidth_gbytes_per_s: 60, ffn_gflops: 500}\n"
    )
    with pytest.raises(ClusterFileError, match=r"devices\[0\]\.memory: unknown key"):
        load_cluster(path)
