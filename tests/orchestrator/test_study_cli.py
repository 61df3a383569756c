"""`potluck study`: rows, a page without network, and errors before anything is written."""

from __future__ import annotations

import re

import pytest

from orchestrator.study_report.page import compare, write_page
from placement.study.config import Study
from placement.study.grid import cells
from placement.study.runner import run_cells
from tests.placement.study.test_study import SHAPE, STUDY, written


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("study")
    text = STUDY.replace("[hottest-first,", "[least-time, hottest-first,") + "contexts: [0, 8]\n"
    study = Study.load(written(folder, text.replace("name: small\n", 'name: "<b>small</b>"\n', 1)))
    rows = list(run_cells(SHAPE, cells(study), processes=1))
    assert len(compare(rows)) == 2 * 2 * 2
    write_page(study, rows, folder / "report.html")
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
