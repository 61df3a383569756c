"""How much is tried in tests, in which order, and which of them go to one process of several."""

from __future__ import annotations

import gc
import importlib
import os
import shlex
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings

from tests.cuda_on_cpu.card import take_cards_away
from tests.examples import DAILY
from tests.forks.forks import SOCKET_VARIABLE, Forks, server
from workers.memory import reservations

# Of any time, since other work may take the processors.
settings.register_profile("daily", max_examples=DAILY, deadline=None)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile("daily")


# Begun last, one of these would keep one process busy after the others have ended.
LONGEST_FIRST = (
    "tests/simulation/",
    "tests/orchestrator/launch/",
    "tests/faults/",
    "tests/orchestrator/cluster/",
)


def pytest_configure(config: pytest.Config) -> None:
    """Where several processes share the tests, they share the one that is forked, and are forked from it."""
    # Kernels that tests compile for a card are kept in this tree, not among the user's own.
    os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parents[1] / "build" / "cache")
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        made = server()
        os.environ[SOCKET_VARIABLE] = where = made.__enter__()
        forked = f"popen//python={shlex.join(Forks(where).command([]))}"
        config.option.tx = [forked if each == "popen" else each for each in config.option.tx]
        config.add_cleanup(lambda: made.__exit__(None, None, None))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection(session: pytest.Session) -> Generator[None, Any, Any]:
    """What is collected stays to the end: nothing of it is looked at as garbage, now or later."""
    gc.disable()
    try:
        _load_others_first(session.config)
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def _load_others_first(config: pytest.Config) -> None:
    """Where several processes collect all tests, each begins with other files.

    In the same order, each would compile every file of a new clone, and read its constants for Hypothesis.
    """
    if not hasattr(config, "workerinput") or config.args != config.getini("testpaths"):
        return
    number, count = int(config.workerinput["workerid"].removeprefix("gw")), config.workerinput["workercount"]
    names = [
        ".".join(path.relative_to(config.rootpath).with_suffix("").parts)
        for folder in config.args
        for path in sorted((config.rootpath / folder).rglob("test_*.py"))
    ]
    first = len(names) * number // count
    for name in names[first:] + names[:first]:
        # Collection comes to it again, and says what is wrong.
        with suppress(Exception, pytest.skip.Exception):
            importlib.import_module(name)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every test has a name of its own; where several processes share them, the longest files come first."""
    # Of several tests with one name, processes that share the tests run the first.
    if twice := [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]:
        raise pytest.UsageError(f"several tests are named {twice[0]}")
    if not config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return

    def place(item: pytest.Item) -> int:
        found = (index for index, start in enumerate(LONGEST_FIRST) if item.nodeid.startswith(start))
        return next(found, len(LONGEST_FIRST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadgroup` a file's tests go to one process, which makes what they share once.

    Files that name a group go together. A simulation shares nothing.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class ByFile(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            scope = super()._split_scope(nodeid)
            shares_nothing = nodeid.startswith("tests/simulation/")
            return nodeid.partition("::")[0] if scope == nodeid and not shares_nothing else scope

    return ByFile(config, log)


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """What workers and other processes are forked from."""
    if where := os.environ.get(SOCKET_VARIABLE):
        yield Forks(where)
    else:
        with server() as where:
            yield Forks(where)


@pytest.fixture(scope="module")
def quick_workers(forks: Forks) -> Iterator[None]:
    """Workers of this machine start without loading torch each time."""
    with (
        mock.patch("orchestrator.launch.local.spawn", forks.spawn),
        mock.patch("orchestrator.launch.kept_worker.start_detached", forks.start_detached),
    ):
        yield


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
        from tests.brief import search_briefly

        search_briefly(monkeypatch)


@pytest.fixture(autouse=True)
def _no_card_left() -> Iterator[None]:
    """A card that a test had is gone for the next ones of its process."""
    yield
    take_cards_away()
