"""`potluck simulate` on a plan for the shipped model: the promised keys, and one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from placement.answers.planner import make_plan
from placement.given.cluster_file import load_cluster
from placement.given.stats import RoutingStats
from placement.plan_file import write_plan
from placement.workload import DEFAULT_CONTEXT, Workload
from tests.orchestrator.command_line import Potluck, document, says
from tests.placement.runs import SHAPE, random_trace
from workers.model_config import Step35Config

MODEL = Path(__file__).parents[2] / "models" / "potluck-tiny"
COUNTS = MODEL / "routing.npz"
CLUSTER = """
head: study
nodes:
  - name: study
    devices:
      - {name: ram, kind: ram, memory_bytes: 14MB, bandwidth_gbytes_per_s: 20, ffn_gflops: 100}
  - name: attic
    devices:
      - {name: ram, kind: ram, memory_bytes: 1GB, bandwidth_gbytes_per_s: 20, ffn_gflops: 100}
links:
  - {node: attic, round_trip_s: 0.0003, bandwidth_gbits_per_s: 1}
"""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = Step35Config.load(MODEL).shape("potluck-tiny")
    path = tmp_path_factory.mktemp("trace") / "trace.npz"
    RoutingStats.from_trace(shape, random_trace(0, 300, shape), "test").save(path)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A cluster file's text, and that of the plan `potluck plan` makes for it."""
    path = tmp_path_factory.mktemp("made") / "cluster.yaml"
    path.write_text(CLUSTER)
    shape = Step35Config.load(MODEL).shape("potluck-tiny")
    plan = make_plan(
        shape,
        load_cluster(path),
        RoutingStats.load(COUNTS, shape),
        "hottest-first",
        dtype="bfloat16",
        expert_bytes=shape.expert_bytes(16),
        workload=Workload(context=DEFAULT_CONTEXT),
    )
    write_plan(plan, path.with_name("plan.json"))
    return CLUSTER, path.with_name("plan.json").read_text()


@pytest.fixture
def simulating(made: tuple[str, str], tmp_path: Path) -> tuple[object, ...]:
    """The command line for files that a test may change."""
    cluster, plan = tmp_path / "cluster.yaml", tmp_path / "plan.json"
    cluster.write_text(made[0])
    plan.write_text(made[1])
    return "simulate", plan, "--cluster", cluster, "--model", MODEL


def test_the_document_has_the_promised_keys(
    potluck: Potluck, simulating: tuple[object, ...], trace: Path
) -> None:
    code, out, err = potluck(*simulating, "--trace", trace, "--tokens-per-step", 2, "--json")
    assert code == 0, err
    found = json.loads(out)
    times = found["step_time_s"]
    assert 0 < times["p50"] <= times["p95"] <= times["p99"] <= times["max"]
    assert times["min"] <= times["mean"] <= times["max"]
    assert found["tokens_per_s"] == pytest.approx(2 / times["mean"])
    assert 0 < found["remote_layers_per_token"] <= 5
    assert set(found["busy"]) == {"head", "attic-ram", "link attic out", "link attic back"}
    assert all(0 <= share <= 1 for share in found["busy"].values())
    assert found["bytes_moved"] == sum(found["bytes_by_link"].values()) > 0


def test_a_lost_worker_ends_the_run_and_says_so(
    potluck: Potluck, simulating: tuple[object, ...], trace: Path
) -> None:
    code, out, err = potluck(*simulating, "--trace", trace, "--lose", "attic@0.01", "--json")
    assert code == 0, err
    assert "attic" in json.loads(out)["stopped"]


def test_people_get_tables(potluck: Potluck, simulating: tuple[object, ...], trace: Path) -> None:
    code, out, err = potluck(*simulating, "--trace", trace)
    assert code == 0, err
    for words in ("What a layer waits for", "attic-ram", "tokens/s (closed form)"):
        assert words in " ".join(out.split())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("--trace", "nowhere.npz"), "nowhere.npz"),
        (("--accept", "0.8,often"), "--accept: … from 0 to 1 … '0.8,often'"),
        (("--accept", "0.8,nan"), "found '0.8,nan'"),
        (("--accept", "0.8", "--tokens-per-step", 3), "expected a multiple of 2"),
        (("--lose", "attic"), "--lose: … WORKER@SECONDS … 'attic"),
        (("--lose", "attic@inf"), "found 'attic@inf'"),
        (("--lose", "head@1"), "--lose: … 'head'"),
        (("--lose", "cellar@1"), "--lose: … attic … 'cellar'"),
        (("--new-plan", "next.json"), "--new-plan: … PLAN.json@SECONDS"),
        (("--new-plan", "next.json@1"), "--new-plan: next.json: "),
        (
            ("--in-flight", 200, "--tokens-per-step", 2),
            "trace.npz: … at least 400 tokens … --in-flight",
        ),
        (
            ("--context", 8000, "--tokens-per-step", 50),
            "cluster.yaml: … node study … device ram … KV cache",
        ),
        (("--context", 10**6), "--context: … at most 8,192 … potluck-tiny"),
        (("--context", 4200), "plan.json: … 'head'"),
        (("--model", "step-3.5-flash"), "plan.json: … another model … potluck-tiny"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    potluck: Potluck, simulating: tuple[object, ...], trace: Path, change: tuple[object, ...], complaint: str
) -> None:
    code, out, err = potluck(*simulating, "--trace", trace, *change)
    assert (code, out) == (2, "")
    assert says(err, complaint), err


