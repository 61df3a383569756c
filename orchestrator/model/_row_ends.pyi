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
    parts: Sequence[tuple[RowEnd | None, int, int]], address: int, num_rows: int, row_bytes: int, /
) -> list[int]:
    """Copy rows behind those of several ends.

    Args:
        parts: an end, the first of its rows, and how many; None for an end takes none.
        address: of `num_rows` rows, side by side.
        row_bytes: of each of them, and of those of the ends.

    Returns:
        The places in `parts` of those that had no room for all of their rows, or no end, and got none.

    Raises:
        ValueError: rows that are not there, ends of rows of another size, or a number below 0.
        TypeError: arguments of other types.
            Ends before the wrong one have their rows, whatever is raised.
    """
