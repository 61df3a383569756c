"""What a server promises and what it is bound by."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.gpu.areas import MOST_SEQUENCES
from placement.errors import InputError
from placement.kv_size import PASS_ROWS


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers that the scheduler keeps; raises InputError for one that is out of range.

    Attributes:
        context: positions of a sequence, prompt and answer together.
        sequences: in a pass, and so computed at a time.
        pass_rows: of a pass.
        most_delay_s: that prompts may add to the next token of the sequences that are decoded.
        most_waiting: requests that wait.
        most_waiting_kv: what the prompts of those that wait may take when they are computed, in budgets.
        turn_tokens: a sequence is put back for another client's only after so many tokens of its own, and
            when its client is so many ahead.
        spare_tokens: room that every sequence has when another one joins.
        patience_s: that requests wait for boxes which the cluster lacks.
    """

    context: int
    sequences: int = MOST_SEQUENCES
    pass_rows: int = PASS_ROWS
    most_delay_s: float = 1.0
    most_waiting: int = 64
    most_waiting_kv: float = 4.0
    turn_tokens: int = 256
    spare_tokens: int = 256
    patience_s: float = 30.0

    def __post_init__(self) -> None:
        for name, value, least in (
            ("context", self.context, 2),
            ("sequences", self.sequences, 1),
            ("pass_rows", self.pass_rows, self.sequences + 1),
            ("most_delay_s", self.most_delay_s, 0),
            ("most_waiting", self.most_waiting, 1),
            ("most_waiting_kv", self.most_waiting_kv, 1),
            ("turn_tokens", self.turn_tokens, 1),
            ("spare_tokens", self.spare_tokens, 0),
            ("patience_s", self.patience_s, 0),
        ):
            if not least <= value < float("inf"):
                raise InputError(f"{name} is {value}; expected a number from {least} upwards")
