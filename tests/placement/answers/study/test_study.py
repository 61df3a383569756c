"""A study's grid is checked before anything is written, resumes where it stopped, and keeps to its folder."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from placement.answers.study.config import Study
from placement.answers.study.grid import cells, fingerprint
from placement.answers.study.inputs import check_inputs
from placement.answers.study.results import ResultsFolder, Row
from placement.answers.study.routing_source import in_passes
from placement.answers.study.runner import run_cells
from placement.errors import ClusterFileError, InputError, PotluckError, RoutingFileError, StudyFileError
from placement.given.stats import RoutingStats
from placement.hardware.spread import SPREADS
from placement.policies.registry import RUN_POLICIES
from placement.workload import DEFAULT_CONTEXT, Workload
from tests.placement.shapes import small_shape

SHAPE = small_shape(num_moe_layers=3, num_experts=12, top_k=2)

CLUSTER = """
head: home
nodes:
  - name: home
    devices:
      # 290,000 bytes are more than the head needs itself.
      - name: ram
        kind: ram
        memory_bytes: 306KB
        reserved_bytes: 290KB
        bandwidth_gbytes_per_s: 1
        ffn_gflops: 10
  - name: attic
    devices: [{name: ram, kind: ram, memory_bytes: 16KB, bandwidth_gbytes_per_s: 1, ffn_gflops: 10}]
