"""What happens to a cluster while it runs: each a fact with one line for people, counted by kind."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, get_args


@dataclass(frozen=True, slots=True)
class Suspected:
    """A worker has been silent for `silent_s`."""

    worker: str
    silent_s: float
    quiet: ClassVar[bool] = True

    @property
    def line(self) -> str:
        return (
            f"worker {self.worker} is silent for {self.silent_s:.2f} s: others are asked too where they can"
        )


@dataclass(frozen=True, slots=True)
class Cleared:
    """A suspected worker has answered: the suspicion was false."""

    worker: str
    silent_s: float
    quiet: ClassVar[bool] = True

    @property
    def line(self) -> str:
        return f"worker {self.worker} answers again after {self.silent_s:.2f} s"


@dataclass(frozen=True, slots=True)
class Died:
    """A worker is gone: its connection was closed, or it was silent for too long. `then`: what follows."""

    worker: str
    why: str
    then: str
    quiet: ClassVar[bool] = False

    @property
    def line(self) -> str:
        return f"worker {self.worker} is lost: {self.why}; {self.then}"


@dataclass(frozen=True, slots=True)
class Gone:
    """A lost worker has not come back for so long that nobody waits for it any more."""

    worker: str
    quiet: ClassVar[bool] = True

    @property
    def line(self) -> str:
        return f"worker {self.worker} has not come back"


@dataclass(frozen=True, slots=True)
class Returned:
    """A lost worker answers again and is asked from the next pass on. `fresh`: it was started anew."""

    worker: str
    fresh: bool
    quiet: ClassVar[bool] = False

    @property
    def line(self) -> str:
        how = "was started again" if self.fresh else "is back"
        return f"worker {self.worker} {how} and takes part again"


@dataclass(frozen=True, slots=True)
class Joined:
    """A worker takes part for the first time, after the run had begun."""

    worker: str
    quiet: ClassVar[bool] = False

    @property
    def line(self) -> str:
        return f"worker {self.worker} takes part now"


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker answered a request, a greeting or an order with an error, or with what is no answer."""

    worker: str
    reason: str
    quiet: ClassVar[bool] = False

    @property
    def line(self) -> str:
        return f"worker {self.worker} refused: {self.reason}"


@dataclass(frozen=True, slots=True)
class Retried:
    """A request of `layer` was asked again, of `asked`, because its answer from `worker` will not come."""

    worker: str
    layer: int
    why: str
    asked: tuple[str, ...]
    quiet: ClassVar[bool] = True

    @property
    def line(self) -> str:
        return f"layer {self.layer}: {self.why}; asked again of {', '.join(self.asked)}"


@dataclass(frozen=True, slots=True)
class Hedged:
    """A request of `layer` was asked of `asked` too, because `worker` takes longer than it should."""

    worker: str
    layer: int
    asked: tuple[str, ...]
    quiet: ClassVar[bool] = True

    @property
    def line(self) -> str:
        return f"layer {self.layer}: worker {self.worker} is slow; asked too: {', '.join(self.asked)}"


@dataclass(frozen=True, slots=True)
class Slowed:
    """A worker takes `factor` times as long as it should, so its replicas are preferred."""

    worker: str
    factor: float
    quiet: ClassVar[bool] = False

    @property
    def line(self) -> str:
        return (
            f"worker {self.worker} is {self.factor:.1f} times as slow as it should be: others are preferred"
        )


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A worker lives but does not get on with a request: it is treated as lost, which is told then."""

    worker: str
    why: str
    quiet: ClassVar[bool] = True

    @property
    def line(self) -> str:
        return f"worker {self.worker} is given up: {self.why}"


@dataclass(frozen=True, slots=True)
class PassRepeated:
    """A pass had lost all holders of an expert: it runs again under the view of `epoch`."""

    layer: int
    epoch: int
    waited_s: float
    quiet: ClassVar[bool] = False

    @property
    def line(self) -> str:
        return f"the step lost experts of layer {self.layer} and runs again (waited {self.waited_s:.2f} s)"


@dataclass(frozen=True, slots=True)
class Liar:
    """A worker's numbers are wrong: others computed `request` differently. It is asked no more."""

    worker: str
    request: int
    why: str
    quiet: ClassVar[bool] = False

    @property
    def line(self) -> str:
        return (
            f"worker {self.worker} gives wrong numbers ({self.why}): it is asked no more, and this step runs "
            "again; the tokens before it cannot be vouched for"
        )


@dataclass(frozen=True, slots=True)
class Rescued:
    """`worker` serves experts of silent or lost workers from its model file: how many, and their bytes."""

    worker: str
    num_experts: int
    num_bytes: int
    quiet: ClassVar[bool] = False

    @property
    def line(self) -> str:
        return (
            f"{self.worker} serves {self.num_experts} experts of silent or lost workers from its model file"
        )


@dataclass(frozen=True, slots=True)
class Migrated:
    """Experts have moved: `num_experts` of them, `num_bytes` in all."""

    num_experts: int
    num_bytes: int
    reason: str
    quiet: ClassVar[bool] = False

    @property
    def line(self) -> str:
        return f"{self.num_experts} experts have moved: {self.reason}"


Event = (
    Suspected
    | Cleared
    | Died
    | Gone
    | Returned
    | Joined
    | Refused
    | Retried
    | Hedged
    | Slowed
    | GaveUp
    | PassRepeated
    | Liar
    | Rescued
    | Migrated
)
Tell = Callable[[Event], None]


def kind_of(event: type[Event]) -> str:
    """An event class's name in counts: "pass_repeated" of PassRepeated."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", event.__name__).lower()


KINDS: tuple[str, ...] = tuple(kind_of(kind) for kind in get_args(Event))


class EventLog:
    """Counts events and passes on those that are not quiet, from any thread.

    Args:
        say: takes the line of each event that people should see as it happens, not twice in a row.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._counts: Counter[str] = Counter()
        self._liars: list[str] = []
        self._said_last = ""
        self._lock = threading.Lock()

    def tell(self, event: Event) -> None:
        with self._lock:
            self._counts[kind_of(type(event))] += 1
            if isinstance(event, Liar) and event.worker not in self._liars:
                self._liars.append(event.worker)
            # One that refuses is asked again, and says the same.
            if self._say is not None and not event.quiet and event.line != self._said_last:
                self._said_last = event.line
                self._say(event.line)

    def counts(self) -> dict[str, int]:
        """How often each kind happened, all kinds named."""
        with self._lock:
            return {kind: self._counts[kind] for kind in KINDS}

    def liars(self) -> tuple[str, ...]:
        """Workers that gave wrong numbers, in the order in which they were found."""
        with self._lock:
            return tuple(self._liars)
