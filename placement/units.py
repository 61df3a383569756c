"""Numbers of bytes, and how figures compare, as people read them."""

from __future__ import annotations


def size(num_bytes: float) -> str:
    """Bytes for a reader, in powers of 1000 as memory is sold: "128.0 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"


def compared(ratio: float, more: str = "faster", less: str = "slower", same: str = "as fast") -> str:
    """One figure by another: "3.2% faster", "4.1% slower", "as fast"; from twice on "15 times as fast"."""
    change = round(ratio - 1, 3)
    if change >= 1:
        return f"{gain_of(change)} {same}"
    return f"{abs(change):.1%} {more if change > 0 else less}" if change else same


def gain_of(share: float) -> str:
    """The same for a table, of a share more or less: "+3.2%", "-4.1%"; from twice on "15 times"."""
    # A sum with 0 has no sign of its own where nothing is left of it.
    share = round(share, 3) + 0.0
    if share < 1:
        return f"{share:+.1%}"
    return f"{1 + share:.1f} times" if share < 8.95 else f"{1 + share:,.0f} times"


def between(low: float, high: float) -> str:
    """Such as "33 to 47", with the digits that a range can have: two, or all before the point."""
    return f"{_two_digits(low)} to {_two_digits(high)}"


def _two_digits(number: float) -> str:
    return f"{number:.{0 if number >= 9.95 else 1 if number >= 0.995 else 2}f}"
