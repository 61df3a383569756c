"""One worker process, which owns a box: load its tiers' experts, serve them. Ray runs it, or anything else.

Importing this module loads neither torch nor ray: a spec can be made anywhere.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from placement.errors import WorkerStartError
from placement.message_size import MAX_MESSAGE_ROWS
from transport.keys import KeyPair, WorkerKeys
from transport.messages import WireLimits
from workers.memory.budget import Need, check_memory
from workers.memory.free import free_memory
from workers.memory.lost_pages import end_lost_pages_in_one_line
from workers.tiers import TierSpec

if TYPE_CHECKING:
    from workers.service import ExpertService, ServiceHealth

# A request's row of hidden states, its sums, and what lies between in the kernels: some float32 each.
REQUEST_BYTES_A_VALUE = 32


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is to be.

    Attributes:
        model, fingerprint, epoch: of the plan; the checkpoint must have this fingerprint.
        model_dir: the checkpoint, a directory or a GGUF file, as the worker's own machine sees it.
        tiers: its devices and what each is to hold, at least one; they work side by side.
        dtype: what rows come in, "float32" or "bfloat16".
        endpoint: what to bind, such as "tcp://127.0.0.1:*".
        head_public: the one key that may connect; None only where no other machine can.
        num_threads: of each tier's kernels.
    """

    name: str
    model: str
    fingerprint: str
    epoch: int
    model_dir: str
    tiers: tuple[TierSpec, ...]
    dtype: str
    endpoint: str
    head_public: bytes | None = None
    num_threads: int = 1
    max_rows: int = MAX_MESSAGE_ROWS


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Where a started worker is, what its tiers hold together, the key it proves itself with, if any."""

    name: str
    endpoint: str
    pid: int
    host: str
    num_experts: int
    held_bytes: int
    public_key: bytes | None


class WorkerProcess:
    """The worker of this process. Its methods are what Ray calls."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._spec = spec
        self._service: ExpertService | None = None

    def start(self) -> WorkerInfo:
        """Load the experts and serve them.

        Raises:
            CheckpointError: the checkpoint is missing, damaged or of another architecture.
            PlanError: the plan is for another model, or takes more memory than this machine has free.
            KeysRequired, WorkerStartError: the endpoint cannot be bound, or a tier cannot be held.
        """
        from workers.formats.open_model import find_model

        spec = self._spec
        # Made here, so that no secret travels.
        keys = None if spec.head_public is None else WorkerKeys(KeyPair.make(), frozenset([spec.head_public]))
        model_dir = Path(spec.model_dir)
        found = find_model(model_dir)
        config = found.config
        shape = config.shape(spec.model)
        if shape.fingerprint != spec.fingerprint:
            raise WorkerStartError(
                f"{model_dir}: has fingerprint {shape.fingerprint}, the plan is for {spec.fingerprint}: "
                "give this machine the same checkpoint, or make a plan for this one"
            )
        # Loading torch takes seconds: what can be refused without it is refused above.
        import torch

        from workers.pool import load_tiers, tier_needs
        from workers.service import ExpertService

        end_lost_pages_in_one_line()
        torch.set_num_threads(spec.num_threads)
        checkpoint = found.open().checkpoint
        check_memory(
            [
                *tier_needs(spec.tiers, checkpoint, config, spec.dtype),
                Need("requests and answers", spec.max_rows * shape.hidden_size * REQUEST_BYTES_A_VALUE),
            ],
            free_memory(),
            where=f"worker {spec.name}",
            advice="plan fewer experts for this box, or put some on a disk of it (potluck plan)",
        )
        experts = load_tiers(spec.tiers, checkpoint, config, spec.dtype)
        self._service = ExpertService(
            spec.name,
            experts,
            WireLimits.for_shape(shape, spec.max_rows),
            spec.endpoint,
            dtype=spec.dtype,
            keys=keys,
        )
        self._service.start()
        return WorkerInfo(
            name=spec.name,
            endpoint=self._service.endpoint,
            pid=os.getpid(),
            host=platform.node(),
            num_experts=experts.num_experts,
            held_bytes=experts.held_bytes,
            public_key=None if keys is None else keys.own.public,
        )

    def health(self) -> ServiceHealth:
        """Raises WorkerStartError before `start` and after `stop`."""
        if self._service is None:
            raise WorkerStartError(f"worker {self._spec.name}: not started")
        return self._service.health()

    def stop(self) -> None:
        """Stop serving and let go of the experts."""
        if self._service is not None:
            self._service.stop()
            self._service = None
