"""Single changes to a cluster: all are tried, none makes it slower than noise, the best comes first."""

from __future__ import annotations

from pathlib import Path

import pytest

from placement.cluster_file import load_cluster
from placement.cluster_spec import ClusterSpec, LinkSpec
from placement.errors import ClusterFileError
from placement.study.routing_source import SyntheticSource
from placement.traces import GENERAL
from placement.whatif import changes, rank_changes
from placement.workload import Workload
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=12, top_k=2)
LINK = LinkSpec(3e-4, 1e9)
TEXT = """
head: home
nodes:
  - name: home
    price: 900
    devices:
      - name: ram
        kind: ram
        memory_bytes: 238KB
        reserved_bytes: 230KB
        bandwidth_gbytes_per_s: 1
        ffn_gflops: 10
        price_per_gbyte: 4e9
  - name: attic
    devices: [{name: ram, kind: ram, memory_bytes: 24KB, bandwidth_gbytes_per_s: 1, ffn_gflops: 10}]
links: [{node: attic, round_trip_s: 0.0003, bandwidth_gbits_per_s: 1, upgrade_prices: {2.5: 60}}]
"""


def cluster(folder: Path, text: str = TEXT) -> ClusterSpec:
    path = folder / "cluster.yaml"
    path.write_text(text)
    return load_cluster(path)


def test_every_box_link_and_memory_is_tried_with_the_files_prices(tmp_path: Path) -> None:
    found = {change.what: change.price for change in changes(cluster(tmp_path), LINK)}
    assert found == {
        "RAM of home-ram: 0 GB to 0 GB": pytest.approx(4 * 238000),
        "RAM of attic-ram: 0 GB to 0 GB": None,
        "link to attic: 1 to 2.5 Gbit/s": 60,
        "link to attic: 1 to 10 Gbit/s": None,
        "one more box like home": 900,
        "one more box like attic": None,
    }


def test_the_fastest_comes_first_and_memory_at_home_beats_a_link(tmp_path: Path) -> None:
    size = SHAPE.expert_bytes(16)
    routing = SyntheticSource("g", GENERAL, GENERAL, 600, 0).load(SHAPE)
    result = rank_changes(
        SHAPE, cluster(tmp_path), size, routing, Workload(), policy="least-time", new_link=LINK
    )
    speeds = [outcome.tokens_per_s or 0 for outcome in result.outcomes]
    assert speeds == sorted(speeds, reverse=True)
    assert result.outcomes[0].what.startswith("RAM of home")
    gain = result.gain(result.outcomes[0])
    assert gain is not None
    assert gain > 0.1


def test_a_change_that_makes_it_fit_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    tight = cluster(tmp_path, TEXT.replace("24KB", "16KB"))
    routing = SyntheticSource("g", GENERAL, GENERAL, 600, 0).load(SHAPE)
    result = rank_changes(
        SHAPE, tight, SHAPE.expert_bytes(16), routing, Workload(), policy="least-time", new_link=LINK
    )
    assert result.now.tokens_per_s is None
    fits = {outcome.what[:8] for outcome in result.outcomes if outcome.tokens_per_s is not None}
    assert fits == {"RAM of h", "RAM of a", "one more"}
    assert all(result.gain(outcome) is None for outcome in result.outcomes)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("price: 900", "price: -1", r"nodes\[0\].price"),
        ("4e9", "cheap", "price_per_gbyte"),
        ("{2.5: 60}", "{2.5: -60}", "upgrade_prices"),
    ],
)
def test_prices_are_checked(tmp_path: Path, old: str, new: str, field: str) -> None:
    with pytest.raises(ClusterFileError, match=field):
        cluster(tmp_path, TEXT.replace(old, new))
