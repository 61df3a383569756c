"""The compiled part of this package (`frames.c`), or the one line that says how to build it."""

from __future__ import annotations

from placement.errors import NativeCodeNotBuilt

try:
    from transport import _frames as frames
except ImportError as error:
    advice = "run `make demo` or `pip install -e .` in the clone"
    raise NativeCodeNotBuilt(f"transport: {error}: {advice}") from error

__all__ = ["frames"]
