"""Several streams of passes on one cluster, event by event: they wait for each other where they meet.

The head computes one pass's layer at a time; requests queue for the link to a box, then for its devices;
answers queue for the way back. Workers may be lost and plans may change while it runs. docs/simulator.md.

The choice among holders, also among those left after a loss, is the runtime's own code. The rest of
`orchestrator/dispatch/layer_sum.py` is modelled here, since its messages carry rows and its clock ticks,
which would take most of a simulation's time: how long silence lasts before a worker counts as lost is
computed at once (`Patience.gives_up_at_s`), a request that is split is one event and counts its messages,
and no row is asked again on a coarser grid. tests/placement/replay/test_simulate_dispatcher.py runs both and
compares them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from placement.assign.one_step import assign_experts
from placement.errors import InputError
from placement.patience import Patience
from placement.replay.queueing.event_loop import EventLoop, Station
from placement.replay.queueing.migration_traffic import MigrationTraffic
from placement.replay.queueing.pass_requests import BoxRequest, layer_requests, pass_requests
from placement.replay.queueing.passes import Passes
from placement.replay.queueing.plans_in_use import PlansInUse
from placement.replay.queueing.scenario import Event, NewPlan, Stream, WorkerLoss
from placement.replay.queueing.transfers import transfers
from placement.replay.system import System
from placement.replay.tally import (
    ARITHMETIC,
    AT_HOME,
    BACK,
    MEMORY,
    OUT,
    QUEUE,
    ROUND_TRIP,
    SHARED_EXPERT,
    SOFTWARE,
    WIRE,
    SimulationReport,
    Tally,
    num_messages,
)
from placement.units import size

_FLUSH_STEPS = 4096


def simulate_queueing(
    system: System, streams: Sequence[Stream], events: Sequence[Event] = (), patience: Patience | None = None
) -> SimulationReport:
    """Run `streams` to their ends, or until a layer needs an expert that only lost workers held.

    Linear in requests, bounded memory, the same events in the same order every time. With one stream, one
    device behind each link and no events it takes the time of the closed form.

    Raises:
        InputError: no stream, traces that do not go with the workload, not one finished pass, or an event
            that names no worker of the plan, or the head.
        PlanError: a new plan for other workers or another model.
    """
    if not streams:
        raise InputError("streams: expected at least one")
    run = _Run(system, events, patience or Patience())
    return run.report([Passes(system, stream) for stream in streams])


class _Request:
    """A message to one box and its answer.

    `expert_ids`: [num_rows, top_k] where asked again, else None. `last`: the part that was finished last.
    """

    __slots__ = ("asked", "expert_ids", "last", "passes", "sent_s")

    def __init__(
        self, passes: Passes, asked: BoxRequest, sent_s: float, expert_ids: NDArray[np.integer] | None
    ) -> None:
        self.passes = passes
        self.asked = asked
        self.sent_s = sent_s
        self.expert_ids = expert_ids
        self.last = asked


class _Run:
    """The state machine: every method that takes a subject is something that happens at `loop.now_s`."""

    def __init__(self, system: System, events: Sequence[Event], patience: Patience) -> None:
        self.system = system
        self.patience = patience
        self.loop = EventLoop()
        self.tally = Tally(system)
        self.devices = [Station() for _ in system.names]
        self.links = [(Station(), Station()) for _ in system.links]
        self.dead_s = [float("inf")] * system.num_devices
        self.plans = PlansInUse(system.plan)
        self.waiting_plans: list[NewPlan] = []
        self.migration: MigrationTraffic | None = None
        self.running = 0
        self.seconds: list[float] = []
        self.new_tokens: list[NDArray[np.float64]] = []
        # Plain numbers: reading them from arrays one by one would take half of the time.
        self.num_rows, self.num_layers = [0] * system.num_devices, system.shape.num_moe_layers
        self.num_distinct, self.num_pairs = [0] * system.num_devices, [0] * system.num_devices
        self.num_answered_rows = [0] * system.num_devices
        self.bound = [[0] * system.num_devices for _ in range(self.num_layers)]
        self.causes = [[0] * self.tally.bound_cause.shape[1] for _ in range(self.num_layers)]
        self.before_s = system.before_s.tolist()
        self.shared_s = float(system.rates.busy_s[system.head])
        self.half_trip_s = (system.rates.round_trip_s / 2).tolist()
        self.request_s = system.rates.request_s.tolist()
        rates = [device.link_bytes_per_s for device in system.problem.devices]
        self.request_row_s = [system.message.request_bytes_per_row / rate for rate in rates]
        self.reply_row_s = [system.message.reply_bytes_per_row / rate for rate in rates]
        self.link_of = system.link_of.tolist()
        self.is_remote = system.is_remote.tolist()
        self.is_asked = system.is_asked.tolist()
        for event in events:
            self._expect(event)

    def report(self, streams: Sequence[Passes]) -> SimulationReport:
        first_s = min(stream.start_s for stream in streams)
        self.running = len(streams)
        for stream in streams:
            self.loop.at(stream.start_s, self._begin_pass, stream)
        self.loop.run()
        self._flush()
        tally, now_s = self.tally, self.loop.now_s
        tally.message_rows[:] = self.num_rows
        tally.distinct[:], tally.pairs[:] = self.num_distinct, self.num_pairs
        tally.answered_rows[:] = self.num_answered_rows
        tally.bound_device[:], tally.bound_cause[:] = self.bound, self.causes
        tally.device_s[:] = [
            station.busy_until_s(min(now_s, dead_s))
            for station, dead_s in zip(self.devices, self.dead_s, strict=True)
        ]
        tally.link_s = np.array(
            [[way.busy_until_s(now_s) for way in link] for link in self.links], dtype=np.float64
        ).reshape(-1, 2)
        if self.migration is not None:
            tally.note(
                now_s, f"the new plan was not in use yet: {size(self.migration.moved_bytes)} had moved"
            )
        return tally.report("queueing", now_s - first_s, self.loop.num_events)

    # A pass, layer by layer.

    def _begin_pass(self, passes: Passes) -> None:
        passes.started_s = self.loop.now_s
        passes.epoch = self.plans.newest_epoch
        passes.row = 0
        self._begin_layer(passes)

    def _begin_layer(self, passes: Passes) -> None:
        key = (passes.epoch, len(self.plans.lost))
        if passes.key != key:
            used = self.plans[passes.epoch]
            passes.requests = pass_requests(self.system, used.table, used.costs, passes.expert_ids)
            passes.key = key
        cell = passes.step * self.num_layers + passes.row
        now_s = self.loop.now_s
        if cell in passes.requests.missing:  # the head finds out when the router has chosen
            done_s = self.devices[self.system.head].serve(now_s, self.before_s[passes.row])
            self.loop.at(done_s, self._miss, passes)
            return
        local = passes.requests.local[cell]
        if local is not None:
            self._count(local)
        meanwhile_s, messages_s = passes.requests.meanwhile_s[cell], passes.requests.messages_s[cell]
        before_s = self.before_s[passes.row] + messages_s
        done_s = self.devices[self.system.head].serve(now_s, before_s + meanwhile_s)
        passes.ready_s, passes.head_done_s = now_s, done_s
        if passes.requests.asked[cell]:
            self.loop.at(done_s - meanwhile_s, self._send, passes)
        else:
            self.loop.at(done_s, self._head_was_last, passes)

    def _send(self, passes: Passes) -> None:
        asked = passes.requests.asked[passes.step * self.num_layers + passes.row]
        passes.pending = len(asked)
        asking = remote = False
        for request in asked:
            box = request.box
            asking = asking or self.is_asked[box]
            remote = remote or self.is_remote[box]
            self._ask(passes, request, None)
        self.tally.asking_layers += asking
        self.tally.remote_layers += remote

    def _ask(self, passes: Passes, asked: BoxRequest, expert_ids: NDArray[np.integer] | None) -> None:
        now_s, box, rows = self.loop.now_s, asked.box, asked.rows
        self.num_rows[box] += rows
        self._count(asked)
        if self.is_asked[box]:
            self.tally.messages += 1 if rows <= 1 else num_messages(np.array([rows]))
        link = self.link_of[box]
        left_s = now_s
        if link >= 0:
            left_s = self.links[link][OUT].serve(now_s, rows * self.request_row_s[box])
        request = _Request(passes, asked, now_s, expert_ids)
        self.loop.at(left_s + self.half_trip_s[box], self._arrived, request)

    def _arrived(self, request: _Request) -> None:
        """The box's devices work side by side; it answers when the last of them is done."""
        now_s, asked = self.loop.now_s, request.asked
        box = asked.box
        dead_s = self.dead_s[box]
        if now_s < dead_s:
            done_s = self.devices[asked.device].serve(now_s, asked.seconds)
            for part in asked.others:
                part_done_s = self.devices[part.device].serve(now_s, part.seconds)
                if part_done_s > done_s:
                    done_s, request.last = part_done_s, part
            if done_s <= dead_s:
                self.loop.at(done_s, self._answered, request)
                return
        gives_up_at_s = self.patience.gives_up_at_s(now_s, dead_s)
        self.loop.at(gives_up_at_s, self._gave_up, request)

    def _answered(self, request: _Request) -> None:
        box = request.asked.box
        link = self.link_of[box]
        left_s = self.loop.now_s
        if link >= 0:
            left_s = self.links[link][BACK].serve(left_s, request.asked.rows * self.reply_row_s[box])
        self.loop.at(left_s + self.half_trip_s[box], self._received, request)

    def _received(self, request: _Request) -> None:
        passes, rows = request.passes, request.asked.rows
        self.num_answered_rows[request.asked.box] += rows
        passes.pending -= 1
        if passes.pending:
            return
        if self.loop.now_s < passes.head_done_s:
            self.loop.at(passes.head_done_s, self._head_was_last, passes)
            return
        part, device = request.last, request.last.device
        round_trip_s = 2 * self.half_trip_s[device]
        wire_s = rows * (self.request_row_s[device] + self.reply_row_s[device])
        messages_s = passes.requests.messages_s[passes.step * self.num_layers + passes.row]
        own_s = part.seconds + round_trip_s + wire_s + messages_s
        queue_s = self.loop.now_s - passes.ready_s - self.before_s[passes.row] - own_s
        request_s = self.request_s[device]
        causes = {
            MEMORY if part.reads else ARITHMETIC: part.seconds - request_s,
            SOFTWARE: messages_s + request_s,
        }
        if self.is_remote[device]:
            causes |= {ROUND_TRIP: round_trip_s, WIRE: wire_s}
        else:
            causes[AT_HOME] = round_trip_s + wire_s
        self._end_layer(passes, device, causes, queue_s)

    def _head_was_last(self, passes: Passes) -> None:
        cell = passes.step * self.num_layers + passes.row
        local, messages_s = passes.requests.local[cell], passes.requests.messages_s[cell]
        own_s = passes.requests.meanwhile_s[cell] + messages_s
        causes = {SHARED_EXPERT: self.shared_s, SOFTWARE: messages_s}
        if local is not None:
            request_s = self.request_s[self.system.head]
            causes[MEMORY if local.reads else ARITHMETIC] = local.seconds - request_s
            causes[SOFTWARE] += request_s
        queue_s = passes.head_done_s - passes.ready_s - self.before_s[passes.row] - own_s
        self._end_layer(passes, self.system.head, causes, queue_s)

    def _end_layer(self, passes: Passes, device: int, causes: dict[int, float], queue_s: float) -> None:
        cause, longest_s = max(causes.items(), key=lambda item: item[1])
        self.bound[passes.row][device] += 1
        self.causes[passes.row][QUEUE if queue_s > longest_s else cause] += 1
        passes.row += 1
        if passes.row < self.num_layers:
            self._begin_layer(passes)
        else:
            done_s = self.devices[self.system.head].serve(self.loop.now_s, self.system.after_s)
            self.loop.at(done_s, self._end_pass, passes)

    def _end_pass(self, passes: Passes) -> None:
        self.seconds.append(self.loop.now_s - passes.started_s)
        self.new_tokens.append(passes.new_tokens[passes.step])
        if len(self.seconds) == _FLUSH_STEPS:
            self._flush()
        if passes.advance():
            self._begin_pass(passes)
            return
        self.running -= 1
        if not self.running:
            self.loop.stop()

    # Losses and new plans.

    def _expect(self, event: Event) -> None:
        if isinstance(event, NewPlan):
            transfers(self.system.plan, event.plan)  # refuses a plan for others before anything runs
            event.plan.check_fits()
            self.loop.at(event.at_s, self._new_plan, event)
            return
        devices = self.system.plan.worker(event.worker).tiers
        if self.system.head in devices:
            raise InputError(f"worker {event.worker!r} is the head's own process: its loss ends every run")
        for device in devices:
            self.dead_s[device] = min(self.dead_s[device], event.at_s)
        self.loop.at(event.at_s, self._died, event)

    def _died(self, loss: WorkerLoss) -> None:
        self.tally.note(loss.at_s, f"worker {loss.worker!r} stopped answering")

    def _gave_up(self, request: _Request) -> None:
        """Its silence has lasted too long: ask other holders for what it owed."""
        passes, box = request.passes, request.asked.box
        worker = int(self.system.plan.worker_of_tier[box])
        tiers = self.system.plan.workers[worker].tiers
        if self.plans.lose(worker):
            self.tally.note(self.loop.now_s, f"worker {self._name(worker)} taken for lost")
        owed = request.expert_ids
        if owed is None:
            chosen = passes.requests.chosen[passes.row][passes.step]
            ids = passes.expert_ids[passes.step, passes.row].astype(np.int32)
            mine = np.isin(chosen, tiers)
            owed = np.where(mine, ids, -1)[mine.any(axis=1)]
        used = self.plans[passes.epoch]
        chosen = assign_experts(owed, used.table.layers[passes.row], used.costs)
        nobody = (owed >= 0) & (chosen < 0)
        if nobody.any():
            self._stop(passes.row, int(owed[nobody][0]))
            return
        chosen = np.where(owed < 0, np.int16(-1), chosen)
        requests = layer_requests(self.system, chosen[None], np.maximum(owed, 0)[None]).requests
        passes.pending += len(requests) - 1
        for asked in requests:
            devices = [asked.device, *(part.device for part in asked.others)]
            again = np.where(np.isin(chosen, devices), owed, -1)
            again = again[(again >= 0).any(axis=1)]
            if asked.box == self.system.local:
                self._count(asked)
                done_s = self.devices[asked.device].serve(self.loop.now_s, asked.seconds)
                self.loop.at(done_s, self._received, _Request(passes, asked, self.loop.now_s, again))
            else:
                self._ask(passes, asked, again)

    def _miss(self, passes: Passes) -> None:
        self._stop(passes.row, passes.requests.missing[passes.step * self.num_layers + passes.row])

    def _stop(self, row: int, expert: int) -> None:
        names = ", ".join(self._name(worker) for worker in sorted(self.plans.lost))
        self.tally.stopped = (
            f"{self.loop.now_s:.3f} s: layer {self.system.shape.moe_layers[row]} expert {expert}: "
            f"lost worker {names} held it and no other worker does; plan with replicas"
        )
        self.loop.stop()

    def _name(self, worker: int) -> str:
        return repr(self.system.plan.workers[worker].name)

    def _new_plan(self, new: NewPlan) -> None:
        if self.migration is not None:
            self.waiting_plans.append(new)
            return
        moves = transfers(self.plans.newest, new.plan)
        num_bytes = sum(new.plan.layers[move.row].expert_bytes for move in moves)
        self.tally.note(self.loop.now_s, f"new plan: {len(moves)} experts, {size(num_bytes)} to move")
        self.migration = MigrationTraffic(
            self.loop, self.system, self.links, self.dead_s, new, moves, self._migrated
        )
        self.migration.begin()

    def _migrated(self, migration: MigrationTraffic, obstacle: str | None) -> None:
        self.migration = None
        for (link, way), num_bytes in migration.sent_bytes.items():
            self.tally.migrated_bytes[link, way] += num_bytes
        if obstacle is None:
            self.plans.add(migration.new.plan)
            self.tally.note(self.loop.now_s, "new plan in use")
        else:
            self.tally.note(self.loop.now_s, f"new plan given up: {obstacle}")
        if self.waiting_plans:
            self._new_plan(self.waiting_plans.pop(0))

    # Counting.

    def _count(self, asked: BoxRequest) -> None:
        self.num_distinct[asked.device] += asked.distinct
        self.num_pairs[asked.device] += asked.pairs
        for part in asked.others:
            self.num_distinct[part.device] += part.distinct
            self.num_pairs[part.device] += part.pairs

    def _flush(self) -> None:
        if self.seconds:
            self.tally.add_steps(np.array(self.seconds), np.array(self.new_tokens))
            self.seconds, self.new_tokens = [], []
