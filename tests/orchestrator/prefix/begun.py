"""A sequence's caches with what is kept of its text, as `SequenceState` has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.model.kv_cache import KVCache
from orchestrator.model.mtp_state import MtpState
from orchestrator.prefix.cache import PrefixCache


class Trunk(Protocol):
    def new_cache(self) -> KVCache: ...


class Drafter(Protocol):
    def new_state(self) -> MtpState: ...


@dataclass(frozen=True)
class Begun:
    """`matched`, `shared`: as in `Resumed`."""

    cache: KVCache
    mtp: MtpState | None
    matched: int
    shared: int


def begun(prefix: PrefixCache, trunk: Trunk, token_ids: Sequence[int], drafter: Drafter | None) -> Begun:
    """The caller closes the caches."""
    cache, mtp = trunk.new_cache(), drafter.new_state() if drafter is not None else None
    found = prefix.fill(token_ids, cache, mtp)
    return Begun(cache, mtp, found.matched, found.shared)
