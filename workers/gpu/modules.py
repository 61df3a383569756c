"""What is compiled together for a card: a few kernels of one source file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "kernels" / "gpu"


@dataclass(frozen=True, slots=True)
class Module:
    """Compiled as `#include "header"` and the given lines, which make kernels of the header's templates."""

    name: str
    header: str
    kernels: tuple[str, ...]
    lines: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        return "\n".join((f'#include "{self.header}"', *self.lines, ""))


def every_module() -> Iterator[Module]:
    """All that there are."""
    yield Module("rounding", "rounding.h", ("round_rows_256", "round_rows_32"))


@cache
def module_of(kernel: str) -> Module:
    """Raises KeyError for a kernel that is none."""
    return {name: module for module in every_module() for name in module.kernels}[kernel]


def headers() -> dict[str, bytes]:
    """All source files by name, as one may include another."""
    return {path.name: path.read_bytes() for path in sorted(SOURCES.glob("*.h"))}
