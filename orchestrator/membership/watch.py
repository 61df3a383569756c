"""The watch over the workers: a thread with their pulse sockets, around `Membership`."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

import zmq

from orchestrator.dispatch.view import WorkerAddress
from orchestrator.membership.events import Event, EventLog, GaveUp, Liar
from orchestrator.membership.member import Expected
from orchestrator.membership.membership import Action, Here, Membership
from orchestrator.membership.rescue import BoxRoom
from orchestrator.membership.standing import Standing
from placement.errors import PotluckError
from placement.experts import Experts
from placement.plan import Plan
from transport.keys import HeadKeys, KeyPair
from transport.messages import (
    MAX_TEXT_CHARS,
    ErrorCode,
    ErrorReply,
    Held,
    Request,
    WireError,
    WireLimits,
)
from transport.pulse_client import Link, PulseClient
from workers.obey import Holder, obey

T = TypeVar("T")

FIND_S = 1.0
"""How often it is asked where workers are."""


class ClusterWatch:
    """Greets the plan's workers, watches their pulses, and publishes what a dispatcher must know.

    A context manager: the thread runs inside it. All methods may be called from any thread.

    Args:
        plan: what each worker was started with.
        addresses: by worker name, as far as they are known.
        expected: what each worker must serve.
        limits: of the messages.
        session: number of this head process.
        keys: this head's own, for workers that have a public key.
        here: this process's own experts; None where it cannot take any on.
        room: what each box can take on, by worker name, "head" for this process.
        say: takes one line on each event that people should see.
        join_s: how long workers that were never seen are waited for before others take on their experts.
        alone: whether no other head asks these workers now; called in the watch's thread.
        now_at: where workers serve that came or moved since; called likewise, every second.
    """

    def __init__(
        self,
        plan: Plan,
        addresses: Mapping[str, WorkerAddress],
        expected: Expected,
        limits: WireLimits,
        *,
        session: int,
        keys: KeyPair | None = None,
        here: Holder | None = None,
        room: Mapping[str, BoxRoom] | None = None,
        say: Callable[[str], None] | None = None,
        join_s: float = math.inf,
        alone: Callable[[], bool] = lambda: True,
        now_at: Callable[[], Mapping[str, WorkerAddress]] = dict,
    ) -> None:
        self.log = EventLog(say)
        self._limits = limits
        self._session = session
        self._keys = keys
        self._here = here
        self._membership = Membership(
            plan,
            addresses,
            expected,
            session=session,
            tell=self.log.tell,
            now_s=time.monotonic(),
            room=room,
            join_s=join_s,
            alone=alone,
        )
        self._names = _indices(plan)
        self._addresses = {self._names[name]: address for name, address in addresses.items()}
        self._standing = self._membership.standing
        self._oldest_epoch: Callable[[], int | None] = lambda: None
        self._now_at, self._find_at_s = now_at, time.monotonic() + FIND_S
        self._calls: SimpleQueue[Callable[[float], object]] = SimpleQueue()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def standing(self) -> Standing:
        """The newest; cheap.

        Raises:
            RuntimeError: the thread has failed, which is a bug.
        """
        if self._failure is not None:
            raise RuntimeError("the watch over the workers has failed") from self._failure
        return self._standing

    @property
    def progress(self) -> Mapping[str, str]:
        """What workers that do not take part yet said last, by name."""
        return self._membership.progress

    def follow(self, oldest_epoch: Callable[[], int]) -> None:
        """Where to learn the epoch of the view that the pass in flight has (`Dispatcher.epoch`)."""
        self._oldest_epoch = oldest_epoch

    def tell(self, event: Event) -> None:
        """Take what the dispatcher saw: it counts, and a worker that hangs or lies is treated as lost."""
        self.log.tell(event)
        if isinstance(event, GaveUp | Liar):
            for_good = isinstance(event, Liar)
            self._calls.put(
                lambda now_s: self._membership.accused(event.worker, event.why, now_s, for_good=for_good)
            )

    def change(self, plan: Plan) -> bool:
        """Use another plan, which the workers hold already, from the next pass on.

        Returns:
            Whether it is used: not where its epoch is not the next one, or a rescue is on its way.

        Raises:
            TimeoutError: the watch does not run.
        """

        def call(now_s: float) -> bool:
            if not self._membership.change(plan, now_s):
                return False
            self._standing = self._membership.standing
            self._names = _indices(plan)
            return True

        return self._called(call)

    def order(self, name: str, experts: Experts, *, rate_bytes_per_s: int = 0, is_drop: bool = False) -> int:
        """Let a worker, or "head", hold or drop experts. The number is for `ordered`.

        Raises:
            TimeoutError: the watch does not run.
        """
        return self._called(
            lambda _: self._membership.order(
                name, experts, rate_bytes_per_s=rate_bytes_per_s, is_drop=is_drop
            )
        )

    def ordered(self, number: int) -> Held | None:
        """How far an order is, as its worker said last."""
        return self._membership.ordered(number)

    def refusal(self, number: int) -> str:
        """Why a worker refused an order for good; empty where it did not."""
        return self._membership.refusal(number)

    def _called(self, call: Callable[[float], T]) -> T:
        """What `call` gives in the watch's thread."""
        given: SimpleQueue[T] = SimpleQueue()
        self._calls.put(lambda now_s: given.put(call(now_s)))
        try:
            return given.get(timeout=5.0)
        except Empty:
            raise TimeoutError("the watch over the workers does not run") from None

    def wait_complete(self, timeout_s: float) -> bool:
        """Until every expert has a holder."""
        until_s = time.monotonic() + timeout_s
        while not self.standing().view.is_complete:
            if time.monotonic() >= until_s:
                return False
            time.sleep(0.01)
        return True

    def __enter__(self) -> Self:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="cluster-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping = True
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def _run(self) -> None:
        try:
            with zmq.Context() as context:
                sockets = _Sockets(context, self._limits, self._session, self._keys)
                try:
                    self._watch(sockets)
                finally:
                    sockets.close()
        except BaseException as error:
            self._failure = error

    def _watch(self, sockets: _Sockets) -> None:
        membership = self._membership
        while not self._stopping:
            self._find(time.monotonic())
            sockets.match(self._addresses, membership.name_of)
            wait_s = max(0.0, membership.wake_at_s() - time.monotonic())
            for worker in sockets.wait(wait_s):
                self._take(worker, sockets)
            while True:
                try:
                    self._calls.get_nowait()(time.monotonic())
                except Empty:
                    break
            self._do(membership.tick(time.monotonic(), self._oldest_epoch()), sockets)
            self._standing = membership.standing

    def _find(self, now_s: float) -> None:
        """Reach workers of the plan that came or moved."""
        if now_s < self._find_at_s:
            return
        self._find_at_s = now_s + FIND_S
        for name, address in self._now_at().items():
            worker = self._names.get(name)
            if worker is not None and not _is_there(self._addresses.get(worker), address):
                self._addresses[worker] = address
                self._membership.reach(worker, address)

    def _take(self, worker: int, sockets: _Sockets) -> None:
        """All that has come from one worker, and what follows."""
        membership, client = self._membership, sockets.client(worker)
        for link in client.links():
            now_s = time.monotonic()
            if link is Link.UP:
                self._do(membership.connected(worker, now_s), sockets)
            elif link is Link.DOWN:
                membership.closed(worker, now_s)
            else:
                membership.turned_away(worker)
        while True:
            try:
                reply = client.receive()
            except WireError as error:
                membership.broken(worker, f"it sent what is no answer: {error}")
                continue
            if reply is None:
                return
            self._do(membership.received(worker, reply, time.monotonic()), sockets)
            self._standing = membership.standing

    def _do(self, actions: list[Action], sockets: _Sockets) -> None:
        for action in actions:
            if isinstance(action, Here):
                self._do(self._obey(action), sockets)
            else:
                sockets.send(action.worker, action.message)

    def _obey(self, action: Here) -> list[Action]:
        """Give an order to this process's own experts."""
        order = action.order
        reply: Held | ErrorReply
        try:
            if self._here is None:
                raise PotluckError("this process cannot take on experts")
            reply = obey(order, self._here)
        except PotluckError as error:
            reply = ErrorReply(order.request_id, ErrorCode.REFUSED, str(error)[:MAX_TEXT_CHARS])
        return self._membership.received(action.worker, reply, time.monotonic())


