"""Orders on the wire, taken for the holdings of this process."""

from __future__ import annotations

from transport.messages import MAX_TEXT_CHARS, Drop, Held, Hold
from workers.holdings import Holdings, OrderState


class OrderTaker:
    """Holdings as orders on the wire reach them."""

    def __init__(self, holdings: Holdings) -> None:
        self._holdings = holdings

    def hold(self, order: Hold) -> Held:
        """Errors as `Holdings.hold`."""
        return self._held(order, self._holdings.hold(order.order, order.experts, order.rate_bytes_per_s))

    def drop(self, order: Drop) -> Held:
        """Errors as `Holdings.drop`."""
        return self._held(order, self._holdings.drop(order.order, order.experts))

    @staticmethod
    def _held(order: Hold | Drop, state: OrderState) -> Held:
        text = state.text[:MAX_TEXT_CHARS]
        return Held(order.request_id, state.order, state.done, state.missing_bytes, text)
