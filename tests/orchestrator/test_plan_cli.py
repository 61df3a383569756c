"""`potluck plan` as a script or a beginner calls it: the promised keys, and one line for every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli import output
from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH
from placement.plan_file import read_plan
from placement.workload import Workload
from tests.orchestrator.command_line import Potluck, document, says
from tests.orchestrator.processes import ROOT
from tests.tiny_checkpoint import write_random_checkpoint
from workers.formats.identity import model_identity
from workers.model_config import Step35Config

TINY = Path(__file__).parents[2] / "models" / "potluck-tiny"
CLUSTER = """
head: study
nodes:
  - name: study
    devices:
      - {name: ram, kind: ram, memory_bytes: 96GB, bandwidth_gbytes_per_s: 70, ffn_gflops: 900}
  - name: attic
    devices:
      - {name: ram, kind: ram, memory_bytes: 60GB, bandwidth_gbytes_per_s: 40, ffn_gflops: 400}
links:
  - {node: attic, round_trip_s: 0.0003, bandwidth_gbits_per_s: 2.5}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    (folder / "cluster.yaml").write_text(CLUSTER)
    router = SyntheticRouter(STEP_3_5_FLASH)
    for domain in (CODING, GENERAL):
        trace = router.trace(domain, 400)
        RoutingStats.from_trace(STEP_3_5_FLASH, trace, domain.name).save(folder / f"{domain.name}.npz")
    return folder


def arguments(files: Path, *more: object) -> tuple[object, ...]:
    return ("plan", files / "cluster.yaml", "--model", "step-3.5-flash", "--quant", "q4", *more)


