"""The dispatcher before an echo: what it does for a message, without experts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from orchestrator.dispatch.dispatcher import Dispatcher, unwatched
from placement.holders import HolderTable
from placement.message_size import MAX_MESSAGE_ROWS
from placement.plan import Plan, PlannedTier, like_layers
from transport.expert_rows import ExpertRows
from transport.keys import KeyPair
from workers.probe.echo import LAYER, LIMITS, NAME, NUM_EXPERTS, EchoSpec
from workers.probe.round_trips import echo_client
from workers.probe.running_echo import running_echo


@contextmanager
def dispatching(endpoint: str) -> Iterator[Callable[[ExpertRows], None]]:
    """Give what runs rows of one layer, all of whose experts an echo at `endpoint` (private) holds."""
    plan = Plan(
        "probe",
        LIMITS.fingerprint,
        like_layers((LAYER,), "bfloat16", 1),
        "bfloat16",
        (PlannedTier(NAME, NAME, "cpu", "ram", NUM_EXPERTS),),
        HolderTable.from_single(np.zeros((1, NUM_EXPERTS), np.int16)),
        "probe",
    )
    spec = EchoSpec((endpoint,), KeyPair.make().public.decode(), (False,))
    with running_echo(spec) as info, echo_client(info.endpoints[0], None) as client:
        dispatcher = Dispatcher(*unwatched(plan, {NAME: client}), local=None, max_rows=MAX_MESSAGE_ROWS)

        def run(rows: ExpertRows) -> None:
            dispatcher.collect(dispatcher.ask(LAYER, rows))

        dispatcher.begin_pass()
        yield run
