from collections.abc import Sequence

class RowEnd:
    """Where a sequence's next rows go.

    Attributes:
        stop: the slot behind the last row's.
        room: rows that can follow without a further page.
        row_bytes: of a row.
        target: the address of the next one; so many are written there, whatever it is.
    """

    stop: int
    room: int
    row_bytes: int
    target: int

def append_each(
    ends: Sequence[RowEnd],
    firsts: Sequence[int],
    counts: Sequence[int],
    address: int,
    num_rows: int,
    /,
) -> list[int]:
    """Copy rows `firsts[i]` to `firsts[i] + counts[i] - 1` behind those of `ends[i]`.

    Args:
        address: of `num_rows` rows, side by side, of as many bytes as those of the ends.

    Returns:
        The places in `ends` of those that had no room for all of their rows, and got none.

    Raises:
        ValueError: lists of several lengths, or rows that are not there.
        TypeError: arguments of other types. Here too, ends before the wrong one have their rows.
    """
