"""The watch over real sockets: workers come, stop and come back, and a text goes on as if nothing were."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq

from orchestrator.dispatch.connections import Connections
from orchestrator.dispatch.dispatcher import Dispatcher
from orchestrator.dispatch.view import WorkerAddress
from orchestrator.generate import GenerationParams, generate
from orchestrator.membership.member import Expected
from orchestrator.membership.rescue import BoxRoom
from orchestrator.membership.watch import ClusterWatch
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling_params import SamplingParams
from placement.errors import WorkerLost
from placement.holders import HolderTable
from placement.patience import Patience
from placement.plan import Plan
from tests.orchestrator.plain_experts import plain_model
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.serving import wait_until
from transport.client import WorkerClient
from transport.messages import Drop, Held, Hold, WireLimits, random_id
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.holdings import OrderState
from workers.model_config import Step35Config
from workers.pool import load_tiers
from workers.pulse import FixedExperts, PulseServer
from workers.service import ExpertService
from workers.sessions import Sessions
from workers.store import ExpertStore, in_one_form
from workers.tiers import ExpertTier, tiers_of

PROMPT = [5, 17, 300, 42, 9]
PARAMS = GenerationParams(
    max_tokens=10, sampling=SamplingParams(0.8, seed=3), ignore_eos=True, mtp=3, chunk_size=3
)


class Obeys(FixedExperts):
    """Says of any order that it was done."""

    def obey(self, order: Hold | Drop) -> Held:
        return Held(order.request_id, order.order, True, 0, "")


class Box:
    """A worker in threads of this process, on ports that it keeps."""

    def __init__(self, name: str, experts: ExpertTier, limits: WireLimits) -> None:
        self._name, self._experts, self._limits = name, experts, limits
        self.move()
        self.start()

    def move(self) -> None:
        """Where the next start finds free ports."""
        self._endpoints = ("tcp://127.0.0.1:*", "tcp://127.0.0.1:*")

    def start(self) -> None:
        handler = Obeys(self._name, self._limits, "float32", 1)
        sessions = Sessions()
        data, pulse = self._endpoints
        self._service = ExpertService(
            self._name, self._experts, self._limits, data, dtype="float32", handler=handler, sessions=sessions
        )
        self._pulse = PulseServer(self._name, handler, sessions, self._limits, pulse)
        self._service.start()
        self._pulse.start()
        self._endpoints = self._service.endpoint, self._pulse.endpoint

    def stop(self) -> None:
        self._pulse.stop()
        self._service.stop()

    @property
    def address(self) -> WorkerAddress:
        return WorkerAddress(*self._endpoints, None, 0)


class SlowLink:
    """Passes on what comes for `endpoint`, so many bytes a second, and all answers at once."""

    def __init__(self, endpoint: str, bytes_per_s: float) -> None:
        self._to = "127.0.0.1", int(endpoint.rpartition(":")[2])
        self._bytes_per_s = bytes_per_s
        self._listener = socket.socket()
        # Or the kernel would take in all that is sent, however slowly it is read.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen()
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._to)
                for source, target, rate in ((near, far, self._bytes_per_s), (far, near, math.inf)):
                    threading.Thread(target=self._pass_on, args=(source, target, rate), daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, bytes_per_s: float) -> None:
        with suppress(OSError), source, target:
            while part := source.recv(4096):
                time.sleep(len(part) / bytes_per_s)
                target.sendall(part)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Own:
    """The head's own process, which serves whatever it is told to: it has the whole file."""

    def __init__(self, store: ExpertStore) -> None:
        self.forward = store.forward
        self.orders: list[int] = []

    def hold(self, order: int, experts: object, rate_bytes_per_s: int = 0) -> OrderState:
        self.orders.append(order)
        return OrderState(order, True, 0)

    def drop(self, order: int, experts: object) -> OrderState:
        return OrderState(order, True, 0)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("model"), seed=3)


class Running:
    """A head over two boxes that are watched."""

    def __init__(
        self,
        head: Step35Model,
        boxes: list[Box],
        watch: ClusterWatch,
        own: Own,
        found: dict[str, WorkerAddress],
    ) -> None:
        self.head, self.boxes, self.watch, self.own, self.found = head, boxes, watch, own, found

    def counts(self, *kinds: str) -> list[int]:
        counts = self.watch.log.counts()
        return [counts[kind] for kind in kinds]


