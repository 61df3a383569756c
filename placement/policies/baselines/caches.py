"""Which requests a cache would have held: LRU, LFU, and Belady's OPT as the bound for any of them.

A cache of experts is asked for several at once: those of one layer of one pass. What was there before the
request is a hit; afterwards the cache may hold what it held and what was asked for, no more than fits.

Every function takes `requests`, int [num_requests, width]: distinct experts of each request, -1 where it
asks for fewer; `capacity`, the experts that fit; and `first`, what is held at the beginning, the most
valuable first. Each returns bool [num_requests, width], true for hits. They are exact, in plain Python, a
million requested experts in one to three seconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def lru_hits(requests: NDArray[np.integer], capacity: int, first: Sequence[int] = ()) -> NDArray[np.bool_]:
    """Least recently used goes first; within one request, what stands first in its row."""
    cache = dict.fromkeys(reversed(first[:capacity]))
    hits = bytearray(requests.size)
    place = -1
    for row in requests.tolist():
        for expert in row:
            place += 1
            if expert < 0:
                continue
            if expert in cache:
                hits[place] = 1
                del cache[expert]
            cache[expert] = None
        while len(cache) > capacity:
            del cache[next(iter(cache))]
    return _as_array(hits, requests)


def lfu_hits(
    requests: NDArray[np.integer], capacity: int, first: Sequence[int] = (), uses_before: Sequence[int] = ()
) -> NDArray[np.bool_]:
    """Least often used goes first, among equals the least recently used, but never what was just asked for.

    Uses are counted of all experts, held or not.

    Args:
        uses_before: of each expert, in text before this one; none without it.
    """
    uses = dict(enumerate(uses_before))
    last = {expert: -1 - rank for rank, expert in enumerate(first[:capacity])}
    # (uses, last use, expert) of what is held; an entry that no longer says so is skipped.
    heap = [(uses.get(expert, 0), when, expert) for expert, when in last.items()]
    heapq.heapify(heap)
    cache = set(last)
    hits = bytearray(requests.size)
    place = -1
    for row in requests.tolist():
        asked = []
        for expert in row:
            place += 1
            if expert < 0:
                continue
            hits[place] = expert in cache
            uses[expert] = uses.get(expert, 0) + 1
            last[expert] = place
            asked.append(expert)
        cache.difference_update(asked)
        while cache and len(cache) + len(asked) > capacity:
            count, when, expert = heapq.heappop(heap)
            if expert in cache and (count, when) == (uses.get(expert, 0), last[expert]):
                cache.remove(expert)
        for expert in asked[-capacity:] if capacity else ():
            cache.add(expert)
            heapq.heappush(heap, (uses[expert], last[expert], expert))
    return _as_array(hits, requests)


def opt_hits(requests: NDArray[np.integer], capacity: int) -> NDArray[np.bool_]:
    """What is needed again last goes first (Belady, IBM Systems Journal 5, 1966): no cache has more hits.

    It knows the future, begins with whatever is best and need not keep what it was asked for, so that it
    bounds caches that begin with anything, and fixed contents too.
    """
    needed_again = _next_requests(requests)
    cache = _soonest(requests, capacity)
    heap = [(-when, expert) for expert, when in cache.items()]
    heapq.heapify(heap)
    hits = bytearray(requests.size)
    place = -1
    for row, following in zip(requests.tolist(), needed_again.tolist(), strict=True):
        for expert, when in zip(row, following, strict=True):
            place += 1
            if expert < 0:
                continue
            hits[place] = expert in cache
            cache[expert] = when
            heapq.heappush(heap, (-when, expert))
        while len(cache) > capacity:
            when, expert = heapq.heappop(heap)
            if cache.get(expert) == -when:
                del cache[expert]
    return _as_array(hits, requests)


def _next_requests(requests: NDArray[np.integer]) -> NDArray[np.int64]:
    """The later request that asks for the same expert again, num_requests where none does."""
    num_requests, width = requests.shape
    experts = requests.ravel()
    order = np.argsort(experts, kind="stable")
    again = experts[order[1:]] == experts[order[:-1]]
    following = np.full(experts.size, num_requests, dtype=np.int64)
    following[order[:-1][again]] = order[1:][again] // max(width, 1)
    return following.reshape(requests.shape)


def _soonest(requests: NDArray[np.integer], capacity: int) -> dict[int, int]:
    """The `capacity` experts that are asked for first, with the request that does."""
    experts, places = np.unique(requests, return_index=True)
    places = places[experts >= 0]
    experts = experts[experts >= 0]
    order = np.argsort(places)[:capacity]
    first = places[order] // max(requests.shape[1], 1)
    return dict(zip(experts[order].tolist(), first.tolist(), strict=True))


def _as_array(hits: bytearray, requests: NDArray[np.integer]) -> NDArray[np.bool_]:
    return np.frombuffer(bytes(hits), dtype=np.bool_).reshape(requests.shape)
