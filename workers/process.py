"""One worker, which owns a box: it answers from the first moment on, loads its tiers' experts, serves them.

Importing this module loads no torch.
"""

from __future__ import annotations

import os
import platform
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from placement.errors import CheckpointError, PotluckError, WorkerStartError
from placement.experts import Experts
from placement.files.quote import first_line
from placement.units import size
from placement.weight_format import ExpertFormat
from transport.keys import KeyPair, WorkerKeys, is_private
from transport.messages import (
    MAX_TEXT_CHARS,
    Drop,
    Held,
    Hello,
    HelloReply,
    Hold,
    WorkerState,
    random_id,
)
from workers.memory.budget import Need
from workers.memory.lost_pages import end_lost_pages_in_one_line
from workers.memory.reservations import Reservation, reserve
from workers.obey import obey
from workers.spec import WorkerInfo, WorkerSpec

if TYPE_CHECKING:
    from workers.formats.open_model import FoundModel
    from workers.holdings import Holdings
    from workers.pulse import PulseServer
    from workers.service import ExpertService

# A request's row of hidden states, its sums, and what lies between in the kernels: some float32 each.
REQUEST_BYTES_A_VALUE = 32


class WorkerProcess:
    """The worker of this process: `bind`, then `load`. It is its sockets' `PulseHandler`."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._keys = spec.keys
        if self._keys is None and spec.allowed:
            self._keys = KeyPair.make()
        self._holdings: Holdings | None = None
        self._reservation: Reservation | None = None
        self._service: ExpertService | None = None
        self._pulse: PulseServer | None = None
        self._identity = ""
        self._told_identity = ""
        self.instance = random_id()
        self.state = WorkerState.LOADING
        self.text = "starting"
        self.times_heard = 0
        """How often a head has said something."""
        self.told_to_end = threading.Event()
        """Set when a head says so."""

    def bind(self) -> WorkerInfo:
        """Answer from now on, in the state "loading": who asks for experts is told to ask again.

        Raises:
            KeysRequired, WorkerStartError: an endpoint cannot be bound.
        """
        # Loading torch takes seconds: `python -m workers.serve` reads its spec before.
        from workers.holdings import Holdings
        from workers.paced import PacedExperts
        from workers.pulse import PulseServer
        from workers.service import ExpertService
        from workers.sessions import Sessions

        spec = self._spec
        keys = None if self._keys is None else WorkerKeys(self._keys, frozenset(spec.allowed))
        sessions = Sessions()
        self._holdings = holdings = Holdings()
        experts = holdings if not spec.pace_bytes_per_s else PacedExperts(holdings, spec.pace_bytes_per_s)
        self._service = ExpertService(
            spec.name,
            experts,
            spec.limits,
            spec.endpoint,
            dtype=spec.dtype,
            keys=keys,
            handler=self,
            sessions=sessions,
        )
        self._pulse = PulseServer(spec.name, self, sessions, spec.limits, spec.pulse_endpoint, keys=keys)
        try:
            self._pulse.start()
            self._service.start()
        except BaseException:
            self.stop()
            raise
        return self.info()

    def load(self) -> WorkerInfo:
        """Bring the experts into memory and serve them, in the state "ready".

        Raises:
            CheckpointError: the checkpoint is missing, damaged, another one or of another architecture.
            PlanError: the plan is for another model, or takes more memory than this machine has free.
            WorkerStartError: a tier cannot be held.
        """
        spec = self._spec
        assert self._holdings is not None
        try:
            self._load(spec, self._holdings)
        except BaseException as error:
            self.text = first_line(error) if isinstance(error, PotluckError) else type(error).__name__
            self.state = WorkerState.FAILED
            raise
        self.text = ""
        self.state = WorkerState.READY
        return self.info()

    def _load(self, spec: WorkerSpec, holdings: Holdings) -> None:
        import torch

        from workers.pool import load_each, need_of, tier_needs

        found = self._found()
        end_lost_pages_in_one_line()
        torch.set_num_threads(spec.num_threads)
        model = found.open()
        config, checkpoint = model
        formats = {
            layer: ExpertFormat.of_name(spec.forms.get(layer, spec.dtype)) for layer in config.moe_layers
        }
        row_bytes = spec.limits.hidden_size * REQUEST_BYTES_A_VALUE
        own = Need("requests and answers", spec.limits.max_rows * row_bytes)
        self._reservation = reservation = reserve(
            [*tier_needs(spec.tiers, checkpoint, config, spec.dtype), own],
            what=f"worker {spec.name} of {spec.model}",
            where=f"worker {spec.name}",
            advice="plan fewer experts for this box, or put some on a disk of it (potluck plan)",
            part_of=spec.reservation,
        )
        disks = tier_needs(
            [tier for tier in spec.tiers if tier.kind == "disk"], checkpoint, config, spec.dtype
        )

        def note(experts: Experts) -> None:
            reservation.narrow([own, *disks, need_of(experts, "experts", checkpoint, config, formats)])

        tiers = load_each(spec.tiers, checkpoint, config, spec.dtype, on_progress=self._progress)
        holdings.begin(tiers, model, formats, reservation.room_bytes, note)

    def _found(self) -> FoundModel:
        """The model's files, where they are those of the plan."""
        from workers.formats.digests import trunk_digest
        from workers.formats.identity import model_identity, told
        from workers.formats.open_model import find_model

        spec = self._spec
        path = Path(spec.model_dir)
        try:
            found = find_model(path)
        except CheckpointError as error:
            raise CheckpointError(
                f"{self._here()}: {first_line(error)}{how_to_copy(spec.model_dir, spec.endpoint)}"
            ) from error
        shape = found.config.shape(spec.model)
        if shape.fingerprint != spec.limits.fingerprint:
            raise WorkerStartError(
                f"{self._here()}: {path} has fingerprint {shape.fingerprint}, expected "
                f"{spec.limits.fingerprint}, that of the plan{how_to_copy(spec.model_dir, spec.endpoint)}"
            )
        self._identity = model_identity(path).hex
        if spec.identity not in ("", self._identity):
            raise WorkerStartError(
                f"{self._here()}: {path} are other files (identity {self._identity[:12]}), expected "
                f"{spec.identity[:12]}, those of the plan{how_to_copy(spec.model_dir, spec.endpoint)}"
            )
        self._told_identity = told(self._identity, trunk_digest(path))
        return found

    def _here(self) -> str:
        return f"worker {self._spec.name} on {platform.node()}"

    def _progress(self, done: int, total: int) -> None:
        self.text = f"{size(done)} of {size(total)} in memory"

    @property
    def changes(self) -> int:
        """See `PulseHandler`."""
        return 0 if self._holdings is None else self._holdings.changes

    def heard(self) -> None:
        """See `PulseHandler`."""
        self.times_heard += 1

    def greet(self, hello: Hello) -> HelloReply:
        """See `PulseHandler`; a ready worker's text is its notices."""
        holdings = self._holdings
        return HelloReply(
            request_id=hello.request_id,
            name=self._spec.name,
            instance=self.instance,
            state=self.state,
            fingerprint=self._spec.limits.fingerprint,
            identity=self._told_identity,
            dtype=self._spec.dtype,
            num_experts=0 if holdings is None else holdings.num_experts,
            text=self.text[:MAX_TEXT_CHARS],
        )

    def obey(self, order: Hold | Drop) -> Held:
        """See `PulseHandler`."""
        assert self._holdings is not None
        return obey(order, self._holdings)

    def shut_down(self) -> None:
        """See `PulseHandler`."""
        self.told_to_end.set()

    def look_at_memory(self) -> None:
        """Note what the tiers have to say of their memory; it looks at every page, 10 ms for a gigabyte."""
        if self._holdings is not None and self.state == WorkerState.READY:
            self.text = "; ".join(self._holdings.notices())

    def info(self) -> WorkerInfo:
        """As things are now."""
        assert self._service is not None
        assert self._pulse is not None
        assert self._holdings is not None
        return WorkerInfo(
            name=self._spec.name,
            endpoint=self._service.endpoint,
            pulse_endpoint=self._pulse.endpoint,
            pid=os.getpid(),
            host=platform.node(),
            instance=self.instance,
            num_experts=self._holdings.num_experts,
            held_bytes=self._holdings.held_bytes,
            public_key=None if self._keys is None else self._keys.public,
        )

    def stop(self) -> None:
        """Stop serving, after the request that is being computed. Harmless when stopped."""
        for part in (self._pulse, self._service):
            if part is not None:
                part.stop()
        if self._holdings is not None:
            self._holdings.close()
        if self._reservation is not None:
            self._reservation.close()


def how_to_copy(model_dir: str, endpoint: str) -> str:
    """How to get the model's files to the box of an endpoint; nothing where that is the head's own."""
    address = endpoint.partition("://")[2].rpartition(":")[0]
    if is_private(endpoint):
        return ""
    folder = os.path.dirname(model_dir)
    return f": copy them there, on a box that has them: rsync -aP {model_dir} {address}:{folder}/"
