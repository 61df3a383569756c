"""Run token sequences through a model and note which experts each token uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from orchestrator.model.attention import SequenceSlice
from orchestrator.model.routing_recorder import RoutingRecorder
from orchestrator.model.step35 import Step35Model
from placement.errors import InputError

_CHUNK_TOKENS = 256


def record_trace(
    head: Step35Model,
    documents: Sequence[Sequence[int]],
    window: int,
    advance: Callable[[int], object] | None = None,
) -> NDArray[np.uint16]:
    """The experts that each token uses.

    Args:
        documents: token ids. Each is cut into windows of at most `window` tokens, which are run on their own.
        advance: told how many more tokens have been run.

    Returns:
        uint16 [num_tokens, num_moe_layers, top_k], best first.

    Raises:
        InputError: no token at all, or one outside the vocabulary.
    """
    windows = [
        document[start : start + window]
        for document in documents
        for start in range(0, len(document), window)
    ]
    if not windows:
        raise InputError("the texts are empty; expected at least one token")
    config = head.config
    recorder = head.recorder = RoutingRecorder(config.moe_layers, config.moe_num_experts, config.moe_top_k)
    for token_ids in windows:
        head.check_token_ids(token_ids)
        cache = head.new_cache()
        for start in range(0, len(token_ids), _CHUNK_TOKENS):
            chunk = torch.tensor(token_ids[start : start + _CHUNK_TOKENS])
            head.forward(chunk, [SequenceSlice(cache, len(chunk))])
            if advance is not None:
                advance(len(chunk))
    return recorder.trace()
