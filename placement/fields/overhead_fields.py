"""Which figures of a device's software count on the head's own device alone, and which in layers."""

from __future__ import annotations

HEAD_ALONE = frozenset(
    {
        "host_link_round_trip_s",
        "overheads.message_s",
        "overheads.message_row_s",
        "overheads.pass_s",
        "overheads.draft_s",
    }
)
"""Fields of a cluster file's device that have no effect but on the device that the head computes on."""
OF_LAYERS = frozenset({"overheads.layer_s", "overheads.moe_layer_s", "overheads.batch_s", "overheads.row_s"})
"""Those that also count where the policy `pipeline` runs layers: on any device but a disk."""
