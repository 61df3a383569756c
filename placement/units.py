"""Numbers of bytes as people read them."""

from __future__ import annotations


def size(num_bytes: float) -> str:
    """Bytes for a reader, in powers of 1000 as memory is sold: "128.0 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(num_bytes) < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.2f} TB"