def test_the_promised_keys_agree_with_each_other_and_with_the_simulator(
    potluck: Potluck, files: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    stats = ("--stats", files / "coding.npz")
    made = document(potluck(*arguments(files, *stats, "--context", 2000, "--out", plan, "--json")))
    assert made["policy"] == "least-time"
    assert made["basis"] == "trace"
    assert made["tokens_per_s"] == pytest.approx(1 / made["step_time_s"])
    assert 0 < made["lower_bound_s"] <= made["step_time_s"]
    assert made["gap"] == pytest.approx(made["step_time_s"] / made["lower_bound_s"] - 1)
    assert 0 <= made["remote_layers_per_token"] <= 42
    assert sum(made["bound_by"].values()) == pytest.approx(1)
    assert made["range"]["basis"] == "typed"
    assert made["range"]["low"] < made["tokens_per_s"] < made["range"]["high"]
    assert [each["input"] for each in made["range_inputs"]] == ["memory", "routing"]
    for each in made["range_inputs"]:
        assert (
            made["range"]["low"] < each["low"] <= made["tokens_per_s"] <= each["high"] < made["range"]["high"]
        )
    contexts = {at["context"]: at["tokens_per_s"] for at in made["by_context"]}
    assert contexts[2000] == pytest.approx(made["tokens_per_s"])
    assert contexts[2000] < contexts[1024]
    for at in made["by_context"]:
        assert at["low"] < at["tokens_per_s"] < at["high"]
    assert len(made["devices"]) == 2
    for device in made["devices"]:
        assert set(device) >= {"name", "experts", "bytes", "budget_bytes"}
        assert device["bytes"] == device["experts"] * made["expert_bytes"] <= device["budget_bytes"]
    assert made["replicas"] == sum(d["experts"] for d in made["devices"]) - 42 * 288
    assert sum(device["share_of_activations"] for device in made["devices"]) == pytest.approx(1)
    assert read_plan(plan).policy == "least-time"

    simulated = document(
        potluck(
            *("simulate", plan, "--cluster", files / "cluster.yaml", "--trace", files / "coding.npz"),
            *("--context", 2000, "--json"),
        )
    )
    assert simulated["step_time_s"]["mean"] == pytest.approx(made["step_time_s"])
    assert simulated["remote_layers_per_token"] == pytest.approx(made["remote_layers_per_token"])
    # The plan's has what routing leaves open on top; a simulation is of one text.
    assert (
        made["range"]["low"]
        <= simulated["range"]["low"]
        < simulated["range"]["high"]
        <= made["range"]["high"]
    )


def test_a_plan_and_its_simulation_assume_the_same_where_nothing_is_said(
    potluck: Potluck, files: Path, tmp_path: Path
) -> None:
    plan, stats = tmp_path / "plan.json", files / "coding.npz"
    made = document(
        potluck(*arguments(files, "--policy", "uniform", "--stats", stats, "--out", plan, "--json"))
    )
    simulated = document(
        potluck("simulate", plan, "--cluster", files / "cluster.yaml", "--trace", stats, "--json")
    )
    assert simulated["step_time_s"]["mean"] == pytest.approx(made["step_time_s"])


def test_without_statistics_hardware_or_weights_there_is_a_plan_and_a_picture(
    potluck: Potluck, files: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "plan.png"
    code, out, err = potluck(*arguments(files, "--picture", picture, "--policy", "uniform"))
    assert code == 0, err
    assert picture.read_bytes().startswith(b"\x89PNG")
    for words in (
        "tokens/s by context",
        "even routing",
        "above the best",
        "potluck stats",
        "waits for",
        "one made for such text may gain",
        "`potluck whatif` and studies plan for text that uses experts as unevenly",
        "head (study/ram) ",
    ):
        assert words in " ".join(out.split())


def test_later_commands_take_from_a_plan_what_it_assumes(
    potluck: Potluck, files: Path, tmp_path: Path
) -> None:
    plan, stats, again = tmp_path / "plan.json", files / "coding.npz", tmp_path / "again.json"
    said = ("--head-bits", 8, "--context", 20000, "--accept", "0.5,0.5", "--prompt-ratio", 3)
    uniform = ("--policy", "uniform", "--stats", stats, "--out", plan, "--json")
    made = document(potluck(*arguments(files, *said, *uniform)))
    workload = read_plan(plan).workload
    assert workload == Workload(
        drafts=2,
        accepted_drafts=0.75,
        acceptance=(0.5, 0.5),
        context=20000,
        head_bits_per_weight=8,
        prompt_tokens_per_token=3,
    )
    simulating = ("simulate", plan, "--cluster", files / "cluster.yaml", "--trace", stats, "--json")
    simulated = document(potluck(*simulating))
    assert simulated["step_time_s"]["mean"] == pytest.approx(made["step_time_s"], rel=0.01)
    other = document(potluck(*simulating, "--head-bits", 16))
    assert other["step_time_s"]["mean"] > simulated["step_time_s"]["mean"]
    moved = ("plan", files / "cluster.yaml", "--model", "step-3.5-flash", "--current", plan, "--stats", stats)
    document(potluck(*moved, "--move-bytes", "1MB", "--out", again, "--json"))
    assert read_plan(again).workload == workload
    assert read_plan(again).form == "q4"


def test_what_is_assumed_is_printed_in_one_sentence(potluck: Potluck, files: Path) -> None:
    given = ("--policy", "hottest-first", "--stats", files / "coding.npz")
    code, out, err = potluck(*arguments(files, *given, "--accept", "0.9"))
    assert code == 0, err
    (sentence,) = re.findall(r"Assumed: .*?\.(?!\d)", " ".join(out.split()))
    said = " ".join(out.split())
    assert re.search(r"tokens/s \([\d.]+ to [\d.]+ likely\): a step takes", said)
    assert "Likely for typed figures, which count like the catalogue's: about " in said
    for words in (
        "memory: how fast",
        "drafts: first drafts that hold: 85% to 95%",
        "routing: what counts of",
        "Where there is no room, this plan has none. One made with that --context may have it",
    ):
        assert words in said
    for part in (
        "1 draft",
        "0.9",
        "4,096 positions of keys and values in bfloat16",
        "4.5 bits",
        "8 prompt tokens",
    ):
        assert part in sentence


def test_the_output_stays_readable_at_60_columns(
    potluck: Potluck, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.console, "width", 60)
    monkeypatch.setattr(output.console, "_width", 60)
    code, out, err = potluck(*arguments(files, "--policy", "uniform"))
    assert code == 0, err
    lines = out.splitlines()
    assert max(map(len, lines)) <= 60
    assert "…" not in out
    for row in ("head", "attic-ram", "device", "262,144"):
        assert any(line.split()[:1] == [row] for line in lines), row
    assert "of choices" not in out
    assert "policy uniform" in " ".join(out.split())


def test_one_box_with_a_disk_is_said_to_read_it_and_to_ask_nobody(potluck: Potluck, tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text(
        "head: here\nnodes:\n  - name: here\n    devices:\n"
        "      - {name: ram, kind: ram, memory_bytes: 14MB, bandwidth_gbytes_per_s: 20, ffn_gflops: 100}\n"
        "      - {name: ssd, kind: disk, memory_bytes: 1GB, bandwidth_gbytes_per_s: 2, ffn_gflops: 100}\n"
    )
    code, out, err = potluck("plan", tmp_path / "cluster.yaml", "--model", TINY)
    assert code == 0, err
    words = " ".join(out.split())
    assert "Layers wait mostly for reading the disk." in words
    assert "None of the 5 MoE layers a token ask another box." in words


def test_speeds_stop_at_the_models_own_length(potluck: Potluck, files: Path, tmp_path: Path) -> None:
    made = document(
        potluck(
            *("plan", files / "cluster.yaml", "--model", TINY, "--policy", "uniform", "--json"),
            *("--context", 100),
        )
    )
    assert [at["context"] for at in made["by_context"]] == [100, 1024, 4096, 8192]


def test_several_tokens_a_step_and_drafts(potluck: Potluck, files: Path) -> None:
    stats = ("--stats", files / "coding.npz", "--policy", "hottest-first", "--json")
    one = document(potluck(*arguments(files, *stats)))
    four = document(potluck(*arguments(files, *stats, "--tokens-per-step", 4)))
    drafts = document(potluck(*arguments(files, *stats, "--accept", "0.5,0.5,0.5")))
    assert one["step_time_s"] < four["step_time_s"] < 4 * one["step_time_s"]
    assert four["tokens_per_s"] == pytest.approx(4 / four["step_time_s"])
    assert drafts["tokens_per_s"] == pytest.approx(1.875 / drafts["step_time_s"])
    assert one["policy"] == "hottest-first"


def test_a_plan_in_use_moves_within_the_budget(potluck: Potluck, files: Path, tmp_path: Path) -> None:
    old, new, cluster = tmp_path / "old.json", tmp_path / "new.json", tmp_path / "cluster.yaml"
    cluster.write_text(CLUSTER.replace("96GB", "20MB").replace("60GB", "12MB"))
    router = SyntheticRouter(Step35Config.load(TINY).shape(TINY.name))
    for domain in (CODING, GENERAL):
        stats = RoutingStats.from_trace(router.shape, router.trace(domain, 400), domain.name)
        stats.save(tmp_path / f"{domain.name}.npz")
    given = ("plan", cluster, "--model", TINY, "--json", "--stats")
    document(potluck(*given, tmp_path / "coding.npz", "--policy", "hottest-first", "--out", old))
    more = ("--current", old, "--move-bytes", "2MB", "--out", new)
    made = document(potluck(*given, tmp_path / "general.npz", *more))
    moved = made["replan"]
    assert 0 < moved["moved_bytes"] <= 2_000_000
    assert moved["moe_s_after"] < moved["moe_s_before"]
    assert moved["payback_s"] > moved["transfer_s"] > 0
    before, after = read_plan(old), read_plan(new)
    assert after.epoch == before.epoch + 1
    arrived = sum(int((after.holder_table.mask(i) & ~before.holder_table.mask(i)).sum()) for i in range(2))
    assert arrived == moved["moved_experts"]


def test_counts_of_another_engine_are_read(potluck: Potluck, files: Path, tmp_path: Path) -> None:
    counts = np.asarray(RoutingStats.load(files / "coding.npz").counts)
    path = tmp_path / "loads.npy"
    np.save(path, counts.astype(np.int64))
    made = document(potluck(*arguments(files, "--stats", path, "--policy", "hottest-first", "--json")))
    assert made["basis"] == "counts"


@pytest.mark.parametrize(
    ("mistake", "expected"),
    [
        (("--policy", "best"), "'best' … one-box"),
        (("--quant", "q1"), "'q1' … q4"),
        (("--quant", "bfloat16"), "cluster.yaml: … GB are missing"),
        (("--quant", "bfloat16"), "--quant q5 fits"),
        (("--tokens-per-step", 3, "--accept", "0.5"), "--tokens-per-step: … multiple of 2"),
        (("--accept", "often"), "--accept: … 'often'"),
        (("--accept", "0.9,0.9,0.9,0.9"), "--accept: … at most"),
        (("--head-bits", "inf"), "--head-bits: … at most 64 … 'inf'"),
        (("--prompt-ratio", "inf"), "--prompt-ratio: … inf"),
        (("--policy", "pipeline"), "'pipeline' makes no plan"),
        (("--policy", "uniform", "--current", "none.json"), "--policy uniform"),
        (("--picture", "."), "directory"),
        (("--picture", "missing/plan.svg"), "missing/plan.svg: "),
        (("--move-bytes", "1GB"), "--current"),
        (("--current", "none.json"), "none.json"),
        (("--stats", "none.npz"), "none.npz"),
        (("--picture", "plan.gif"), "plan.gif: … svg"),
        (("--context", 262145), "--context: … at most 262,144 … step-3.5-flash"),
        (("--context", 262144, "--tokens-per-step", 32), "activations … --context … --head-bits"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    potluck: Potluck, files: Path, tmp_path: Path, mistake: tuple[object, ...], expected: str
) -> None:
    out_path = tmp_path / "plan.json"
    code, out, err = potluck(*arguments(files, *mistake, "--out", out_path))
    assert (code, out) == (2, "")
    assert says(err, expected), err
    assert not out_path.exists()


def test_a_size_that_is_none_and_a_plan_of_other_boxes_are_refused(
    potluck: Potluck, files: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old.json"
    document(potluck(*arguments(files, "--policy", "uniform", "--out", old, "--json")))
    code, _, err = potluck(*arguments(files, "--current", old, "--move-bytes", "much"))
    assert code == 2
    assert says(err, "--move-bytes: … 'much'"), err
    other = tmp_path / "other.yaml"
    other.write_text(CLUSTER.replace("attic", "cellar"))
    code, _, err = potluck(
        *("plan", other, "--model", "step-3.5-flash", "--quant", "q4", "--current", old),
    )
    assert code == 2
    assert says(err, f"--current: {old}: … head, attic-ram … head, cellar-ram"), err


def test_a_plan_says_which_files_it_is_for_and_runs_with_no_others(
    potluck: Potluck, files: Path, tmp_path: Path
) -> None:
    models = [write_random_checkpoint(tmp_path / "one" / "m", seed=1, tokenizer=True)]
    models.append(write_random_checkpoint(tmp_path / "two" / "m", seed=2, tokenizer=True))
    plan = tmp_path / "plan.json"
    planned = ("plan", files / "cluster.yaml", "--model", models[0], "--quant", "float32", "--out", plan)
    assert potluck(*planned)[0] == 0
    assert read_plan(plan).digests == model_identity(models[0]).digests
    code, out, err = potluck("generate", "--model", models[1], "--token-ids", "5,6", "--plan", plan)
    assert (code, out) == (2, "")
    assert says(
        err, "plan.json: made for other files than those of … two/m: model.safetensors is another file"
    )


THREE_BOXES = CLUSTER.replace(
    "links:",
    """  - name: den
    devices:
      - {name: ram, kind: ram, memory_bytes: 64GB, bandwidth_gbytes_per_s: 50, ffn_gflops: 500}
links:
  - {node: den, round_trip_s: 0.0003, bandwidth_gbits_per_s: 2.5}""",
)


def test_a_plan_survives_a_loss_where_there_is_memory_and_says_what_that_costs(
    potluck: Potluck, tmp_path: Path
) -> None:
    cluster, out = tmp_path / "cluster.yaml", tmp_path / "plan.json"
    cluster.write_text(THREE_BOXES)
    given = ("plan", cluster, "--model", "step-3.5-flash", "--quant", "q4", "--policy", "uniform")
    made = document(potluck(*given, "--out", out, "--json"))
    survive = made["survive"]
    assert survive["losses"] == survive["asked_losses"] == 1
    assert survive["short_experts"] == survive["single_experts"] == survive["missing_bytes"] == 0
    assert survive["second_holders"] > 0
    assert survive["tokens_per_s_without"] > 0
    plan = read_plan(out)
    assert plan.survive == 1
    for lost in range(1, 3):
        assert (plan.without([lost]).table[:, :, 0] >= 0).all()
    plain = document(potluck(*given, "--survive", "0", "--json"))
    assert plain["survive"]["losses"] == plain["survive"]["second_holders"] == 0
    assert plain["survive"]["single_experts"] > 0
    assert plain["tokens_per_s"] == survive["tokens_per_s_without"]


def test_a_plan_without_predictions_is_the_same_plan(potluck: Potluck, tmp_path: Path) -> None:
    cluster, out, alone = tmp_path / "cluster.yaml", tmp_path / "plan.json", tmp_path / "alone.json"
    cluster.write_text(THREE_BOXES)
    given = ("plan", cluster, "--model", ROOT / "models" / "potluck-tiny", "--policy", "uniform")
    made = document(potluck(*given, "--out", out, "--json"))
    stated = document(potluck(*given, "--out", alone, "--no-predict", "--json"))
    assert alone.read_bytes() == out.read_bytes()
    assert made["step_time_s"] > 0
    assert stated["step_time_s"] is None
    assert stated["devices"] == made["devices"]
    code, text, err = potluck(*given, "--no-predict")
    assert code == 0, err
    assert "tokens/s" not in text


def test_a_plan_that_no_loss_can_hurt_says_why(potluck: Potluck, tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(THREE_BOXES)
    code, out, err = potluck("plan", cluster, "--model", ROOT / "models" / "potluck-tiny", "--survive", "1")
    assert code == 0, err
    assert "the head's apart: no other box holds experts alone." in " ".join(out.split())


def test_what_cannot_survive_for_want_of_memory_is_told(potluck: Potluck, files: Path) -> None:
    given = arguments(files, "--policy", "uniform")
    made = document(potluck(*given, "--json"))["survive"]
    assert (made["losses"], made["second_holders"], made["tokens_per_s_without"]) == (0, 0, None)
    assert made["missing_bytes"] > 0
    code, _, err = potluck(*given, "--survive", "2")
    assert code == 2
    assert says(err, "--survive 2: expected at most 1, since the cluster has 2 boxes")
