"""Whose turn it is: the client that was served least.

A counter of served tokens for each client, after the Virtual Token Counter of Sheng et al., "Fairness in
Serving Large Language Models" (OSDI 2024).
"""

from __future__ import annotations

from collections.abc import Collection


class ClientShares:
    """Tokens served to each client that has requests here.

    Who comes with nothing here begins with the count of the least served one: time in which nothing was asked
    is no credit. Who leaves is remembered only while that keeps it from coming back as if new.
    """

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._active: dict[str, int] = {}
        """Client -> its requests here."""

    def enter(self, client: str) -> None:
        """A request came."""
        if client not in self._active:
            least = min((self._served[other] for other in self._active), default=0)
            self._served[client] = max(self._served.get(client, 0), least)
        self._active[client] = self._active.get(client, 0) + 1

    def with_client(self, client: str) -> ClientShares:
        """What they would be with a request of this client more; these stay as they are."""
        found = ClientShares()
        found._served, found._active = dict(self._served), dict(self._active)
        found.enter(client)
        return found

    def leave(self, client: str) -> None:
        """A request ended."""
        self._active[client] -= 1
        if not self._active[client]:
            del self._active[client]
        least = min((self._served[other] for other in self._active), default=None)
        for other in [other for other in self._served if other not in self._active]:
            if least is None or self._served[other] <= least:
                del self._served[other]

    def charge(self, client: str, tokens: int) -> None:
        """So many tokens were computed for it."""
        if client in self._active:
            self._served[client] += tokens

    def served(self, client: str) -> int:
        """Its count."""
        return self._served.get(client, 0)

    @property
    def clients(self) -> Collection[str]:
        """Those with requests here."""
        return self._active.keys()
