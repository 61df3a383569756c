"""The compiled part of this package (`frames.c`), or the one line that says how to build it."""

from __future__ import annotations

from placement.errors import NativeCodeNotBuilt

try:
    from transport import _frames as frames
except ImportError as error:
    raise NativeCodeNotBuilt(f"transport: {error}: {NativeCodeNotBuilt.REMEDY}") from error

__all__ = ["frames"]
