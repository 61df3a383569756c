"""`potluck plan --head`: a head that is chosen or moved, and what other commands do with such a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cluster.launcher_file import load_launcher
from orchestrator.cluster.launcher_text import Draft, launcher_text
from orchestrator.cluster.up import check_head
from placement.errors import ClusterFileError
from placement.given.stats import RoutingStats
from placement.given.traces import GENERAL, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH
from placement.plan_file import read_plan
from tests.orchestrator.command_line import Potluck, document, says
from tests.orchestrator.random_plan import random_plan
from tests.placement.shapes import small_shape

CLUSTER = """
head: study
nodes:
  - name: study
    devices:
      - {name: ram, kind: ram, memory_bytes: 96GB, bandwidth_gbytes_per_s: 40, ffn_gflops: 400}
      - {name: ssd, kind: disk, memory_bytes: 500GB, bandwidth_gbytes_per_s: 3, ffn_gflops: 400}
  - name: attic
    devices:
      - {name: ram, kind: ram, memory_bytes: 96GB, bandwidth_gbytes_per_s: 70, ffn_gflops: 900}
links:
  - {node: attic, round_trip_s: 0.0003, bandwidth_gbits_per_s: 2.5}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    (folder / "cluster.yaml").write_text(CLUSTER)
    trace = SyntheticRouter(STEP_3_5_FLASH).trace(GENERAL, 200)
    RoutingStats.from_trace(STEP_3_5_FLASH, trace, "general").save(folder / "general.npz")
    return folder


def arguments(files: Path, *more: object, policy: str = "hottest-per-layer") -> tuple[object, ...]:
    given = ("plan", files / "cluster.yaml", "--model", "step-3.5-flash", "--quant", "q4")
    return (*given, "--policy", policy, "--stats", files / "general.npz", *more)


def test_auto_takes_the_fastest_head_and_says_what_it_is_worth(
    potluck: Potluck, files: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    made = document(potluck(*arguments(files, "--head", "auto", "--out", plan, "--json")))
    assert made["head"] == "attic/ram"
    by_place = {(tried["node"], tried["device"]): tried for tried in made["heads"]}
    assert by_place.keys() == {("study", "ram"), ("attic", "ram")}
    best, named = by_place["attic", "ram"], by_place["study", "ram"]
    assert (best["chosen"], best["named"], named["chosen"], named["named"]) == (True, False, False, True)
    assert best["tokens_per_s"] == pytest.approx(made["tokens_per_s"])
    assert best["prefill_tokens_per_s"] == pytest.approx(made["prefill_tokens_per_s"])
    assert named["gain"] == 0
    assert best["gain"] > 0.2
    assert (best["promised"], named["promised"]) == (True, False)
    written = read_plan(plan)
    assert written.head_tier is not None
    assert written.tiers[written.head_tier].node == "attic"
    # As if the file had named it.
    same = document(potluck(*arguments(files, "--head", "attic", "--no-predict", "--json")))
    assert same["devices"] == made["devices"]
    assert (same["head"], same["heads"]) == ("attic/ram", [])


def test_a_plan_with_the_heads_of_the_file_says_that_another_would_be_faster(
    potluck: Potluck, files: Path
) -> None:
    code, out, err = potluck(*arguments(files))
    assert code == 0, err
    words = " ".join(out.split())
    assert "With the head on attic/ram a whole step would be" in words
    assert "--head auto" in words
    code, out, err = potluck(*arguments(files, "--head", "auto"))
    assert code == 0, err
    words = " ".join(out.split())
    assert "The head on attic/ram instead of study/ram: whole steps" in words
    assert "a whole step would be" not in words
    assert "set `head: attic` there" in " ".join(err.split())


def test_simulate_and_replanning_keep_a_plans_head_where_it_is(
    potluck: Potluck, files: Path, tmp_path: Path
) -> None:
    plan, again = tmp_path / "plan.json", tmp_path / "again.json"
    made = document(potluck(*arguments(files, "--head", "attic", "--out", plan, "--json")))
    simulating = ("simulate", plan, "--cluster", files / "cluster.yaml", "--trace", files / "general.npz")
    code, out, err = potluck(*simulating)
    assert code == 0, err
    assert "simulated with the head on attic/ram" in " ".join(err.split())
    simulated = document(potluck(*simulating, "--json"))
    assert simulated["step_time_s"]["mean"] == pytest.approx(made["step_time_s"])
    moved = (*arguments(files, "--no-predict", policy="least-time"), "--current", plan)
    moved = (*moved, "--move-bytes", "1MB", "--out", again, "--json")
    assert document(potluck(*moved))["head"] == "attic/ram"
    code, out, err = potluck(*moved, "--head", "study")
    assert (code, out) == (2, "")
    assert says(err, "--head with --current: … leave out --head")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("barn", "--head: … auto … study, attic … NODE/DEVICE, found 'barn'"),
        ("study/gpu", "--head: expected one of study/ram, found 'study/gpu'"),
        ("study/ssd", "--head: expected one of study/ram, found 'study/ssd'"),
    ],
)
def test_a_place_that_is_none_is_one_line(potluck: Potluck, files: Path, place: str, expected: str) -> None:
    code, out, err = potluck(*arguments(files, "--head", place))
    assert (code, out) == (2, "")
    assert says(err, expected)


def test_where_no_head_fits_the_file_is_named(potluck: Potluck, files: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(CLUSTER.replace("96GB", "6GB"))
    given = ("plan", small, "--model", "step-3.5-flash", "--head", "auto")
    code, out, err = potluck(*given)
    assert (code, out) == (2, "")
    assert "small.yaml: " in err
    assert "more than its memory_bytes" in " ".join(err.split())


def test_up_refuses_a_plan_whose_head_is_another_box(tmp_path: Path) -> None:
    file = tmp_path / "home.yaml"
    nodes = {"study": "192.168.1.10", "attic": "192.168.1.11"}
    file.write_text(launcher_text(Draft("home", "study", nodes, "anna", "~/.ssh/id")))
    launcher = load_launcher(file)
    plan = random_plan(small_shape(), 1, seed=0)
    here = tuple(replace(tier, node="study") if tier.worker == "head" else tier for tier in plan.tiers)
    check_head(replace(plan, tiers=here), file, launcher)
    there = tuple(replace(tier, node="attic") if tier.worker == "head" else tier for tier in plan.tiers)
    with pytest.raises(
        ClusterFileError, match=r"head on attic, .* on study: set `head: attic`.*--head study"
    ):
        check_head(replace(plan, tiers=there), file, launcher)
