from orchestrator.scheduling.curve import Curve

class Corrections:
    """By how much measured times of one kind of work differ from predicted ones, by its size.

    A measurement's logarithm is what is the size's own, what all sizes have in common now, and noise: a
    Kalman filter, by Kalman (1960). Sizes that are near to each other are corrected alike.
    """

    def __init__(self, common_drift: float, /) -> None:
        """
        Args:
            common_drift: variance that a step adds to what all sizes have in common, at least 0.

        Raises:
            ValueError: it is below 0, or not finite.
        """

    @property
    def are_known(self) -> bool:
        """Whether anything was measured."""

    @property
    def common(self) -> float:
        """By how much all sizes have changed since the first measurement: a logarithm, as all here."""

    def learn(self, size: float, found: float, step: int, /) -> None:
        """Take the logarithm of measured by predicted time in.

        Args:
            size: at least 1.
            step: no earlier one than before.

        Raises:
            ValueError: an argument is out of these bounds, or not finite.
        """

    def at(self, place: float, /) -> float:
        """Of a size, given as its logarithm; 0 before anything was measured."""

def fastest(
    gains: list[list[float]],
    waiting_s: list[list[float] | None],
    passes: Curve,
    drafting: list[Curve],
    tokens: float,
    rows: int,
    most_drafts: int,
    least_gain: float,
    /,
) -> tuple[list[int], float]:
    """The depths with the most expected tokens a second, and how many these are.

    For each depth and number of drafts those that gain most are taken. Where nothing waits, another choice is
    better by no more than what drafting for fewer sequences saves.

    Args:
        gains: expected tokens of each sequence's first draft, of its second, ...
        waiting_s: by how much a step is longer for what waits for a sequence, by its depth from 0 on.
        passes: a pass's seconds by its rows.
        drafting: of each depth, seconds by the number of sequences.
        tokens, rows: of a step without drafts.
        most_drafts: of all sequences.
        least_gain: part by which drafts must be faster than none, else there are none.

    Raises:
        TypeError, ValueError: something has another form, is not finite or not predicted.
    """
