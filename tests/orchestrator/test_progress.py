"""The bar of what takes long: who sees it, and when."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from orchestrator.cli import progress
from orchestrator.cli.progress import PATIENCE_S, shown_progress

GB = 10**9


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """Standard error as a terminal."""
    shown = io.StringIO()
    monkeypatch.setattr(progress, "errors", Console(file=shown, force_terminal=True, width=100))
    return shown


def test_a_bar_shows_bytes_once_it_has_taken_a_moment(terminal: io.StringIO) -> None:
    clock = Clock()
    with shown_progress("loading", silent=False, clock=clock) as show:
        assert show is not None
        show(GB, 10 * GB)
        assert terminal.getvalue() == ""
        clock.now = PATIENCE_S
        show(3 * GB, 10 * GB)
    assert "loading" in terminal.getvalue()
    assert "3.0/10.0 GB" in terminal.getvalue()


def test_bytes_that_begin_anew_have_a_bar_and_a_moment_of_their_own(terminal: io.StringIO) -> None:
    clock = Clock()
    with shown_progress("loading", silent=False, clock=clock) as show:
        assert show is not None
        clock.now = PATIENCE_S
        show(3 * GB, 3 * GB)
        show(GB, 8 * GB)
        assert terminal.getvalue() == ""
        clock.now = 2 * PATIENCE_S
        show(2 * GB, 8 * GB)
    assert "2.0/8.0 GB" in terminal.getvalue()


def test_nobody_sees_a_bar_without_a_terminal_or_where_one_document_is_wanted(
    terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shown_progress("loading", silent=True) as show:
        assert show is None
    monkeypatch.setattr(progress, "errors", Console(file=io.StringIO()))
    with shown_progress("loading", silent=False) as show:
        assert show is None
    assert terminal.getvalue() == ""
