"""`potluck study`: rows, a page without network, and errors before anything is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from orchestrator.cli.study import study
from orchestrator.cli.whatif import whatif
from orchestrator.study_report.page import compare, write_page
from placement.errors import ClusterFileError
from placement.study.config import Study
from placement.study.grid import cells
from placement.study.runner import run_cells
from tests.placement.study.test_study import SHAPE, STUDY, written


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("study")
    text = STUDY.replace("[hottest-first,", "[least-time, hottest-first,") + "contexts: [0, 8]\n"
    loaded = Study.load(written(folder, text.replace("name: small\n", 'name: "<b>small</b>"\n', 1)))
    rows = list(run_cells(SHAPE, cells(loaded), processes=1))
    assert len(compare(rows)) == 2 * 2 * 2
    write_page(loaded, rows, folder / "report.html")
    return (folder / "report.html").read_text()


def test_the_page_opens_without_a_network(page: str) -> None:
    assert not re.findall(r"(?:src|href)=[\"'](?!#)", page)
    assert "url(http" not in page
    assert page.count("<svg") == 2


def test_names_from_files_are_text_not_markup(page: str) -> None:
    assert "<b>small</b>" not in page
    assert "&lt;b&gt;small" in page


def test_what_does_not_fit_says_so(page: str) -> None:
    assert "bytes are missing" in page


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


def test_a_wrong_cluster_file_leaves_no_folder_behind(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("head: nobody\nnodes: []\n")
    with pytest.raises(ClusterFileError):
        study(published(tmp_path, broken), out=None, processes=1, json=False)
    assert not (tmp_path / "grid").exists()


def test_what_one_change_buys_is_ranked_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    whatif(
        CLUSTERS / "gpu-workstation.yaml",
        model="step-3.5-flash",
        quant="q4",
        stats=None,
        sequences=1,
        context=0,
        policy="hottest-first",
        new_round_trip=3e-4,
        new_gbits=2.5,
        json=True,
    )
    document = json.loads(capsys.readouterr().out)
    gains = [change["gain"] for change in document["changes"]]
    assert gains == sorted(gains, reverse=True)
    assert {change["what"].split(":")[0] for change in document["changes"]} == {
        "GPU memory of study-gpu",
        "RAM of study-ram",
        "one more box like study",
    }
