"""Kernels are tested on one thread, and everywhere."""

from __future__ import annotations

from tests.everywhere import one_thread, same_bits_everywhere

__all__ = ["one_thread", "same_bits_everywhere"]
