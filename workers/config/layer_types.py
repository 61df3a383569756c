"""The kinds of attention that layers have, as config.json writes them."""

from __future__ import annotations

FULL, SLIDING = "full_attention", "sliding_attention"
LAYER_TYPES = (FULL, SLIDING)
