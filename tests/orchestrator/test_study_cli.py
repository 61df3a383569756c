"""`potluck study`: rows, a page without network, and errors before anything is written."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.cli.study import study
from orchestrator.cli.whatif import ranking_rows, whatif
from orchestrator.study_report.comparison import (
    Comparison,
    compare,
    setting_labels,
    summary,
    winners,
    winners_sentence,
)
from orchestrator.study_report.page import write_page
from placement.answers.prediction_range import LikelySpeed, SpeedRange
from placement.answers.study.config import Study
from placement.answers.study.fit import NotFitting, not_fitting
from placement.answers.study.grid import cells
from placement.answers.study.results import Row
from placement.answers.study.runner import run_cells
from placement.answers.whatif import Outcome, in_order
from placement.errors import ClusterFileError, InputError, StudyFileError
from tests.orchestrator.command_line import Potluck, document
from tests.placement.answers.study.test_study import SHAPE, STUDY, written
from tests.placement.spreads import spreads


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("study")
    text = STUDY.replace("[0]", "[0, 8]").replace("name: small\n", 'name: "<b>small</b>"\n', 1)
    rows = list(run_cells(SHAPE, cells(Study.load(written(folder, text))), processes=1))
    # No page asks how good the planner's rows are, so they need no search: they are those of another policy.
    rows += [
        replace(row, policy="least-time", key=row.key.replace("hottest-first", "least-time"))
        for row in rows
        if row.policy == "hottest-first"
    ]
    loaded = Study.load(written(folder, text.replace("[hottest-first,", "[least-time, hottest-first,")))
    assert len(compare(rows, spreads().same_boxes)) == 2 * 2 * 2
    write_page(loaded, rows, folder / "report.html")
    return (folder / "report.html").read_text()


def test_the_page_opens_without_a_network(page: str) -> None:
    assert not re.findall(r"(?:src|href)=[\"'](?!#)", page)
    assert "url(http" not in page
    # Two quantisations, each by policy, by context and by batch; two of these with a legend.
    assert page.count("<svg") == 2 * (1 + 2 + 2)


def test_settings_are_told_apart_by_the_axes_that_vary() -> None:
    rows = [
        Row("k", "pair", "general", "q4", sequences, drafts, 0.5 * drafts, 4096, "least-time")
        for sequences, drafts in ((1, 0), (2, 1))
    ]
    assert setting_labels(rows) == ["pair, batch 1", "pair, batch 2+1 drafts (0.5 hold)"]
    assert setting_labels(rows[:1]) == ["pair"]


def test_the_summary_gives_the_median_and_both_ends() -> None:
    def row(policy: str, step_s: float) -> Row:
        return Row("k", "pair", "general", "q4", 1, 0, 0.0, 0, policy, step_s=step_s)

    found = [Comparison(row("least-time", 1.0), row("uniform", step_s)) for step_s in (3.0, 0.99, 1.1)]
    assert summary(found) == (
        "Beside the planner's step, the best other policy's is 10.0% longer at the median of 3 settings "
        "(from 1.0% shorter to 3.0 times as long)."
    )
    assert summary([]) is None


def cell(setting: str, policy: str, step_s: float) -> Row:
    speed = 1 / step_s
    made = Row(f"{setting}/{policy}", setting, "general", "q4", 1, 0, 0.0, 0, policy, step_s=step_s)
    return replace(made, tokens_per_s=speed, tokens_per_s_low=0.8 * speed, tokens_per_s_high=1.1 * speed)


def test_a_winner_is_named_by_what_differs_on_the_same_boxes_not_by_the_range_of_speeds() -> None:
    """5%, where each speed by itself may be off by 20%."""
    rows = [
        *(cell("near", policy, step_s) for policy, step_s in (("least-time", 1.0), ("uniform", 1.049))),
        *(cell("far", policy, step_s) for policy, step_s in (("uniform", 1.051), ("least-time", 1.0))),
        *(
            cell("theirs", policy, s)
            for policy, s in (("least-time", 2.0), ("uniform", 1.0), ("random", 3.0))
        ),
        # Nobody can have what knows the text to come.
        *(cell("known", policy, s) for policy, s in (("least-time", 1.0), ("opt", 0.1), ("uniform", 1.02))),
        cell("alone", "least-time", 1.0),
    ]
    found = winners(rows, spreads().same_boxes)
    assert found == {"near": None, "far": "least-time", "theirs": "uniform", "known": None}
    assert {c.ours.cluster: c.winner for c in compare(rows, spreads().same_boxes)} == found
    assert winners_sentence(found) == (
        "Of 4 settings, won by more than predictions for the same boxes may be off: least-time in 1, uniform "
        "in 1; in 2 there is no difference we can promise."
    )
    assert winners_sentence({"near": None}) == (
        "No difference between policies that we can promise, in 1 setting."
    )
    assert winners_sentence({}) is None


def test_the_page_says_which_differences_can_be_promised(page: str) -> None:
    assert re.search(
        "Of 8 settings, won by|No difference between policies that we can promise, in 8 settings", page
    )
    assert re.search(r"<td class=\"text\">no difference we can promise</td>", page)
    assert re.search(r"<td>[\d.]+ to [\d.]+</td>", page)


def test_names_from_files_are_text_not_markup(page: str) -> None:
    assert "<b>small</b>" not in page
    assert "&lt;b&gt;small" in page


def test_what_does_not_fit_says_so(page: str) -> None:
    assert "B are missing" in page


# Enough memory for all experts, a GPU too small for the head.
GAMING = """
head: gaming
nodes:
  - name: gaming
    devices:
      - {name: gpu, kind: vram, memory_bytes: 12GB, bandwidth_gbytes_per_s: 672, ffn_gflops: 40000}
      - {name: ram, kind: ram, memory_bytes: 256GB, bandwidth_gbytes_per_s: 70, ffn_gflops: 800}
