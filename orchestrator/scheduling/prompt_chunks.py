"""How many tokens of prompts a pass takes, and whose."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.scheduling.job import Job
from orchestrator.scheduling.native import MeasuredCosts
from orchestrator.scheduling.step_plan import Prefill


def prompt_rows(costs: MeasuredCosts, decode_rows: int, most_rows: int, most_delay_s: float) -> int:
    """Rows that may join a pass of `decode_rows` rows: at least one, as many as delay it so much at most.

    Without sequences that are decoded nobody is delayed.
    """
    if not decode_rows or most_rows <= 1:
        return most_rows
    alone_s = costs.trunk_s(decode_rows)

    def delay_s(rows: int) -> float:
        return costs.trunk_s(decode_rows + rows) - alone_s

    low, high = 1, most_rows
    while low < high:
        middle = (low + high + 1) // 2
        if delay_s(middle) <= most_delay_s:
            low = middle
        else:
            high = middle - 1
    return low


def share_out(jobs: Sequence[Job], rows: int, order: Sequence[Job]) -> tuple[Prefill, ...]:
    """Give rows to jobs whose prompts are not computed yet.

    The one that was let in first gets half of them at least, so that no stream of short prompts keeps a long
    one from ending. The others follow in `order`, and what they leave is the first one's again.

    Args:
        jobs: in the order in which they were let in.
        order: the same jobs.
    """
    if not jobs or rows < 1:
        return ()
    oldest = jobs[0]
    given = {oldest.sequence: min(oldest.to_prefill, -(-rows // 2))}
    left = rows - given[oldest.sequence]
    for job in (*(job for job in order if job is not oldest), oldest):
        more = min(left, job.to_prefill - given.get(job.sequence, 0))
        given[job.sequence] = given.get(job.sequence, 0) + more
        left -= more
    return tuple(Prefill(job.sequence, given[job.sequence]) for job in jobs if given[job.sequence])
