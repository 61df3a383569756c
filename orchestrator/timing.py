"""Where a step's time goes, by named part."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from types import TracebackType

PARTS = (
    "card",
    "card_wait",
    "attention",
    "router",
    "shared_expert",
    "local_experts",
    "dispatch",
    "wire",
    "remote_wait",
    "dense_ffn",
    "mtp",
    "lm_head",
    "sampling",
    "other",
)


class StepTimer:
    """Adds up seconds by part, and counts every second once.

    While an inner part is open, the outer part's clock stands still. A part opened with `owns_inner` is the
    exception: it counts what happens inside it too, so the MTP layers' attention counts as "mtp". A timer
    belongs to one thread.
    """

    __slots__ = ("_clock", "_current", "_mark", "_parts", "_seconds")

    def __init__(self, clock: Callable[[], float] = perf_counter) -> None:
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._parts: dict[tuple[str, bool], _Part] = {}
        self._current: _Part | None = None
        self._mark = 0.0

    def part(self, name: str, *, owns_inner: bool = False) -> _Part:
        """Context manager that charges the time inside it to `name`."""
        part = self._parts.get((name, owns_inner))
        if part is None:
            part = self._parts[name, owns_inner] = _Part(self, name, owns_inner)
            self._seconds.setdefault(name, 0.0)
        return part

    def reset(self) -> None:
        """Forget what was counted; a part that is open goes on counting from now."""
        for name in self._seconds:
            self._seconds[name] = 0.0
        self._mark = self._clock()

    def seconds(self) -> dict[str, float]:
        """Seconds by part since the last reset, parts never entered left out."""
        return {
            name: self._seconds[name] for name in sorted(self._seconds, key=_order) if self._seconds[name]
        }


class _Part:
    """A decode step enters and leaves several hundred of them, so each is one call."""

    __slots__ = ("_outer", "_timer", "name", "owns_inner")

    def __init__(self, timer: StepTimer, name: str, owns_inner: bool) -> None:
        self._timer = timer
        self.name = name
        self.owns_inner = owns_inner
        self._outer: list[_Part | None] = []

    def __enter__(self) -> None:
        timer = self._timer
        outer = timer._current
        self._outer.append(outer)
        if outer is None:
            timer._mark = timer._clock()
        elif outer.owns_inner:
            return
        else:
            now = timer._clock()
            timer._seconds[outer.name] += now - timer._mark
            timer._mark = now
        timer._current = self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        timer = self._timer
        outer = self._outer.pop()
        if outer is timer._current:
            return
        now = timer._clock()
        timer._seconds[self.name] += now - timer._mark
        timer._mark = now
        timer._current = outer


def _order(name: str) -> tuple[int, str]:
    return (PARTS.index(name) if name in PARTS else len(PARTS), name)
