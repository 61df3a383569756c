"""`potluck stats` of other engines' recordings, `stats compare` and `stats drift`: results and mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from placement.given.stats import RoutingStats
from placement.given.traces import CODING, GENERAL, SyntheticRouter
from placement.model_shape import STEP_3_5_FLASH, ModelShape
from tests.orchestrator.command_line import Potluck, document
from tests.placement.shapes import small_shape

SHAPE = STEP_3_5_FLASH


def save_counts(path: Path, counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> None:
    """As research code does: a table of another kind than ours."""
    np.savez(path, counts=counts[None])


def even_counts(of_each: int, shape: ModelShape = SHAPE) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.full((shape.num_moe_layers, shape.num_experts), of_each)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stats")
    router = SyntheticRouter(SHAPE)
    for domain in (GENERAL, CODING):
        trace = router.trace(domain, 600)
        stats = RoutingStats.from_trace(SHAPE, trace, domain.name)
        stats.save(folder / f"{domain.name}.npz")
        stats.without_trace().save(folder / f"{domain.name}-counts.npz")
    save_counts(folder / "table.npz", even_counts(8))
    small = small_shape()
    RoutingStats.from_counts(small, even_counts(small.top_k, small), small.num_experts, "small").save(
        folder / "small.npz"
    )
    placement = {"physical_to_logical_map": np.tile(np.arange(288), (45, 1)).tolist()}
    (folder / "placement.json").write_text(json.dumps(placement))
    (folder / "text.txt").write_text("words")
    return folder


def of_step(files: Path, *more: object) -> tuple[object, ...]:
    return ("--model", "step-3.5-flash", "--out", files / "out.npz", *more)


def test_a_recording_becomes_our_file_without_a_models_weights(potluck: Potluck, files: Path) -> None:
    made = document(potluck("stats", "--from", files / "table.npz", *of_step(files, "--json")))
    assert (made["kinds"], made["tokens"], made["trace"]) == (["count-tables"], 288, False)
    assert made["layers"][0] == {
        "layer": 3,
        "unused_experts": 0,
        "hottest_tenth_share": pytest.approx(29 / 288),
    }
    assert np.array_equal(RoutingStats.load(files / "out.npz", SHAPE).counts, even_counts(8))
    code, out, err = potluck("stats", "--from", files / "table.npz", *of_step(files))
    assert code == 0
    assert "288 tokens, 288 experts a layer, top 8" in out
    assert "read " in err
    assert "as count-tables" in err


def test_recordings_are_added_up(potluck: Potluck, files: Path) -> None:
    given = ("--from", files / "general.npz", "--from", files / "coding.npz")
    made = document(potluck("stats", *given, *of_step(files, "--trace", "--json")))
    assert (made["tokens"], made["source"], made["trace"]) == (1200, "general; coding", True)
    kept = RoutingStats.load(files / "out.npz", SHAPE)
    assert kept.trace is not None
    assert len(kept.trace) == 1200


def test_with_a_half_life_the_latest_recording_counts_most(potluck: Potluck, files: Path) -> None:
    both = ("--from", files / "general.npz", "--from", files / "coding.npz", "--half-life", 50)
    document(potluck("stats", *both, *of_step(files, "--json")))
    mixed = RoutingStats.load(files / "out.npz", SHAPE)
    late = RoutingStats.load(files / "coding.npz", SHAPE)
    assert late.trace is not None
    last = RoutingStats.from_trace(SHAPE, late.trace[-200:], "the end").frequencies()
    first = RoutingStats.load(files / "general.npz", SHAPE).frequencies()
    frequencies = mixed.frequencies()
    assert np.abs(frequencies - last).sum() < np.abs(frequencies - first).sum() / 2
    # 1 + d + d^2 + ... with d = 2^(-1/50).
    assert mixed.num_tokens == round(1 / (1 - 2 ** (-1 / 50)))


def test_two_files_are_compared_layer_by_layer(potluck: Potluck, files: Path) -> None:
    same = document(
        potluck("stats", "compare", files / "general.npz", files / "general-counts.npz", "--json")
    )
    assert (same["total_variation"], same["hot_overlap"]) == (0, 1)
    assert [row["layer"] for row in same["layers"]] == list(range(3, 45))
    code, out, _ = potluck("stats", "compare", files / "general.npz", files / "coding.npz")
    assert code == 0
    assert "A: 600 tokens, general" in out
    assert "hottest 25% shared" in " ".join(out.split())


def test_drift_is_seen_between_kinds_of_text_and_not_within_one(
    potluck: Potluck, files: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.npz"
    trace = SyntheticRouter(SHAPE).trace(GENERAL, 600, stream_seed=1)
    RoutingStats.from_trace(SHAPE, trace, "general again").save(again)
    options = ("--document-tokens", 60, "--false-alarm-rate", 0.005)
    changed = document(
        potluck("stats", "drift", files / "general.npz", files / "coding.npz", *options, "--json")
    )
    assert changed["drifted"]
    assert [given["documents"] for given in changed["files"]] == [10, 10]
    code, out, _ = potluck("stats", "drift", files / "general.npz", files / "coding.npz", *options)
    assert code == 0
    assert "The routing has changed" in out
    unchanged = document(
        potluck(
            "stats", "drift", files / "general.npz", files / "general.npz", "--json", "--document-tokens", 60
        )
    )
    assert not unchanged["drifted"]
    assert unchanged["p_value"] > 0.5


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("compare", "general.npz", "small.npz"), ("small.npz: made for 'small'", "general.npz")),
        (("drift", "general.npz", "small.npz"), ("small.npz: made for 'small'", "general.npz")),
        (("compare", "general.npz", "placement.json"), ("placement.json:", "expected a routing file")),
        (("compare", "general.npz", "table.npz"), ("table.npz:", "`potluck stats --from` makes one")),
        (("drift", "text.txt", "general.npz"), ("text.txt:", "expected routing statistics")),
        (("compare", "nowhere.npz", "general.npz"), ("nowhere.npz",)),
        (("compare", "general.npz"), ("missing argument 'B'", "potluck stats compare --help")),
        (("compare", "general.npz", "coding.npz", "--hot-share", "nan"), ("--hot-share",)),
        (("drift", "general.npz", "coding-counts.npz"), ("coding-counts.npz: counts only", "--trace")),
        (("drift", "general.npz", "coding.npz"), ("1 and 1 documents", "too few")),
        (("drift", "general.npz", "coding.npz", "--document-tokens", "60", "--permutations", "9"), ("99",)),
        (("--model", "step-3.5-flash", "--out", "out.npz"), ("missing argument 'TEXT...'", "--from")),
    ],
)
def test_mistakes_are_one_line(
    potluck: Potluck,
    files: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    monkeypatch.chdir(files)
    code, out, err = potluck("stats", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    for part in parts:
        assert part in err


@pytest.mark.parametrize(
    ("more", "part"),
    [
        (("--from", "small.npz"), "small.npz: made for 'small'"),
        (("--from", "placement.json"), "placement.json"),
        (("--from", "nowhere.pt"), "nowhere.pt"),
        (("--from", "table.npz", "--trace"), "table.npz: counts only"),
        (("--from", "table.npz", "--window", "9"), "--window"),
        (("--from", "table.npz", "text.txt"), "leave out text.txt"),
        (("--from", "table.npz", "--half-life", "0"), "half-life: expected a positive number"),
        (("--from", "table.npz", "--half-life", "nan"), "half-life: expected a positive number"),
        (("--from", "general.npz", "--half-life", "9", "--trace"), "leave out --trace"),
        (("text.txt", "--half-life", "9"), "--half-life: expected --from"),
        (("text.txt",), "--model step-3.5-flash: built in for planning"),
    ],
)
def test_what_cannot_be_read_leaves_no_file(
    potluck: Potluck,
    files: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[str, ...],
    part: str,
) -> None:
    monkeypatch.chdir(files)
    code, out, err = potluck("stats", "--model", "step-3.5-flash", "--out", tmp_path / "out.npz", *more)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert part in err
    assert not (tmp_path / "out.npz").exists()


def test_a_recording_is_not_overwritten(potluck: Potluck, files: Path) -> None:
    table = files / "table.npz"
    before = table.read_bytes()
    code, _, err = potluck("stats", "--from", table, "--model", "step-3.5-flash", "--out", table)
    assert (code, err.count("\n")) == (2, 1)
    assert "this command reads it" in err
    assert table.read_bytes() == before
