"""Step-3.5: the trunk of the model, from token ids to hidden states and logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from orchestrator import kernels
from orchestrator.kernels import Rotation
from orchestrator.model.attention import SequenceSlice, pass_rows
from orchestrator.model.finite import check_finite
from orchestrator.model.kv_cache import KVCache
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.layer import decoder_layer, ffn_of
from orchestrator.model.moe import ExpertRunner
from orchestrator.model.on_card import OnCard
from orchestrator.model.passes import run_pass
from orchestrator.model.rope import RopeTable, rope_key
from orchestrator.model.routing_recorder import Recorder
from orchestrator.model.weights import HeadWeights, load_head_weights
from orchestrator.sampling import Logits, LogitsInRam
from orchestrator.timing import StepTimer
from placement.kv_size import KvForm, SequenceSize, WaitingSize
from workers.formats.checkpoint import Checkpoint
from workers.formats.dequantise import float32_rows
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.memory.reservations import free_memory
from workers.model_config import Step35Config


class Step35Model:
    """The head: all of the model but the routed experts, which `experts` runs, here or elsewhere.

    Attributes:
        recorder: set it to collect the experts that tokens choose.
        timer: seconds by part. Give the expert runner the same timer, so that its parts count here too.
        kv_form: how caches keep keys and values; unless given, float32 in float32 runs, else bfloat16.
        kv_pool: where caches take their pages in RAM; unless given, as large as memory was free at the start.
        card: computes some of the layers, the output matrix or MTP layers; None where the CPU computes all.
    """

    def __init__(
        self,
        config: Step35Config,
        weights: HeadWeights,
        dtype: torch.dtype,
        experts: ExpertRunner,
        timer: StepTimer | None = None,
        kv_form: KvForm | None = None,
        kv_pool: KvPool | None = None,
        card: OnCard | None = None,
    ) -> None:
        self.config = config
        self.weights = weights
        self.dtype = dtype
        self.experts = experts
        self.timer = timer if timer is not None else StepTimer()
        self.kv_form = kv_form or KvForm.of(str(dtype).removeprefix("torch."))
        self.kv_pool = kv_pool if kv_pool is not None else KvPool(free_memory().usable_bytes)
        self.card = card
        self.recorder: Recorder | None = None
        tables = {rope_key(layer): RopeTable(layer) for layer in config.layers}
        self._rope_tables = tuple(tables[rope_key(layer)] for layer in config.layers)

    @classmethod
    def load(
        cls,
        model: Path | Checkpoint,
        config: Step35Config,
        dtype: torch.dtype,
        experts: ExpertRunner,
        timer: StepTimer | None = None,
    ) -> Step35Model:
        """Read the head's weights from a model directory or an open checkpoint.

        Raises:
            CheckpointError: a file or tensor is missing, truncated or of another shape.
        """
        checkpoint = SafetensorsCheckpoint.open(model) if isinstance(model, str | Path) else model
        weights = load_head_weights(checkpoint, config, dtype)
        return cls(config, weights, dtype, experts, timer)

    def new_cache(self) -> KVCache:
        """An empty cache for one sequence."""
        config = self.config
        layers = config.layers[: config.num_hidden_layers]
        pools = [self.kv_pool] * len(layers)
        if self.card is not None:
            for place in self.card.layers:
                pools[place] = self.card.pool
        return KVCache(layers, config.sliding_window, self.kv_form, pools)

    def new_mtp_cache(self, k: int) -> KVCache:
        """An empty cache of MTP layer k for one sequence."""
        config = self.config
        layer = config.layers[config.num_hidden_layers + k]
        pool = self.kv_pool if self.card is None or k >= self.card.num_mtp else self.card.pool
        return KVCache((layer,), config.sliding_window, self.kv_form, pool)

    def kv_sizes(self, num_drafts: int) -> list[tuple[SequenceSize, int]]:
        """Of each pool that caches use: what a sequence takes of it, and its budget in bytes.

        Rows that wait for MTP layers are in RAM's.
        """
        trunk = self.config.num_hidden_layers
        attention = self.config.shape("").attention[: trunk + num_drafts]
        waiting = WaitingSize.of(attention[trunk:], self.config.hidden_size)
        on_card: set[int] = set()
        sizes = []
        if self.card is not None:
            on_card = {*self.card.layers, *range(trunk, trunk + min(num_drafts, self.card.num_mtp))}
            there = SequenceSize([attention[layer] for layer in sorted(on_card)], self.kv_form)
            sizes.append((there, self.card.pool.budget_bytes))
        here = [shape for layer, shape in enumerate(attention) if layer not in on_card]
        return [*sizes, (SequenceSize(here, self.kv_form, waiting), self.kv_pool.budget_bytes)]

    def check_kv(self, num_positions: int, pass_rows: int, num_drafts: int) -> None:
        """Raise KvDoesNotFit unless one sequence of so many positions fits the pools."""
        for sequence, budget_bytes in self.kv_sizes(num_drafts):
            sequence.check(num_positions, pass_rows, budget_bytes)

    def check_token_ids(self, token_ids: Sequence[int]) -> None:
        """Raise InputError unless every id is in the vocabulary."""
        self.config.check_token_ids(token_ids)

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64 [num_tokens] -> float32 [num_tokens, hidden]."""
        return float32_rows(self.weights.embedding, token_ids)

    def rotation(self, layer: int, stop: int) -> Rotation:
        """How absolute layer `layer` rotates positions below `stop`."""
        return self._rope_tables[layer].upto(stop)

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, batch: Sequence[SequenceSlice]) -> Tensor:
        """Run the new tokens of several sequences through all layers and add them to the caches.

        If the cluster loses experts on the way, all layers run again once it has them. The caches count only
        what a whole pass wrote.

        Args:
            token_ids: int64 [num_tokens], the slices one after another.
            batch: each slice's cache and number of tokens; a cache may occur once.

        Returns:
            Hidden states before the final norm, contiguous float32 [num_tokens, hidden].
        """
        for part in batch:
            part.cache.begin(part.num_tokens)
        rows = pass_rows(batch)

        def layers() -> Tensor:
            hidden_states = self.embed(token_ids)
            on_card = range(0) if self.card is None else self.card.layers
            for place, layer in enumerate(self.weights.layers):
                if self.card is not None and place in on_card:
                    if place == on_card.start:
                        hidden_states = self.card.run(hidden_states, batch, self.experts, self.recorder)
                    continue
                hidden_states = decoder_layer(
                    layer,
                    hidden_states,
                    self.rotation(place, rows.stop),
                    rows,
                    place,
                    self.experts,
                    self.timer,
                    self.recorder,
                )
            return hidden_states

        hidden_states = run_pass(self.experts, layers, self.recorder)
        for part in batch:
            part.cache.commit(part.num_tokens)
        return hidden_states

    @torch.inference_mode()
    def logits(self, hidden_states: Tensor) -> Tensor:
        """Hidden states before the final norm float32 [n, hidden] -> logits float32 [n, vocab].

        Raises:
            NonFiniteError: the last layer's weights are broken.
        """
        check_finite(hidden_states, ffn_of(self.config.num_hidden_layers - 1))
        with self.timer.part("lm_head"):
            return kernels.linear(self.weights.norm.forward(hidden_states), self.weights.lm_head)

    @torch.inference_mode()
    def logits_to_choose_from(self, hidden_states: Tensor) -> Logits:
        """`logits`, which may stay on the card that computed them; raises as that."""
        if self.card is None or not self.card.has_output:
            return LogitsInRam(self.logits(hidden_states))
        check_finite(hidden_states, ffn_of(self.config.num_hidden_layers - 1))
        with self.timer.part("lm_head"):
            return self.card.logits(hidden_states)
