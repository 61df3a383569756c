"""A state of a small server, some of it from peers that mean no good."""

from __future__ import annotations

from orchestrator.serving.state import BoxState, Event, RequestState, ServerState, Totals

HOSTILE = "<img src=x onerror=alert(1)>\x1b[31m\"'&\n"

STATE = ServerState(
    model="tiny",
    up_s=12.5,
    tokens_per_s=31.25,
    waiting=1,
    running=1,
    requests=(
        RequestState(7, HOSTILE, "writing", 2.0, 100, 100, 60, 40, 256, (40, 20), (30, 5)),
        RequestState(8, "ann", "waiting", 1.0, 5, 0, 0, 0, 256),
    ),
    boxes=(
        BoxState("head", "h1", "serving", 2, 2000, 4000, 0.75),
        BoxState(HOSTILE, "h2", "lost", 3, 3000, 3000, 0.25, 0.0015),
    ),
    totals=Totals(
        finished={"stop": 5, "length": 2},
        refused={"busy": 3},
        prompt_tokens=1000,
        cached_tokens=400,
        generated_tokens=500,
        drafted=(100, 50),
        accepted=(80, 20),
        steps=200,
        step_s=4.0,
        step_parts_s={"attention": 1.5, "remote_wait": 2.5},
        first_token_s=((0.1, 4), (1.0, 2), (None, 1)),
        between_tokens_s=((0.1, 9), (None, 0)),
        request_s=(),
        first_token_sum_s=5.5,
        between_tokens_sum_s=0.3,
    ),
    kv_used_bytes=500,
    kept_bytes=300,
    kv_budget_bytes=1000,
    moe_layers=(3, 4),
    places=((0, 0, 1), (1, 1, -1)),
    heat=((0.5, 0.25, 0.25), (1 / 3, 2 / 3, 0.0)),
    events=(Event(3.0, f"lost {HOSTILE}"), Event(60.0, "began")),
)


class Watched:
    """Fulfils `StateSource`."""

    def __init__(self, state: ServerState = STATE) -> None:
        self.now = state

    def state(self) -> ServerState:
        return self.now