@contextmanager
def two_boxes(
    model_dir: Path,
    *,
    replicas: bool,
    head_can: bool = False,
    wait_s: float = 20.0,
    link_bytes_per_s: float = math.inf,
    known: int = 2,
) -> Iterator[Running]:
    plain = plain_model(model_dir)
    config, checkpoint = Step35Config.load(model_dir), SafetensorsCheckpoint.open(model_dir)
    shape = config.shape("tiny")
    plan: Plan = random_plan(shape, 2, seed=1, head_holds=False)
    if replicas:
        masks = np.ones((2, len(plan.layers), plan.num_experts), np.bool_)
        plan = replace(plan, holder_table=HolderTable.from_masks(masks))
    limits = WireLimits.for_shape(shape)
    session = random_id()
    everything = {layer: range(config.moe_num_experts) for layer in config.moe_layers}
    own = Own(ExpertStore.load(checkpoint, config, everything, formats=in_one_form(everything, plain.dtype)))
    with ExitStack() as stack:
        boxes = []
        for worker in plan.workers:
            experts = load_tiers(tiers_of(plan, worker.name), checkpoint, config, "float32")
            boxes.append(Box(worker.name, experts, limits))
            stack.callback(boxes[-1].stop)
        addresses = {worker.name: box.address for worker, box in zip(plan.workers, boxes, strict=True)}
        if link_bytes_per_s < math.inf:
            for name, address in addresses.items():
                link = SlowLink(address.endpoint, link_bytes_per_s)
                stack.callback(link.close)
                addresses[name] = replace(address, endpoint=link.endpoint)
        found: dict[str, WorkerAddress] = {}
        context = stack.enter_context(zmq.Context())
        watch = stack.enter_context(
            ClusterWatch(
                plan,
                dict([*addresses.items()][:known]),
                Expected(shape.fingerprint, "float32"),
                limits,
                session=session,
                here=own if head_can else None,
                room={"head": BoxRoom(1e9)} if head_can else None,
                now_at=lambda: found,
            )
        )
        # With replicas every expert has a holder before both boxes take part.
        wait_until(lambda: len(watch.standing().dead) == 2 - known)

        def connect(name: str, address: WorkerAddress) -> WorkerClient:
            return WorkerClient(context, address.endpoint, limits, name=name, session=session)

        dispatcher = Dispatcher(
            watch.standing,
            Connections(connect),
            local=own,  # type: ignore[arg-type]
            max_rows=2048,
            patience=Patience(view_wait_s=wait_s),
            tell=watch.tell,
        )
        stack.callback(dispatcher.close)
        watch.follow(lambda: dispatcher.epoch)
        head = Step35Model(plain.config, plain.weights, plain.dtype, dispatcher, dispatcher.timer)
        yield Running(head, boxes, watch, own, found)


def test_a_text_goes_on_where_another_box_holds_the_same(model_dir: Path) -> None:
    expected = generate(plain_model(model_dir), PROMPT, PARAMS).token_ids
    with two_boxes(model_dir, replicas=True) as running:
        seen: list[int] = []

        def stop_one(tokens: list[int]) -> None:
            seen.extend(tokens)
            if len(seen) >= 3 and running.counts("died") == [0]:
                running.boxes[0].stop()
                wait_until(lambda: running.counts("died") == [1])

        assert generate(running.head, PROMPT, PARAMS, stop_one).token_ids == expected
        assert running.watch.standing().dead == {0}
        running.boxes[0].start()
        wait_until(lambda: not running.watch.standing().dead)
        assert running.counts("died", "returned") == [1, 1]
        assert generate(running.head, PROMPT, PARAMS).token_ids == expected


def test_a_pass_waits_for_the_only_holder_to_come_back(model_dir: Path) -> None:
    expected = generate(plain_model(model_dir), PROMPT, PARAMS).token_ids
    with two_boxes(model_dir, replicas=False) as running:
        running.boxes[1].stop()
        wait_until(lambda: running.counts("died") == [1])
        running.boxes[1].start()
        assert generate(running.head, PROMPT, PARAMS).token_ids == expected
        assert running.counts("died", "returned") == [1, 1]


def test_the_head_takes_on_the_experts_of_a_box_that_stays_away(model_dir: Path) -> None:
    expected = generate(plain_model(model_dir), PROMPT, PARAMS).token_ids
    with two_boxes(model_dir, replicas=False, head_can=True) as running:
        seen: list[int] = []

        def stop_one(tokens: list[int]) -> None:
            seen.extend(tokens)
            if len(seen) >= 3 and running.counts("suspected") == [0]:
                running.boxes[0].stop()
                wait_until(lambda: running.counts("suspected") != [0])

        assert generate(running.head, PROMPT, PARAMS, stop_one).token_ids == expected
        assert running.counts("died", "rescued", "pass_repeated") == [1, 1, 1]
        assert running.own.orders


def test_a_box_that_comes_later_or_moves_is_taken_into_a_run(model_dir: Path) -> None:
    expected = generate(plain_model(model_dir), PROMPT, PARAMS).token_ids
    with two_boxes(model_dir, replicas=True, known=1) as running:
        assert generate(running.head, PROMPT, PARAMS).token_ids == expected
        assert running.watch.standing().dead == {1}
        running.found["w1"] = running.boxes[1].address
        running.found["no such worker"] = running.boxes[1].address
        wait_until(lambda: not running.watch.standing().dead)
        running.boxes[1].stop()
        wait_until(lambda: running.watch.standing().dead == {1})
        running.boxes[1].move()
        running.boxes[1].start()
        running.found["w1"] = running.boxes[1].address
        wait_until(lambda: not running.watch.standing().dead)
        # Only the one that came serves.
        running.boxes[0].stop()
        wait_until(lambda: running.watch.standing().dead == {0})
        assert generate(running.head, PROMPT, PARAMS).token_ids == expected


def test_what_takes_long_over_a_slow_link_is_sent_once(model_dir: Path) -> None:
    prompt, params = [*range(5, 105)], replace(PARAMS, max_tokens=1, mtp=0, chunk_size=128)
    expected = generate(plain_model(model_dir), prompt, params).token_ids
    # A layer's rows take a third of a second. A lost message would be asked again after half of that.
    with two_boxes(model_dir, replicas=False, link_bytes_per_s=40_000) as running:
        assert generate(running.head, prompt, params).token_ids == expected
        assert running.counts("retried", "hedged") == [0, 0]


def test_where_nobody_can_the_bytes_are_named(model_dir: Path) -> None:
    with two_boxes(model_dir, replicas=False, wait_s=0.3) as running:
        running.boxes[1].stop()
        wait_until(lambda: running.counts("died") == [1])
        with pytest.raises(WorkerLost, match=r"of experts are missing: \d+ experts.* held by 'w1'"):
            generate(running.head, PROMPT, PARAMS)
