"""The commands as a user or a script calls them: one JSON document, or one clear error and exit code 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from orchestrator.cli.even_plan import even_plan
from placement.given.stats import RoutingStats
from placement.holders import HolderTable
from placement.plan import Plan, PlannedTier, like_layers
from placement.plan_file import write_plan
from tests.orchestrator.command_line import Potluck, document, says
from tests.tiny_checkpoint import write_random_checkpoint
from workers.model_config import Step35Config


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("cli") / "model", seed=2, tokenizer=True)


def test_generate_prints_one_document_with_the_promised_keys(potluck: Potluck, model_dir: Path) -> None:
    arguments = ("generate", "--model", model_dir, "--token-ids", "5,6,7", "--max-tokens", 9, "--ignore-eos")
    made = document(potluck(*arguments, "--json", "--workers", 0, "--mtp", 3))
    assert len(made["token_ids"]) == 9
    assert made["text"]
    for key in ("tokens_per_s", "steps", "accepted_drafts_per_step", "remote_layers_per_token", "time_s"):
        assert key in made
    assert made["remote_layers_per_token"] == 0
    (worker,) = made["workers"]
    assert worker == {
        "name": "head",
        "experts": 64,
        "bytes": 64 * 3 * 64 * 32 * 2,
        "share_of_activations": 1.0,
    }
    without_drafts = document(potluck(*arguments, "--json"))
    assert without_drafts["token_ids"] == made["token_ids"]
    assert without_drafts["steps"] == 8


def test_generate_streams_text_to_standard_output_and_tables_to_standard_error(
    potluck: Potluck, model_dir: Path
) -> None:
    code, out, err = potluck("generate", "--model", model_dir, "--prompt", "hello", "--max-tokens", 5)
    assert code == 0
    assert out.strip()
    assert "tokens/s" not in out
    assert "tokens/s" in err


def test_a_checkpoint_without_a_tokenizer_takes_and_gives_ids(
    potluck: Potluck, model_dir: Path, tmp_path: Path
) -> None:
    bare = copy_of(model_dir, tmp_path)
    (bare / "tokenizer.json").unlink()
    made = document(potluck("generate", "--model", bare, "--token-ids", "1,2", "--max-tokens", 3, "--json"))
    assert len(made["token_ids"]) == 3
    assert made["text"] == ""
    code, out, err = potluck("generate", "--model", bare, "--prompt", "hi")
    assert (code, out) == (2, "")
    assert "tokenizer.json" in err


def test_seeds_repeat_and_differ(potluck: Potluck, model_dir: Path) -> None:
    def ids(seed: int) -> list[int]:
        made = document(
            potluck(
                *("generate", "--model", model_dir, "--token-ids", "1,2", "--max-tokens", 12, "--json"),
                *("--temperature", 1.0, "--seed", seed, "--ignore-eos"),
            )
        )
        return list(made["token_ids"])

    assert ids(1) == ids(1) != ids(2)


def test_stats_then_plan_then_generate(potluck: Potluck, model_dir: Path, tmp_path: Path) -> None:
    text, routing, plan = tmp_path / "text.txt", tmp_path / "routing.npz", tmp_path / "plan.json"
    text.write_text("some words, " * 40)
    made = document(
        potluck("stats", text, "--model", model_dir, "--out", routing, "--trace", "--window", 64, "--json")
    )
    assert made["tokens"] == len("some words, " * 40)
    stats = RoutingStats.load(routing, Step35Config.load(model_dir).shape("model"))
    assert stats.trace is not None

    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(ONE_BOX)
    planned = document(
        potluck(
            *("plan", cluster, "--model", model_dir, "--stats", routing),
            *("--out", plan, "--json"),
        )
    )
    assert sum(device["experts"] for device in planned["devices"]) == 64
    ids = document(
        potluck(
            *("generate", "--model", model_dir, "--plan", plan, "--token-ids", "5,6,7"),
            *("--max-tokens", 6, "--json"),
        )
    )["token_ids"]
    plain = document(
        potluck("generate", "--model", model_dir, "--token-ids", "5,6,7", "--max-tokens", 6, "--json")
    )
    assert plain["token_ids"] == ids


ONE_BOX = """
head: here
nodes:
  - name: here
    devices:
      - {name: ram, kind: ram, memory_bytes: 1GB, bandwidth_gbytes_per_s: 20, ffn_gflops: 100}