def _indices(plan: Plan) -> dict[str, int]:
    """Of the plan's workers, by name."""
    return {worker.name: index for index, worker in enumerate(plan.workers)}


def _is_there(known: WorkerAddress | None, address: WorkerAddress) -> bool:
    """Whether a worker is reached there already, whichever process it is."""
    return known is not None and replace(known, instance=address.instance) == address


class _Sockets:
    """A pulse client for each worker that has an address, in one poller."""

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], limits: WireLimits, session: int, keys: KeyPair | None
    ) -> None:
        self._context = context
        self._limits = limits
        self._session = session
        self._keys = keys
        self._poller = zmq.Poller()
        self._clients: dict[int, tuple[WorkerAddress, PulseClient]] = {}
        self._worker_of: dict[object, int] = {}

    def match(self, addresses: Mapping[int, WorkerAddress], name_of: Callable[[int], str]) -> None:
        """Be connected to these."""
        for worker, address in addresses.items():
            known = self._clients.get(worker)
            if known is not None and known[0] is address:
                continue
            if known is not None:
                self._drop(worker)
            keys = None
            if self._keys is not None and address.public_key is not None:
                keys = HeadKeys(self._keys, address.public_key)
            client = PulseClient(
                self._context,
                address.pulse_endpoint,
                self._limits,
                name=name_of(worker),
                session=self._session,
                keys=keys,
            )
            self._clients[worker] = address, client
            for socket in (client.socket, client.monitor):
                self._poller.register(socket, zmq.POLLIN)
                self._worker_of[socket] = worker

    def wait(self, wait_s: float) -> list[int]:
        """Workers of whom something has come."""
        events = self._poller.poll(math.ceil(wait_s * 1000))
        return sorted({self._worker_of[socket] for socket, _ in events})

    def client(self, worker: int) -> PulseClient:
        return self._clients[worker][1]

    def send(self, worker: int, message: Request) -> None:
        """A message that cannot leave is as lost as one on its way."""
        if worker in self._clients:
            self._clients[worker][1].send(message)

    def close(self) -> None:
        for worker in list(self._clients):
            self._drop(worker)

    def _drop(self, worker: int) -> None:
        _, client = self._clients.pop(worker)
        for socket in (client.socket, client.monitor):
            self._poller.unregister(socket)
            del self._worker_of[socket]
        client.close()
