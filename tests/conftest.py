"""How much is tried in tests, and which of them go to one process of several."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

from tests.brief import search_briefly
from tests.examples import DAILY
from workers.memory import reservations

# Of any time, since other work may take the processors.
settings.register_profile("daily", max_examples=DAILY, deadline=None)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile("daily")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadgroup` a file's tests go to one process, which makes what they share once.

    Files that name a group go together.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class ByFile(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope = super()._split_scope(nodeid)
            return nodeid.partition("::")[0] if scope == nodeid else scope

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def own_reservations(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other commands of this user have set aside of the memory does not change what tests see."""
    folder = tmp_path_factory.getbasetemp() / "reservations"
    monkeypatch.setattr(reservations, "default_folder", lambda: folder)


@pytest.fixture(autouse=True)
def brief_search(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What uses a plan need not have the best one.

    Long tests and those that ask how good plans are (`whole_search`) have the planner's whole search.
    """
    if not any(request.node.get_closest_marker(name) for name in ("long", "whole_search")):
        search_briefly(monkeypatch)