"""


def copy_of(model_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_dir, tmp_path / "copy"))


def truncated_shard(model: Path) -> list[object]:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return ["--token-ids", "1"]


def missing_shard(model: Path) -> list[object]:
    (model / "model.safetensors").unlink()
    return ["--token-ids", "1"]


def other_architecture(model: Path) -> list[object]:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    return ["--token-ids", "1"]


def plan_for_another_model(model: Path) -> list[object]:
    other = write_random_checkpoint(model.parent / "other", seed=1, num_experts=8)
    plan = even_plan(Step35Config.load(other).shape("other"), 0, "float32")
    write_plan(plan, model / "plan.json")
    return ["--token-ids", "1", "--plan", model / "plan.json"]


def plan_that_does_not_fit(model: Path) -> list[object]:
    plan = even_plan(Step35Config.load(model).shape("copy"), 0, "float32")
    small = tuple(replace(worker, budget_bytes=1000) for worker in plan.tiers)
    write_plan(replace(plan, tiers=small), model / "plan.json")
    return ["--token-ids", "1", "--plan", model / "plan.json"]


@pytest.mark.parametrize(
    ("prepare", "expected"),
    [
        (truncated_shard, "model.safetensors"),
        (missing_shard, "model.safetensors"),
        (other_architecture, "config.json"),
        (plan_for_another_model, "plan.json: … another model"),
        (
            plan_that_does_not_fit,
            "plan.json: … 'head' … 1.6 MB … budget_bytes",
        ),
        (lambda model: ["--token-ids", "1,320"], "320 … vocabulary"),
        (lambda model: ["--token-ids", "1,x"], "whole numbers"),
        (lambda model: [], "--prompt … --token-ids"),
        (lambda model: ["--token-ids", "1", "--max-tokens", 0], "--max-tokens: … at least 1"),
        (lambda model: ["--token-ids", "1", "--ray-address", "auto"], "--ray-address: … --plan"),
        (lambda model: ["--token-ids", "1", "--mtp", 4], "MTP"),
        (lambda model: ["--token-ids", "1", "--plan", "none.json"], "none.json"),
    ],
)
def test_a_mistake_is_one_clear_line_and_exit_code_2(
    potluck: Potluck,
    model_dir: Path,
    tmp_path: Path,
    prepare: Callable[[Path], list[object]],
    expected: str,
) -> None:
    model = copy_of(model_dir, tmp_path)
    code, out, err = potluck("generate", "--model", model, "--json", *prepare(model))
    assert (code, out) == (2, "")
    assert says(err, expected), err
    assert "Traceback" not in err


def test_a_routing_file_of_another_shape_is_refused_and_no_plan_written(
    potluck: Potluck, model_dir: Path, tmp_path: Path
) -> None:
    other = write_random_checkpoint(tmp_path / "other", seed=1, num_experts=8)
    shape = Step35Config.load(other).shape("other")
    stats = RoutingStats.from_counts(shape, [[10, 10, 5, 5, 5, 5, 0, 0]] * 4, 10, "a test")
    stats.save(tmp_path / "routing.npz")
    (tmp_path / "cluster.yaml").write_text(ONE_BOX)
    code, out, err = potluck(
        *("plan", tmp_path / "cluster.yaml", "--model", model_dir, "--stats", tmp_path / "routing.npz"),
        *("--out", tmp_path / "plan.json"),
    )
    assert (code, out) == (2, "")
    assert "routing.npz" in err
    assert not (tmp_path / "plan.json").exists()


def test_help_names_every_command(potluck: Potluck) -> None:
    code, out, _ = potluck("--help")
    assert code == 0
    for command in ("generate", "plan", "stats", "demo"):
        assert command in out


def test_boxes_that_a_plan_leaves_out_are_not_asked_for(
    model_dir: Path, potluck: Potluck, tmp_path: Path
) -> None:
    """Nobody is called 'attic' here."""
    shape = Step35Config.load(model_dir).shape(model_dir.name)
    everything = np.ones((1, shape.num_moe_layers, shape.num_experts), dtype=np.bool_)
    head = PlannedTier("head", "study", "cpu", "ram", 10**9)
    attic = PlannedTier("attic-ssd", "attic", "cpu", "disk", 10**9)
    plan = Plan(
        model=shape.name,
        fingerprint=shape.fingerprint,
        layers=like_layers(shape.moe_layers, "float32", shape.expert_bytes(32)),
        dtype="float32",
        tiers=(head, attic),
        holder_table=HolderTable.from_masks(np.concatenate([everything, ~everything])),
        policy="by hand",
    )
    assert plan.asked_workers == ()
    write_plan(plan, tmp_path / "plan.json")
    code, out, err = potluck(
        *(
            "generate",
            "--model",
            model_dir,
            "--token-ids",
            "1,2",
            "--max-tokens",
            3,
            "--plan",
            tmp_path / "plan.json",
        )
    )
    assert code == 0, err
    assert out.strip()
    by_hand = replace(plan, holder_table=HolderTable.from_masks(np.concatenate([~everything, everything])))
    assert [worker.name for worker in by_hand.asked_workers] == [attic.name]


def test_a_built_in_shape_has_no_weights_to_run(potluck: Potluck) -> None:
    code, _, err = potluck("generate", "--model", "step-3.5-flash", "--prompt", "hi")
    assert code == 2
    assert says(err, "without weights … a directory"), err


def test_an_empty_prompt_is_refused(model_dir: Path, potluck: Potluck, tmp_path: Path) -> None:
    code, _, err = potluck("generate", "--model", model_dir, "--prompt", "")
    assert code == 2
    assert says(err, "--prompt: "), err
