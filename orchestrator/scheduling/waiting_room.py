"""Who may stand in the line."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from math import ceil

from orchestrator.scheduling.client_shares import ClientShares
from orchestrator.scheduling.job import Job
from orchestrator.scheduling.kv_budget import KvBudget
from orchestrator.scheduling.limits import Limits
from orchestrator.scheduling.line import Line

HasRoom = Callable[[Job, Iterable[Job]], bool]
"""Whether a job may be computed beside others."""


def too_much(
    coming: Sequence[Job], waiting: Collection[Job], num_clients: int, limits: Limits, kv: KvBudget
) -> str | None:
    """Why the line has no place for all that come; None where it has.

    Each client has a part of it, and one part is left for who comes next.

    Args:
        coming: jobs of one client.
        waiting: who would wait, these among them, if they stood in the line.
        num_clients: with requests here, this one among them.
    """
    own = [job for job in waiting if job.client == coming[0].client]
    for whose, jobs, share in (("of yours ", own, 1 / (1 + num_clients)), ("", waiting, 1.0)):
        # Whoever waits alone always may.
        if len(jobs) < 2:
            continue
        most = ceil(max(1, limits.most_waiting * share))
        if len(jobs) > most:
            return f"{len(jobs)} answers {whose}would wait, and no more than {most} may"
        filled, most_filled = kv.share(job.positions(0) for job in jobs), limits.most_waiting_kv * share
        if filled > most_filled:
            return (
                f"prompts {whose}that would wait fill all keys and values {filled:.1f} times, and no more "
                f"than {most_filled:.1f} times may"
            )
    return None


def too_much_at_once(coming: Sequence[Job], limits: Limits, kv: KvBudget, has_room: HasRoom) -> str | None:
    """Why even an idle server has no place for all that come; None where it has."""
    shares = ClientShares().with_client(coming[0].client)
    return too_much(coming, who_waits(coming, shares, (), has_room), 1, limits, kv)


def who_waits(
    jobs: Iterable[Job], shares: ClientShares, running: Iterable[Job], has_room: HasRoom
) -> list[Job]:
    """Of those who stand in the line, all who find no room beside those who run.

    Who comes last may stand before others, who then wait on. Where one that runs gives way to a job, it takes
    that job's place in the line, so the number stays.
    """
    line, let_in = Line(shares), list(running)
    for job in jobs:
        line.add(job)
    while (first := line.first()) is not None and has_room(first, let_in):
        line.remove(first)
        let_in.append(first)
    return list(line)
