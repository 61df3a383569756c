"""A loaded model behind HTTP, until somebody stops it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.api.server import serve
from orchestrator.api.settings import ApiSettings
from orchestrator.scheduling.limits import Limits
from orchestrator.serving.engine import EngineSettings, ModelEngine
from orchestrator.session import Session
from orchestrator.tokenizer import Tokenizer
from placement.pass_costs import PassCosts, costs_of_reading
from placement.plan import Plan

Rank = Callable[[NDArray[np.uint16]], Mapping[str, Any]]
"""From experts of the newest tokens to the document of `potluck whatif --json`."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What a server is asked for.

    Attributes:
        name: the model's, for clients; `created_s`: when its file was written, seconds since 1970.
        context: tokens of prompt and answer together.
        most_drafts: of a sequence in a step.
        most_delay_s: that prompts may add to others' next token.
        most_waiting: requests that wait.
    """

    name: str
    created_s: int
    context: int
    most_drafts: int
    most_delay_s: float
    most_waiting: int


def serve_until_stopped(
    session: Session,
    tokenizer: Tokenizer,
    serving: Serving,
    settings: ApiSettings,
    told: list[Callable[[str], None]],
    rank: Rank | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        told: whoever is told what happens to the cluster. Meanwhile the engine is told too.
        rank: ranks changes to the cluster by what they do to such traffic; None where nobody can.

    Raises:
        InputError: the address cannot be listened on, or a number is out of range.
    """
    limits = Limits(serving.context, most_delay_s=serving.most_delay_s, most_waiting=serving.most_waiting)
    engine_settings = EngineSettings(
        serving.name, serving.created_s, limits, _costs(session), serving.most_drafts
    )

    def ready(url: str) -> None:
        for tell in told:
            tell(
                f"{serving.name} at {url}, OpenAI's API at {url}/v1, texts of {serving.context:,} tokens; "
                "Ctrl-C stops it"
            )

    with ModelEngine(session, tokenizer, engine_settings) as engine:
        told.append(engine.note)
        whatif = None if rank is None else lambda: rank(engine.recent())
        asyncio.run(serve(engine, settings, ready=ready, source=engine, whatif=whatif))


def _costs(session: Session) -> PassCosts:
    """The proportions of passes; what passes really take corrects them from the first one on."""
    plan: Plan = session.dispatcher.view.plan
    shape = session.head.config.shape(plan.model)
    num_bytes = float(plan.expert_bytes.mean()) if plan.expert_bytes.size else 2.0 * shape.expert_parameters
    return costs_of_reading(shape, 8 * num_bytes / shape.expert_parameters)