"""

CLUSTERS = Path(__file__).parents[2] / "docs" / "studies" / "clusters"


def published(folder: Path, cluster: Path = CLUSTERS / "gpu-and-two-cpu-boxes.yaml") -> Path:
    path = folder / "grid.yaml"
    path.write_text(
        f"name: grid\nmodel: step-3.5-flash\npolicies: [hottest-first]\nclusters: ['{cluster}']\n"
        "quants: [q4, float32]\ntraces: [{name: general, domain: general, tokens: 64}]\n"
    )
    return path


def test_the_command_writes_a_folder_and_has_nothing_left_to_do_the_second_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = published(tmp_path)
    study(file, out=None, processes=1, json=True)
    written_cells = json.loads(capsys.readouterr().out)["cells"]
    assert [cell["step_s"] is None for cell in written_cells] == [False, True]
    study(file, out=None, processes=1, json=True)
    assert json.loads(capsys.readouterr().out)["cells"] == written_cells
    assert {path.name for path in (tmp_path / "grid").iterdir()} == {
        "study.json",
        "results.csv",
        "report.html",
    }


def test_a_cluster_that_does_not_fit_is_said_everywhere(potluck: Potluck, tmp_path: Path) -> None:
    (tmp_path / "gaming.yaml").write_text(GAMING)
    file = published(tmp_path)
    text = file.read_text().replace("clusters: [", "clusters: [gaming.yaml, ")
    # With a head in bfloat16, which its GPU cannot hold.
    file.write_text(text.replace("quants: [q4, float32]", "head_bits: 16\nquants: [q4, q8]"))
    code, out, err = potluck("study", file, "--processes", 1)
    assert code == 0, err
    lines = [line for line in out.splitlines() if line.startswith("Does not fit: ")]
    assert len(lines) == 2
    assert re.search(r"gaming: none of 2 .*node gaming, device gpu: .*KV cache", lines[0])
    assert re.search(r"gpu-and-two-cpu-boxes: 1 of 2 .*12,096 experts", lines[1])
    made = document(potluck("study", file, "--processes", 1, "--json"))
    assert [(c["cluster"], c["cells"], c["of_cells"]) for c in made["not_fitting"]] == [
        ("gaming", 2, 2),
        ("gpu-and-two-cpu-boxes", 1, 2),
    ]
    page = (tmp_path / "grid" / "report.html").read_text()
    assert page.count("Does not fit: ") == 2
    assert "Does not fit: gaming: none of 2 cells fit" in page


def test_reasons_are_counted_and_the_frequent_ones_come_first() -> None:
    def row(cluster: str, note: str) -> Row:
        fits = {} if note else {"step_s": 1.0}
        return Row("k", cluster, "general", "q4", 1, 0, 0.0, 0, "uniform", note=note, **fits)

    rows = [row("a", ""), row("b", "x"), row("b", "y"), row("b", "y"), row("b", ""), row("c", "z")]
    found = not_fitting(rows)
    assert found == [NotFitting("b", 3, 4, ("y", "x")), NotFitting("c", 1, 1, ("z",))]
    assert [cluster.sentence for cluster in found] == [
        "b: 1 of 4 cells fit: y; x",
        "c: none of 1 cells fit: z",
    ]
    assert NotFitting("d", 9, 9, tuple("vwxyz")).sentence.endswith(": v; w; x; 2 reasons more")


def test_a_wrong_cluster_file_leaves_no_folder_behind(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("head: nobody\nnodes: []\n")
    with pytest.raises(ClusterFileError):
        study(published(tmp_path, broken), out=None, processes=1, json=False)
    assert not (tmp_path / "grid").exists()


def test_an_unknown_model_names_the_file_and_leaves_no_folder_behind(tmp_path: Path) -> None:
    file = published(tmp_path)
    file.write_text(file.read_text().replace("step-3.5-flash", "step-9"))
    with pytest.raises(InputError, match=r"grid.yaml: model: model 'step-9' is not built in"):
        study(file, out=None, processes=1, json=False)
    assert not (tmp_path / "grid").exists()


def test_what_one_change_buys_is_ranked_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    whatif(
        CLUSTERS / "gpu-workstation.yaml",
        model="step-3.5-flash",
        quant="q4",
        stats=None,
        tokens_per_step=1,
        context=0,
        policy="hottest-first",
        cable_round_trip=3e-4,
        cable_gbits=2.5,
        json=True,
    )
    document = json.loads(capsys.readouterr().out)
    changes = document["changes"]
    gains = [change["gain"] for change in changes if change["place"] is not None]
    assert gains == sorted(gains, reverse=True)
    assert [change["verdict"] for change in changes if change["place"] is not None] == ["faster"] * len(gains)
    for change in (document["now"], *changes):
        assert change["range"]["low"] < change["tokens_per_s"] < change["range"]["high"]
        assert change["range"]["basis"] == "typed"
    assert {change["what"].split(":")[0] for change in document["changes"]} == {
        "one more card like study-gpu",
        "RAM of study-ram",
        "one more box like study",
    }


def test_a_change_that_makes_it_twice_as_fast_or_more_is_a_factor() -> None:
    now, change = outcome("as it is", 2.0), outcome("one more box", 30.69)
    assert ranking_rows(in_order(now, [change]))[1][:4] == (
        "1. one more box",
        "30.69",
        "25 to 34",
        "15 times",
    )


def outcome(what: str, tokens_per_s: float) -> Outcome:
    return Outcome(what, None, LikelySpeed(tokens_per_s, SpeedRange(0.8, 1.1, 9, 0.8, "typed")), 3.0)


def test_changes_without_a_place_come_behind_a_line_that_says_why() -> None:
    tried = [outcome("little", 10.5), outcome("much", 20.0), outcome("bad", 5.0), Outcome("nothing", None)]
    rows = ranking_rows(in_order(outcome("as it is", 10.0), tried))
    assert [row[0] for row in rows] == [
        "as it is",
        "1. much",
        "no difference we can promise:",
        "little",
        "slower:",
        "bad",
        "nothing",
    ]
    assert rows[3][1:4] == ("10.50", "8.4 to 12", "+5.0%")
    assert {len(row) for row in rows} == {7}


def test_a_results_folder_of_an_impossible_name_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StudyFileError, match="File name too long; expected a folder to write to"):
        study(published(tmp_path), out=tmp_path / ("x" * 300), processes=1, json=False)
