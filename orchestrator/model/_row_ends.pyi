from collections.abc import Sequence

class RowEnd:
    """Where a sequence's next rows go.

    Attributes:
        stop: the slot behind the last row's.
        room: rows that can follow without a further page.
        row_bytes: of a row.
        target: the address where the next row is written; nobody checks it.
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
    row_bytes: int,
    /,
) -> list[int]:
    """Copy rows `firsts[i]` to `firsts[i] + counts[i] - 1` behind those of `ends[i]`.

    Args:
        address: of `num_rows` rows, side by side.
        row_bytes: of each of them, and of those of the ends.

    Returns:
        The places in `ends` of those that had no room for all of their rows, and got none.

    Raises:
        ValueError: lists of several lengths, rows that are not there, or ends of rows of another size.
        TypeError: arguments of other types.
            Ends before the wrong one have their rows, whatever is raised.
    """
