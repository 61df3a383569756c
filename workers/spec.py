"""What a worker process is to be, and what it says of itself once it serves; each as one line of JSON.

Importing this module loads neither torch nor ray: a spec can be made anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from placement.errors import WorkerStartError
from placement.plan import Plan
from transport.keys import KeyPair
from transport.messages import WireLimits
from workers.tiers import TierSpec, tiers_of

LINGER_S = 120.0
"""How long a worker that no head speaks to keeps its experts, unless its spec says otherwise."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker is to be.

    Attributes:
        model: of the plan.
        limits: what requests may ask for; the checkpoint must have their fingerprint.
        tiers: its devices and what each is to hold; they work side by side. None for a box that stands by.
        forms: layer -> the name of the `ExpertFormat` its experts are kept in, of all the model's MoE layers.
        dtype: what rows come in, "float32" or "bfloat16".
        model_dir: the checkpoint, a directory or a GGUF file, as the worker's own machine sees it.
        endpoint: what to bind for requests, such as "tcp://10.0.0.2:*".
        pulse_endpoint: what to bind for signs of life and orders.
        identity: of the model's files, as `model_identity` tells it; "" where nobody noted it.
        keys: the pair it proves itself with; one is made where it is left out and others are allowed in.
        allowed: public keys that may connect; none only where no other machine can.
        num_threads: of each tier's kernels.
        linger_s: it ends when no head has spoken to it for so long.
        lifeline: it ends when its standard input does, that is with the process that started it.
        log_path: where its messages go; its standard error where left out.
        reservation: of memory that its starter holds for it already, by `Reservation.name`; "" for none.
        pace_bytes_per_s: the rate of the memory that it plays (`workers.paced`); 0 for its own.
    """

    name: str
    model: str
    limits: WireLimits
    tiers: tuple[TierSpec, ...]
    forms: Mapping[int, str]
    dtype: str
    model_dir: str
    endpoint: str
    pulse_endpoint: str
    identity: str = ""
    keys: KeyPair | None = None
    allowed: tuple[bytes, ...] = ()
    num_threads: int = 1
    linger_s: float = LINGER_S
    lifeline: bool = False
    log_path: str = ""
    reservation: str = ""
    pace_bytes_per_s: float = 0.0

    @classmethod
    def of_plan(cls, plan: Plan, worker: str, limits: WireLimits, **more: Any) -> WorkerSpec:
        """What a plan says of one of its workers.

        Args:
            more: the other attributes.

        Raises:
            PlanError: the plan has no such worker.
        """
        forms = {layer.index: layer.form for layer in plan.layers}
        tiers = tiers_of(plan, worker)
        identity = plan.digests.get("identity", "")
        return cls(
            worker, plan.model, limits, tiers=tiers, forms=forms, dtype=plan.dtype, identity=identity, **more
        )

    def to_json(self) -> str:
        """One line, which holds the secret key where there is one."""
        fields = asdict(self)
        fields["keys"] = None if self.keys is None else [self.keys.public.decode(), self.keys.secret.decode()]
        fields["allowed"] = [key.decode() for key in self.allowed]
        fields["limits"]["moe_layers"] = sorted(self.limits.moe_layers)
        return json.dumps(fields)

    @classmethod
    def from_json(cls, line: str) -> WorkerSpec:
        """Raises WorkerStartError where the line is no spec."""
        try:
            fields = json.loads(line)
            fields["tiers"] = tuple(map(_tier, fields["tiers"]))
            fields["forms"] = _by_layer(fields["forms"], str)
            layers = frozenset(fields["limits"].pop("moe_layers"))
            fields["limits"] = WireLimits(**fields["limits"], moe_layers=layers)
            pair = fields.get("keys")
            fields["keys"] = None if pair is None else KeyPair(*(half.encode() for half in pair))
            fields["allowed"] = tuple(key.encode() for key in fields.get("allowed", ()))
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            # Not the line itself: it may hold a secret.
            raise WorkerStartError(
                f"a worker's spec on standard input: {type(error).__name__}; expected one line of JSON as "
                "this release of Potluck writes it: run one release on all boxes"
            ) from None


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """Where a started worker is, what its tiers hold together, the key it proves itself with, if any.

    `instance` is drawn by lot at each start: it tells a worker from the one that ran in its place before.
    """

    name: str
    endpoint: str
    pulse_endpoint: str
    pid: int
    host: str
    instance: int
    num_experts: int
    held_bytes: int
    public_key: bytes | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"public_key": None if self.public_key is None else self.public_key.decode()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> WorkerInfo:
        """Of what `to_dict` gave; raises WorkerStartError for anything else."""
        try:
            key = fields["public_key"]
            return cls(**{**fields, "public_key": None if key is None else key.encode()})
        except (TypeError, KeyError, AttributeError, UnicodeEncodeError) as error:
            raise WorkerStartError(
                f"a worker's word about itself: {type(error).__name__}; run one release on all boxes"
            ) from None


def _tier(fields: Mapping[str, Any]) -> TierSpec:
    by_layer = {"experts": _by_layer(fields["experts"], tuple), "forms": _by_layer(fields["forms"], str)}
    return TierSpec(**{**fields, **by_layer})


def _by_layer(values: Mapping[str, Any], kind: type) -> dict[int, Any]:
    """JSON's keys are texts."""
    return {int(layer): kind(value) for layer, value in values.items()}
