from orchestrator.scheduling.curve import Curve

class Corrections:
    """By how much measured times of one kind of work differ from predicted ones, by its size.

    Sizes that are near to each other are corrected alike, the more so if one was measured long ago.

    Logarithms of seconds are values of a Kalman filter for each size, by Kalman (1960), without covariances.
    Over the sizes they are smoothed as a random walk, by Rauch, Tung and Striebel (1965).
    """

    @property
    def are_known(self) -> bool:
        """Whether anything was measured."""

    def learn(
        self, size: float, found: float, step: int, common_variance: float = 0.0, /
    ) -> tuple[float, float]:
        """Take the logarithm of measured by predicted time in.

        What differs from the value that is known is noise, or the size drifted, or all sizes did. The longer
        a size was not measured, the more of it is its own.

        Args:
            size: at least 1.
            step: no earlier one than before.
            common_variance: of what all sizes have in common, at least 0.

        Returns:
            By how much all sizes have changed, and the share of `common_variance` that is left.

        Raises:
            ValueError: an argument is out of these bounds, or not finite.
        """

    def at(self, place: float, /) -> float:
        """Of a size, given as its logarithm: a straight line between measured ones; 0 without any."""

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
