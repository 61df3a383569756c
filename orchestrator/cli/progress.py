"""How far something has come, for somebody who waits at a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from orchestrator.cli.output import errors

PATIENCE_S = 1.5
"""What ends sooner shows no bar."""

_COLUMNS = (
    TextColumn("{task.description}"),
    BarColumn(),
    DownloadColumn(),
    TransferSpeedColumn(),
    TimeRemainingColumn(),
)


@contextmanager
def shown_progress(
    what: str, *, silent: bool, clock: Callable[[], float] = monotonic
) -> Iterator[Callable[[int, int], None] | None]:
    """Gives what to call with (bytes done, bytes in all), None where nobody watches.

    After a moment a bar appears on standard error with bytes, rate and time left. It goes with the block.
    Where bytes begin anew, so does the bar.
    """
    if silent or not errors.is_interactive:
        yield None
        return
    bar = Progress(*_COLUMNS, console=errors, transient=True)
    task: TaskID | None = None
    began, before = clock(), -1

    def show(done: int, total: int) -> None:
        nonlocal task, began, before
        if done < before:
            began = clock()
            if task is not None:
                bar.remove_task(task)
                task = None
        before = done
        if task is not None:
            bar.update(task, completed=done)
        elif done < total and clock() - began >= PATIENCE_S:
            bar.start()
            task = bar.add_task(what, total=total, completed=done)

    try:
        yield show
    finally:
        bar.stop()
