"""What the head's software took on its box, as a process there tells it; loads no torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from placement.given.probe_figures import Figures

READY = "ready"
CONTEXT = 256
VERIFY_ROWS = 4
CHUNK_ROWS = 128
ATTENTION_ROWS = (1, 4, 64, 256)

_Seconds = Annotated[float, Field(ge=0, lt=1e6)]


class HeadTimes(Figures):
    """Seconds.

    Attributes:
        token_s, verify_s, chunk_s: passes of one row and of VERIFY_ROWS behind CONTEXT others, and of
            CHUNK_ROWS behind none.
        woken_token_s: a pass of one row with a pause in each MoE layer, the pauses left out.
        logits_s: norm, lm_head and sampling of one row.
        drafts_s: all MTP layers behind one new row.
        dispatch_s, message_s: the dispatcher's CPU time in a layer that asks nobody, and for each worker.
        dispatch_row_s, message_row_s: the same for each row of a chunk, and for each row sent.
        attention_flops_per_s: of our kernel, for each of ATTENTION_ROWS.
    """

    token_s: _Seconds
    verify_s: _Seconds
    chunk_s: _Seconds
    woken_token_s: _Seconds
    logits_s: _Seconds
    drafts_s: _Seconds
    dispatch_s: _Seconds
    message_s: _Seconds
    dispatch_row_s: _Seconds
    message_row_s: _Seconds
    attention_flops_per_s: tuple[Annotated[float, Field(gt=0)], ...]