links: [{node: attic, round_trip_s: 0.0003, bandwidth_gbits_per_s: 1}]
"""

STUDY = """
name: small
model: small
policies: [hottest-first, one-box]
clusters: [pair.yaml]
quants: [q4, bfloat16]
batches: [1, {sequences: 2, drafts: 1, accepted_drafts: 0.5}]
contexts: [0]
traces: [{name: general, domain: general, tokens: 200}]
"""


def written(folder: Path, text: str = STUDY) -> Path:
    (folder / "pair.yaml").write_text(CLUSTER)
    path = folder / "study.yaml"
    path.write_text(text)
    return path


def test_every_combination_is_one_cell_with_a_key_of_its_own(tmp_path: Path) -> None:
    grid = cells(Study.load(written(tmp_path)))
    assert len(grid) == 2 * 2 * 2
    assert len({cell.key for cell in grid}) == len(grid)


def test_a_study_assumes_the_context_that_the_commands_do(tmp_path: Path) -> None:
    study = Study.load(written(tmp_path, STUDY.replace("contexts: [0]\n", "")))
    assert study.contexts == (DEFAULT_CONTEXT,)


def test_a_study_assumes_what_the_commands_do_and_can_say_otherwise(tmp_path: Path) -> None:
    grid = cells(Study.load(written(tmp_path)))
    assert {cell.setting.workload.head_bits_per_weight for cell in grid} == {4.5, 16}
    assert {cell.setting.workload.prompt_tokens_per_token for cell in grid} == {8}
    pinned = written(tmp_path, STUDY + "head_bits: 6\nprompt_ratio: 0\n")
    grid = cells(Study.load(pinned))
    assert {cell.setting.workload.head_bits_per_weight for cell in grid} == {6}
    assert {cell.setting.workload.prompt_tokens_per_token for cell in grid} == {0}
    assert fingerprint(Study.load(pinned), SHAPE) != fingerprint(Study.load(written(tmp_path)), SHAPE)


def test_results_belong_to_the_ranges_that_they_were_judged_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.load(written(tmp_path))
    before = fingerprint(study, SHAPE)
    other = tmp_path / "spread.yaml"
    other.write_bytes(SPREADS.read_bytes() + b"# Another.\n")
    monkeypatch.setattr("placement.answers.study.grid.SPREADS", other)
    assert fingerprint(study, SHAPE) != before


def test_a_context_beyond_the_models_own_length_is_refused(tmp_path: Path) -> None:
    study = Study.load(written(tmp_path, STUDY.replace("contexts: [0]", "contexts: [0, 101]")))
    with pytest.raises(StudyFileError, match=r"contexts: expected at most 100, .* found 101"):
        check_inputs(study, replace(SHAPE, max_positions=100))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[hottest-first, one-box]", "[]", "policies: .*found none"),
        ("[hottest-first, one-box]", "[coldest]", r"study.yaml: policies\[0\]: policy 'coldest': expected"),
        ("[hottest-first, one-box]", "[one-box, one-box]", "expected each value once"),
        ("[pair.yaml]", "[other.yaml]", r"clusters\[0\]: no such file"),
        ("[pair.yaml]", f"[{300 * 'a'}]", r"clusters\[0\]: no such file: .*aaa"),
        ("[q4, bfloat16]", "[q9]", r"study.yaml: quants\[0\]: quantisation 'q9'"),
        ("domain: general", "domain: cooking", "expected general or coding, found 'cooking'"),
        ("domain: general", "seed: 1", "expected either domain"),
        ("domain: general", "domain: general, document_tokens: 64", "expected beside file only"),
        ("accepted_drafts: 0.5", "accepted_drafts: 2", "expected at most drafts"),
        ("[q4, bfloat16]", "q4", "quants: expected a list, found 'q4'"),
        ("[q4, bfloat16]", "[4]", r"quants\[0\]: expected text, found 4"),
        ("tokens: 200", "tokens: many", r"traces\[0\].tokens: expected a whole number, found 'many'"),
        ("[1, {seq", "[two, {seq", r"batches\[0\]: expected a number of sequences or a mapping with seq"),
        ("drafts: 1, acc", "draft: 1, acc", r"batches\[1\].draft: unknown key"),
        ("[{name", "[general, {name", r"traces\[0\]: expected a mapping with name, domain.*'general'"),
        ("quants:", "quantisations:", "quantisations: unknown key"),
        ("name: small\nmodel", "nome: small\nmodel", "nome: unknown key"),
    ],
)
def test_a_wrong_study_file_is_one_line_with_the_field(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(PotluckError, match=message) as raised:
        Study.load(written(tmp_path, STUDY.replace(old, new)))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_not_a_mapping_or_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="expected a mapping with name, model"):
        Study.load(written(tmp_path, "[1, 2]"))
    with pytest.raises(
        StudyFileError, match="No such file or directory; expected a YAML file with name, model"
    ):
        Study.load(tmp_path / "absent.yaml")


def test_what_does_not_fit_is_a_row_with_a_reason(tmp_path: Path) -> None:
    study = Study.load(written(tmp_path))
    rows = {row.key: row for row in run_cells(SHAPE, cells(study), processes=1)}
    assert len(rows) == 8
    for row in rows.values():
        # 36 experts of 216 bytes fit one box, those of 768 bytes need both.
        if row.quant == "bfloat16" and row.policy == "one-box":
            assert row.step_s is None
            assert "B are missing" in row.note
            continue
        assert row.step_s is not None
        assert row.moe_s is not None
        assert row.head_s is not None
        assert row.gap is not None
        assert row.step_s == pytest.approx(row.moe_s + row.head_s)
        assert row.tokens_per_s == pytest.approx(row.sequences * (1 + row.accepted_drafts) / row.step_s)
        assert row.gap >= -1e-9


def test_policies_that_are_run_are_cells_like_others(tmp_path: Path) -> None:
    text = STUDY.replace("[hottest-first, one-box]", f"[{', '.join(RUN_POLICIES)}]")
    study = Study.load(written(tmp_path, text))
    check_inputs(study, SHAPE)
    rows = list(run_cells(SHAPE, cells(study), processes=1))
    assert {row.policy for row in rows if row.step_s} == {"pipeline", "prompt-hottest"}
    for row in rows:
        if row.policy in ("lru", "lfu", "opt", "background-lru", "background-lfu"):
            assert row.note.startswith("a cache on 'head': ")
        elif row.step_s is not None:
            assert (row.hit_share is None) == (row.policy == "pipeline")
        else:
            assert "B are missing" in row.note or "whole MoE layers" in row.note


@pytest.mark.parametrize(("policies", "needed"), [("one-box", 400), ("one-box, prompt-hottest", 800)])
def test_too_short_a_text_is_refused_before_any_cell_runs(tmp_path: Path, policies: str, needed: int) -> None:
    text = STUDY.replace("hottest-first, one-box", policies).replace(
        "[1, {sequences: 2", "[1, {sequences: 200"
    )
    with pytest.raises(
        StudyFileError,
        match=rf"trace 'general': expected at least {needed} held-out tokens for a batch of 200\+1 drafts "
        r"\(0.5 hold\), found 200",
    ):
        check_inputs(Study.load(written(tmp_path, text)), SHAPE)


def test_a_head_without_a_device_is_refused_before_any_cell_runs(tmp_path: Path) -> None:
    path = written(tmp_path, STUDY)
    study = Study.load(path)
    boxes = yaml.safe_load(CLUSTER)
    boxes["nodes"][0]["devices"] = []
    study.clusters[0].write_text(yaml.safe_dump(boxes))
    with pytest.raises(StudyFileError, match=rf"{study.clusters[0].name}: node 'home': expected a device"):
        check_inputs(study, SHAPE)


def test_files_of_other_engines_plan_and_a_recorded_trace_judges(tmp_path: Path) -> None:
    """Counts as vLLM keeps them to plan on; what they lack, a trace, is asked for in one line."""
    generator = np.random.default_rng(0)
    trace = np.argsort(generator.random((300, 3, 12)), axis=2)[:, :, :2].astype(np.uint16)
    stats = RoutingStats.from_trace(SHAPE, trace, "test")
    np.save(tmp_path / "loads.npy", stats.counts.astype(np.int64))
    stats.save(tmp_path / "trace.npz")
    held_out = "{name: both, file: loads.npy, held_out_file: trace.npz, document_tokens: 100}"
    path = written(tmp_path, STUDY.replace("{name: general, domain: general, tokens: 200}", held_out))
    study = Study.load(path)
    check_inputs(study, SHAPE)
    routing = study.traces[0].load(SHAPE)
    assert np.array_equal(routing.planned.counts, stats.counts)
    assert np.array_equal(routing.held_out, trace)
    assert routing.document_tokens == 100
    path.write_text(path.read_text().replace("held_out_file: trace.npz, ", ""))
    with pytest.raises(RoutingFileError, match=r"loads.npy: .*found counts"):
        check_inputs(Study.load(path), SHAPE)


def test_several_processes_give_the_rows_of_one(tmp_path: Path) -> None:
    grid = cells(Study.load(written(tmp_path)))[:3]

    def timeless(rows: list[Row]) -> list[tuple[object, ...]]:
        return sorted((row.key, row.step_s, row.gap, row.remote_layers_per_token, row.note) for row in rows)

    assert timeless(list(run_cells(SHAPE, grid, 2))) == timeless(list(run_cells(SHAPE, grid, 1)))


def test_a_folder_is_gone_on_with_and_a_torn_row_runs_again(tmp_path: Path) -> None:
    study = Study.load(written(tmp_path))
    rows = list(run_cells(SHAPE, cells(study)[:3], processes=1))
    folder, keys = tmp_path / "out", [row.key for row in rows]
    results = ResultsFolder.open(folder, study.name, fingerprint(study, SHAPE), keys)
    for row in rows:
        results.add(row)
    with results.csv_path.open("a") as file:
        file.write("pair/general/q4/2x1")
    again = ResultsFolder.open(folder, study.name, fingerprint(study, SHAPE), keys)
    assert again.rows == rows
    assert again.csv_path.read_text().count("\n") == 1 + len(rows)


def test_rows_end_in_the_order_of_the_grid(tmp_path: Path) -> None:
    results = ResultsFolder.open(tmp_path / "out", "s", "1", ["a", "b"])
    for key in ("b", "a"):
        results.add(Row(key, "c", "t", "q4", 1, 0, 0.0, 0, "random"))
    results.sort(["a", "b"])
    assert [row.key for row in ResultsFolder.open(tmp_path / "out", "s", "1", ["a", "b"]).rows] == ["a", "b"]


@pytest.mark.parametrize(
    ("spoilt", "message"),
    [
        (lambda rows: b"\xff\n", "not UTF-8 text .*; remove the file"),
        (lambda rows: b"key,cluster\n", "expected the columns key, cluster, trace"),
        (lambda rows: rows.replace(b"\na,", b"\nz,"), "found 'z' again or unasked for"),
        (lambda rows: rows + rows.split(b"\n")[1] + b"\n", "found 'a' again"),
        (lambda rows: rows.replace(b",q4,1,", b",q4,one,"), "not as it was written"),
    ],
)
def test_results_that_others_have_written_into_are_refused(
    tmp_path: Path, spoilt: Callable[[bytes], bytes], message: str
) -> None:
    results = ResultsFolder.open(tmp_path / "out", "s", "1", ["a", "b"])
    results.add(Row("a", "c", "t", "q4", 1, 0, 0.0, 0, "random"))
    results.csv_path.write_bytes(spoilt(results.csv_path.read_bytes()))
    with pytest.raises(StudyFileError, match=message) as raised:
        ResultsFolder.open(tmp_path / "out", "s", "1", ["a", "b"])
    assert "\n" not in str(raised.value)


def test_results_of_another_study_are_refused_untouched(tmp_path: Path) -> None:
    ResultsFolder.open(tmp_path / "out", "first", "1", ["a", "b"])
    before = (tmp_path / "out" / "study.json").read_bytes()
    with pytest.raises(StudyFileError, match=r"results of another study \('first'\), expected 'second'"):
        ResultsFolder.open(tmp_path / "out", "second", "2", ["a", "b"])
    with pytest.raises(StudyFileError, match="an earlier form of 'first'"):
        ResultsFolder.open(tmp_path / "out", "first", "2", ["a", "b"])
    assert (tmp_path / "out" / "study.json").read_bytes() == before
    (tmp_path / "out" / "study.json").write_text("{}")
    with pytest.raises(StudyFileError, match=r"study.json: .*found none"):
        ResultsFolder.open(tmp_path / "out", "first", "1", ["a", "b"])
    (tmp_path / "file").write_text("keep")
    with pytest.raises(StudyFileError, match=r"file: .*found a file"):
        ResultsFolder.open(tmp_path / "file", "first", "1", ["a", "b"])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    with pytest.raises(StudyFileError, match="not a results folder and not empty"):
        ResultsFolder.open(tmp_path / "mine", "first", "1", ["a", "b"])


def test_sequences_of_a_pass_come_from_different_parts_of_the_text() -> None:
    trace = np.arange(12, dtype=np.uint16).reshape(12, 1, 1)
    ordered = in_passes(trace, Workload(num_sequences=2, drafts=1)).ravel().tolist()
    assert ordered == [0, 1, 6, 7, 2, 3, 8, 9, 4, 5, 10, 11]


def test_no_processes_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1"):
        list(run_cells(SHAPE, [], 0))


@pytest.mark.parametrize("name", ["study.json", "results.csv"])
def test_a_pipe_in_a_results_folder_is_refused_without_waiting(tmp_path: Path, name: str) -> None:
    loaded = Study.load(written(tmp_path))
    keys = [cell.key for cell in cells(loaded)]
    out = tmp_path / "out"
    ResultsFolder.open(out, loaded.name, "f", keys)
    (out / name).unlink()
    os.mkfifo(out / name)
    with pytest.raises(StudyFileError, match=f"{name}: it is a pipe"):
        ResultsFolder.open(out, loaded.name, "f", keys)


def test_a_results_folder_of_an_impossible_name_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="File name too long; expected a folder to write to"):
        ResultsFolder.open(tmp_path / ("x" * 300), "s", "1", ["a"])


def test_a_pipe_in_the_place_of_a_cluster_file_is_refused_without_waiting(tmp_path: Path) -> None:
    loaded = Study.load(written(tmp_path))
    loaded.clusters[0].unlink()
    os.mkfifo(loaded.clusters[0])
    with pytest.raises(ClusterFileError, match=r"it is a pipe.*; expected a cluster file"):
        fingerprint(loaded, SHAPE)


def test_a_long_axis_takes_no_longer_than_reading_it(tmp_path: Path) -> None:
    # Comparing each value with all others would take most of a minute.
    contexts = [*range(45_000), 44_999]
    file = written(tmp_path, re.sub(r"contexts: .*", f"contexts: {contexts}", STUDY))
    with pytest.raises(StudyFileError, match=r"contexts: .*found 44999 again"):
        Study.load(file)
