from collections.abc import Iterable, Sequence
from typing import final

from orchestrator.scheduling.candidate import Candidate, Verified
from placement.pass_costs import PassCosts

@final
class Corrections:
    """By how much measured times of one kind of work differ from predicted ones, by its size.

    `MeasuredCosts` has several; by itself it is there for tests.

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

    def at(self, log_size: float, /) -> float:
        """Of a size, given as its logarithm; 0 before anything was measured."""

@final
class MeasuredCosts:
    """Seconds of passes and of drafting: the prediction times a correction by size.

    A measurement corrects its own size and, since boxes get slower and faster as a whole, all others too.
    Drafting is compared with how slow the box is now, which passes tell. So report a step's pass first.
    Sizes beyond 16,777,216 raise ValueError.
    """

    def __init__(self, predicted: PassCosts, /) -> None: ...
    def trunk_s(self, rows: int, /) -> float:
        """Of a pass of so many rows; 0 for none."""

    def drafting_s(self, depth: int, sequences: int, /) -> float:
        """Of the first `depth` MTP layers drafting for so many sequences, for which few rows wait.

        A depth that was not measured is corrected as the nearest one that was, of two that are as near as the
        shallower. Before any was measured, all are corrected as a pass of one row.

        Raises:
            ValueError: drafting so deep is not predicted.
        """

    def taking_in_s(self, rows: Sequence[int], /) -> float:
        """Of so many rows more in each of the first MTP layers, which had waited for them."""

    def learn_pass(self, rows: int, seconds: float, /) -> None:
        """A pass of so many rows took so long; what is no time of a pass changes nothing."""

    def learn_drafting(
        self, depth: int, sequences: int, seconds: float, taken_in: Sequence[int] = (), /
    ) -> None:
        """So many MTP layers drafted for so many sequences; `taken_in`: rows of each that had waited.

        Raises:
            ValueError: drafting so deep is not predicted.
        """

class DraftDepth:
    """Chooses how many drafts to make, from measured acceptance and costs.

    The same messages give the same choices. Drafts are made where they are expected to pay. Now and then
    another depth is tried, so that what changed is noticed.
    """

    def __init__(self, most: int, costs: MeasuredCosts, /) -> None:
        """`most`: drafts of a sequence in a step; `costs` may learn meanwhile."""

    @property
    def most(self) -> int:
        """Drafts of a sequence in a step: no more than there are MTP layers whose cost is known."""

    @property
    def keeps_rows(self) -> bool:
        """Whether sequences keep their rows for drafts from now on.

        Where drafts have not paid for long, they do so only before tries. Where they do not, candidates are
        described as if they had so many rows as drafts take.
        """

    @property
    def context_rows(self) -> int:
        """Rows that a sequence's drafts wait for where rows are kept again; for tests."""

    @property
    def plans_made(self) -> int:
        """How often the best depths were looked for; for tests."""

    def acceptance(self, sequence: int, /) -> list[float]:
        """Expected chance of each draft to hold if those before it do."""

    def rests(self, num_sequences: int, other_rows: int, /) -> bool:
        """Whether so many sequences make no drafts in the next step, whoever they are.

        It is asked once a step, and `choose` only where this is not so. To look at sequences takes time, and
        where drafts do not pay, nobody drafts for many steps on end.

        Args:
            other_rows: of prompts in the same pass.

        Raises:
            ValueError: a number below 0, or of more rows than any pass has.
        """

    def choose(
        self, candidates: Sequence[Candidate], other_rows: int = 0, most_rows: int = 1 << 30
    ) -> dict[int, int]:
        """Drafts of each sequence in the next step.

        Args:
            other_rows: of prompts in the same pass.
            most_rows: that drafts may add to it.

        Raises:
            TypeError: something is not a candidate.
            ValueError: rows below 0, or more than any pass has.
            OverflowError: a number of more than 64 bits.
        """

    def learn(self, verified: Iterable[Verified], /) -> None:
        """A step is done, with drafts of these sequences.

        Raises:
            TypeError: something has another form.
        """

    def plan_anew(self) -> None:
        """Somebody was put back: its rows will wait again."""

    def forget(self, sequence: int, /) -> None:
        """It has ended."""

def rows_taken_in(drafted: Iterable[tuple[Sequence[int], int]], /) -> tuple[int, ...]:
    """Rows that had waited for each MTP layer, of all sequences together; () where nobody was behind.

    Args:
        drafted: of each sequence, what it was behind, and how many layers drafted for it.

    Raises:
        TypeError: something has another form.
    """

def fastest(
    costs: MeasuredCosts,
    gains: Sequence[Sequence[float]],
    waiting_s: Sequence[Sequence[float]],
    num_sequences: int,
    other_rows: int,
    most_rows: int,
    least_gain: float,
    /,
) -> tuple[list[int], float]:
    """The depths with the most expected tokens a second, and how many these are.

    It is what `DraftDepth` looks for; by itself it is there for tests.

    For each depth and number of drafts those that gain most are taken. Where nothing waits, another choice is
    better by no more than what drafting for fewer sequences saves.

    Args:
        gains: expected tokens of each sequence's first draft, of its second, ...
        waiting_s: by how much a step is longer for what waits for a sequence, by its depth from 0 on;
            empty where nothing waits.
        num_sequences, other_rows: of a step without drafts; a sequence has a row.
        most_rows: drafts of all sequences.
        least_gain: part by which drafts must be faster than none, else there are none.

    Raises:
        TypeError, ValueError: something has another form, is not finite or not predicted.
    """