def test_a_plan_over_its_own_budget_is_refused(
    potluck: Potluck, simulating: tuple[object, ...], trace: Path
) -> None:
    path = Path(str(simulating[1]))
    plan = json.loads(path.read_text())
    attic = plan["workers"][1]["tiers"][0]
    size = next(iter(plan["layers"].values()))["expert_bytes"]
    held = sum(map(len, attic["experts"].values())) * size
    attic["budget_bytes"] = held - 1
    path.write_text(json.dumps(plan))
    code, out, err = potluck(*simulating, "--trace", trace)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {path}: device 'attic-ram': ")
    assert "1 B more than its budget_bytes of" in err
    assert len(err.splitlines()) == 1


def test_a_context_that_nobody_asked_for_is_no_reason_to_refuse(
    potluck: Potluck, simulating: tuple[object, ...], trace: Path
) -> None:
    many = ("--trace", trace, "--tokens-per-step", 2, "--json")
    found = document(potluck(*simulating, *many))
    (note,) = found["notes"]
    assert "device 'head' holds" in note
    assert "--context 4096" in note
    code, _, err = potluck(*simulating, *many, "--context", 4096)
    assert code == 2
    assert note.endswith(err.strip().removeprefix("error: "))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"layers": "in q4"}, "bfloat16 … 12.3 kB"),
        ({"workers": "swapped"}, "plan.json … head, attic-ram … found attic-ram, head"),
        ({"epoch": -1}, "epoch: … whole number"),
        ({"fingerprint": "0" * 16}, "plan for another model"),
    ],
)
def test_a_new_plan_that_does_not_go_with_the_running_one_is_named(
    potluck: Potluck, simulating: tuple[object, ...], trace: Path, change: dict[str, object], complaint: str
) -> None:
    running = Path(str(simulating[1]))
    plan = json.loads(running.read_text())
    if "workers" in change:
        change = {"workers": plan["workers"][::-1]}
    if "layers" in change:
        change = {"layers": {key: layer | {"form": "q4"} for key, layer in plan["layers"].items()}}
    new = running.with_name("next.json")
    new.write_text(json.dumps(plan | change))
    code, out, err = potluck(*simulating, "--trace", trace, "--new-plan", f"{new}@0.5")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: --new-plan: {new}: ")
    assert says(err, complaint), err


def test_a_trace_of_another_model_and_one_without_tokens_are_refused(
    potluck: Potluck, simulating: tuple[object, ...], tmp_path: Path
) -> None:
    other = tmp_path / "other.npz"
    RoutingStats.from_trace(SHAPE, random_trace(0, 9), "test").save(other)
    code, _, err = potluck(*simulating, "--trace", other)
    assert code == 2
    assert "other.npz" in err
    code, _, err = potluck(*simulating, "--trace", COUNTS)
    assert code == 2
    assert "expected a trace, found counts only" in err


WORKSTATION = """
head: study
nodes:
  - name: study
    devices:
      - {name: gpu, kind: vram, memory_bytes: 16MB, bandwidth_gbytes_per_s: 400, ffn_gflops: 9000,
         host_link_gbytes_per_s: 12, host_link_round_trip_s: 0.00002}
      - {name: ram, kind: ram, memory_bytes: 1GB, bandwidth_gbytes_per_s: 20, ffn_gflops: 100}
"""


@pytest.fixture(scope="module")
def workstation(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """The command line for a box with a GPU."""
    cluster = tmp_path_factory.mktemp("workstation") / "cluster.yaml"
    cluster.write_text(WORKSTATION)
    shape = Step35Config.load(MODEL).shape("potluck-tiny")
    plan = make_plan(
        shape,
        load_cluster(cluster),
        RoutingStats.load(COUNTS, shape),
        "hottest-first",
        dtype="bfloat16",
        expert_bytes=shape.expert_bytes(16),
        workload=Workload(context=128),
    )
    write_plan(plan, cluster.with_name("plan.json"))
    return "simulate", cluster.with_name("plan.json"), "--cluster", cluster, "--model", MODEL


def test_rules_of_vram_stand_side_by_side(
    potluck: Potluck, workstation: tuple[object, ...], trace: Path
) -> None:
    given = (*workstation, "--trace", trace, "--vram-cache")
    found = document(potluck(*given, "--json"))["vram_cache"]
    assert [rule["rule"] for rule in found["rules"]] == ["fixed", "lru", "lfu"]
    assert all(0 < rule["hit_share"] < 1 and rule["moe_s_per_token"] > 0 for rule in found["rules"])
    assert [rule["copied_bytes_per_step"] > 0 for rule in found["rules"]] == [False, True, True]
    code, out, err = potluck(*given)
    assert code == 0, err
    assert f"second half: {found['chosen']} is chosen" in " ".join(out.split())
    assert document(potluck(*workstation, "--trace", trace, "--json"))["vram_cache"] is None


def test_a_cluster_without_a_gpu_has_no_vram_to_compare(
    potluck: Potluck, simulating: tuple[object, ...], trace: Path
) -> None:
    code, out, err = potluck(*simulating, "--trace", trace, "--vram-cache")
    assert (code, out) == (2, "")
    assert says(err, "a cache on 'head': it is no VRAM")
