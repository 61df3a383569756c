"""Calls that may go deeper than a thread's usual stack lets them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Result = TypeVar("Result")

# llguidance follows the rules of a grammar, and the references of a schema, by recursion. The longest forms
# need up to 256 MB of stack, and a stack that is too small ends the process. Only what is used takes memory.
_STACK_BYTES = 512 << 20


class DeepCalls:
    """Makes calls on threads of their own, whose stacks are large."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def call(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, once it has; raises what it raises."""
        outcome = _Outcome(work)
        thread = threading.Thread(target=outcome.find, name="deep", daemon=True)
        # The size is the whole process's, so it is set for no longer than this one thread takes to begin.
        with self._lock:
            usual_bytes = threading.stack_size(_STACK_BYTES)
            try:
                thread.start()
            finally:
                threading.stack_size(usual_bytes)
        thread.join()
        return outcome.result()


@dataclass(slots=True)
class _Outcome(Generic[Result]):
    """Of one call; found on one thread, asked for on another."""

    work: Callable[[], Result]
    returned: list[Result] = field(default_factory=list)
    raised: BaseException | None = None

    def find(self) -> None:
        try:
            self.returned.append(self.work())
        except BaseException as error:
            self.raised = error

    def result(self) -> Result:
        if self.raised is not None:
            raise self.raised
        (result,) = self.returned
        return result
