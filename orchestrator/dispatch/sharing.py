"""Which rows and experts each worker is asked for, once one is chosen for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.dispatch.debts import Ints, Rows


class Share(NamedTuple):
    """One message's part: expert_ids [n, top_k], -1 where not the worker's; `pairs` counts the others."""

    worker: int
    rows: Rows
    expert_ids: Ints
    pairs: int


def chosen_workers(chosen: NDArray[np.integer], expert_ids: Ints) -> list[int]:
    """Workers that were chosen for something, ascending; -1 first if somebody is missing."""
    # For the few pairs of a decode step plain numbers take a third of the time of arrays.
    if expert_ids.size > 64:
        counts = np.bincount(chosen[expert_ids >= 0] + 1)
        return [worker - 1 for worker in counts.nonzero()[0].tolist()]
    picks, ids = chosen.ravel().tolist(), expert_ids.ravel().tolist()
    return sorted({pick for pick, expert in zip(picks, ids, strict=True) if expert >= 0})


def shares(
    rows: Rows, expert_ids: Ints, chosen: NDArray[np.integer], workers: Sequence[int], max_rows: int
) -> list[Share]:
    """What each of `workers` (`chosen_workers`) is asked for, in messages of at most `max_rows`.

    Args:
        rows: [n], the rows' numbers.
        expert_ids: [n, top_k], -1 where nothing is to be computed.
        chosen: [n, top_k], a worker for each.
    """
    if len(rows) == 1:
        return _of_one_row(rows, expert_ids, chosen, workers)
    wanted = expert_ids >= 0
    if len(workers) == 1 and len(rows) <= max_rows and wanted.all():
        return [Share(workers[0], rows, expert_ids, expert_ids.size)]
    # Of all workers at once: [num_workers, n, top_k].
    mine = (chosen == np.array(workers)[:, None, None]) & wanted
    ids = np.where(mine, expert_ids, np.int32(-1))
    found = []
    for worker, its_ids, its_rows in zip(workers, ids, mine.any(axis=2), strict=True):
        if its_rows.all() and len(rows) <= max_rows:
            found.append(Share(worker, rows, its_ids, int(np.count_nonzero(its_ids >= 0))))
            continue
        places = its_rows.nonzero()[0]
        for start in range(0, len(places), max_rows):
            part = places[start : start + max_rows]
            part_ids = its_ids[part]
            found.append(Share(worker, rows[part], part_ids, int(np.count_nonzero(part_ids >= 0))))
    return found


def _of_one_row(
    rows: Rows, expert_ids: Ints, chosen: NDArray[np.integer], workers: Sequence[int]
) -> list[Share]:
    """The same of one row, with plain numbers."""
    (ids,), (picks,) = expert_ids.tolist(), chosen.tolist()
    if len(workers) == 1 and -1 not in ids:
        return [Share(workers[0], rows, expert_ids, len(ids))]
    found = []
    for worker in workers:
        mine = [expert if pick == worker else -1 for expert, pick in zip(ids, picks, strict=True)]
        found.append(Share(worker, rows, np.array([mine], np.int32), len(mine) - mine.count(-1)))
    return found
