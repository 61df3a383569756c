"""Orders as messages, carried out by what this process holds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from placement.experts import Experts
from transport.messages import MAX_TEXT_CHARS, Drop, Held, Hold

if TYPE_CHECKING:
    # It loads torch.
    from workers.holdings import OrderState


class Holder(Protocol):
    """A process's experts, as far as orders concern them (`Holdings`); nothing here may wait."""

    def hold(self, order: int, experts: Experts, rate_bytes_per_s: int = 0) -> OrderState:
        """Begin to hold experts, or say how far it is; raises PotluckError to refuse."""
        ...

    def drop(self, order: int, experts: Experts) -> OrderState:
        """Let go of experts; raises PotluckError to refuse."""
        ...


def obey(order: Hold | Drop, holder: Holder) -> Held:
    """The answer to an order. Errors as those of `holder`."""
    if isinstance(order, Hold):
        state = holder.hold(order.order, order.experts, order.rate_bytes_per_s)
    else:
        state = holder.drop(order.order, order.experts)
    text = state.text[:MAX_TEXT_CHARS]
    return Held(order.request_id, state.order, state.done, state.missing_bytes, text)
