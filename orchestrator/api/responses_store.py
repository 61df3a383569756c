"""Responses that can be asked for again, or gone on from: the newest, in memory."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

MOST_RESPONSES = 1000
# As JSON; objects in memory are several times larger.
MOST_BYTES = 50_000_000


@dataclass(frozen=True, slots=True)
class Stored:
    """`items`: of the whole conversation up to this response, its output included."""

    response: Json
    items: tuple[Json, ...]
    num_bytes: int


class ResponseStore:
    """Each client sees its own. What was used longest ago goes first."""

    def __init__(self, most_responses: int = MOST_RESPONSES, most_bytes: int = MOST_BYTES) -> None:
        self._most_responses = most_responses
        self._most_bytes = most_bytes
        self._kept: OrderedDict[tuple[str, str], Stored] = OrderedDict()
        self._num_bytes = 0

    def put(self, client: str, response: Json, items: Sequence[Json]) -> None:
        """Keep a response; one that is larger than the whole store is not kept."""
        num_bytes = len(json.dumps([response, list(items)]))
        self._kept[client, response["id"]] = Stored(response, tuple(items), num_bytes)
        self._num_bytes += num_bytes
        while self._num_bytes > self._most_bytes or len(self._kept) > self._most_responses:
            self._num_bytes -= self._kept.popitem(last=False)[1].num_bytes

    def get(self, client: str, response_id: str) -> Stored | None:
        """A client's response; None where it is not kept, or another's."""
        stored = self._kept.get((client, response_id))
        if stored is not None:
            self._kept.move_to_end((client, response_id))
        return stored

    def item(self, client: str, item_id: str) -> Json | None:
        """An item of a client's newest response that has it."""
        for (owner, _), stored in reversed(self._kept.items()):
            if owner == client:
                for item in reversed(stored.items):
                    if item.get("id") == item_id:
                        return item
        return None

    def delete(self, client: str, response_id: str) -> bool:
        """Whether it was there."""
        stored = self._kept.pop((client, response_id), None)
        if stored is not None:
            self._num_bytes -= stored.num_bytes
        return stored is not None
