"""The part of the head that a card computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from torch import Tensor

from orchestrator.gpu.areas import FEW_ROWS, MOST_SEQUENCES, Areas, HeadShape
from orchestrator.gpu.attention import Workspace
from orchestrator.gpu.kv_rows import check_head_dim
from orchestrator.gpu.layers import CardLayers
from orchestrator.gpu.output import Outputs
from orchestrator.gpu.pages import CardPages, PageTables
from orchestrator.gpu.passing import Passing
from orchestrator.gpu.routing import check_routing
from orchestrator.gpu.step import LayerPlace, Step
from orchestrator.gpu.weights import CardLayer, CardMoe, CardOutput, CardWeights
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.finite import check_finite
from orchestrator.model.kv_pool import KvPool
from orchestrator.model.moe import ExpertRunner
from orchestrator.model.mtp import input_projection
from orchestrator.model.rope import RopeTable, rope_key
from orchestrator.model.routing_recorder import Recorder
from orchestrator.sampling import Logits
from orchestrator.timing import StepTimer
from placement.kv_size import PAGE_POSITIONS, PASS_ROWS, KvForm, pages_of
from placement.wire_form import WireForm
from workers.gpu.device import Device, Stream
from workers.gpu.tier import VramTier
from workers.model_config import LayerConfig, Step35Config


class HeadOnCard:
    """Layers of the trunk, the output matrix and MTP layers on a card: an `OnCard`."""

    def __init__(
        self,
        device: Device,
        config: Step35Config,
        weights: CardWeights,
        wires: Mapping[int, WireForm],
        kv_form: KvForm,
        *,
        pool_bytes: int,
        most_positions: int,
        experts: VramTier | None = None,
        timer: StepTimer | None = None,
        rows: int = PASS_ROWS,
    ) -> None:
        """
        Args:
            wires: of each MoE layer, by absolute index: what its experts' rows travel in.
            pool_bytes: for keys and values of the layers on the card.
            most_positions: of a sequence.
            experts: those on the same card, which are computed without the host.
            rows: of a pass, at most.

        Raises:
            InputError: a model that the kernels do not take.
            DeviceFull: no memory for a pass.
        """
        self.weights = weights
        self.device_name = device.name
        self._stream: Stream = device.stream()
        self._kv_form = kv_form
        self._rows = rows
        self.pages = CardPages(device, self._stream)
        self.pool = KvPool(pool_bytes, self.pages.new_page, self.pages.copy_page)
        trunk = [config.layers[place] for place in weights.places]
        mtp = [config.layers[config.num_hidden_layers + k] for k in range(len(weights.mtp))]
        self._ropes = {rope_key(layer): RopeTable(layer) for layer in (*trunk, *mtp)}
        pages = pages_of(most_positions + rows)
        self._pages = PageTables(device, self._stream, max(1, len(trunk)), pages, MOST_SEQUENCES)
        self._mtp_pages = [PageTables(device, self._stream, 1, pages, MOST_SEQUENCES) for _ in mtp]
        self._layers = [
            (layer, self._place(layer, of, self._pages.of_layer(number), pages, wires))
            for number, (layer, of) in enumerate(zip(weights.layers, trunk, strict=True))
        ]
        self._mtp_layers = [
            (of_mtp.layer, self._place(of_mtp.layer, of, tables.of_layer(0), pages, wires))
            for of_mtp, of, tables in zip(weights.mtp, mtp, self._mtp_pages, strict=True)
        ]
        widths = {rope_key(layer): layer.head_dim for layer in (*trunk, *mtp)}
        places = [place for _, place in (*self._layers, *self._mtp_layers)]
        self._shape = shape = head_shape(config, weights, places, tuple(widths.values()))
        self._areas = Areas(device, shape, rows)
        self._passing = Passing(device, shape, rows, len(places))
        self._runner = CardLayers(
            self._stream, self._passing, experts, timer if timer is not None else StepTimer()
        )
        self._outputs = Outputs(device, self._runner, self._passing, max(1, shape.vocab))
        if experts is not None:
            # So that nothing of theirs moves while graphs know where it lies.
            experts.reserve(self._stream, rows)

    @property
    def layers(self) -> range:
        """See `OnCard.layers`."""
        return self.weights.places

    @property
    def num_mtp(self) -> int:
        """See `OnCard.num_mtp`."""
        return len(self.weights.mtp)

    @property
    def has_output(self) -> bool:
        """See `OnCard.has_output`."""
        return self.weights.output is not None

    def run(
        self,
        hidden_states: Tensor,
        batch: Sequence[SequenceSlice],
        experts: ExpertRunner,
        recorder: Recorder | None,
    ) -> Tensor:
        """See `OnCard.run`."""
        step = self._step(len(hidden_states))
        bring = partial(self._bring, step, hidden_states, batch, self._pages, self.layers)
        return self._runner.run(step, "trunk", self._layers, bring, experts, recorder)

    def run_mtp(
        self,
        k: int,
        embedded: Tensor,
        states: Tensor,
        batch: Sequence[SequenceSlice],
        experts: ExpertRunner,
    ) -> Tensor:
        """See `OnCard.run_mtp`."""
        mtp, step = self.weights.mtp[k], self._step(len(embedded))

        def bring() -> None:
            self._bring(step, embedded, batch, self._mtp_pages[k], (0,))
            self._passing.bring_states(step.stream, step.at, states)
            self._runner.keep(step, ("project", k, step.num_rows), lambda: step.project(mtp))

        def check() -> None:
            projected = self._passing.fetch_hidden(step.stream, step.at, step.num_rows)
            check_finite(projected, input_projection(mtp.layer.index))

        layers = self._mtp_layers[k : k + 1]
        return self._runner.run(step, f"mtp {k}", layers, bring, experts, None, check)

    def logits(self, hidden_states: Tensor) -> Logits:
        """See `OnCard.logits`."""
        assert self.weights.output is not None
        return self._logits(hidden_states, self.weights.output)

    def mtp_logits(self, k: int, rows: Tensor) -> Logits:
        """See `OnCard.mtp_logits`."""
        return self._logits(rows, self.weights.mtp[k].output)

    def _logits(self, rows: Tensor, output: CardOutput) -> Logits:
        if len(rows) <= FEW_ROWS:
            return self._outputs.few(self._step(len(rows)), rows, output)
        starts = range(0, len(rows), FEW_ROWS)
        steps = [self._step(min(FEW_ROWS, len(rows) - start)) for start in starts]
        return self._outputs.many(steps, rows, output)

    def _bring(
        self,
        step: Step,
        hidden_states: Tensor,
        batch: Sequence[SequenceSlice],
        tables: PageTables,
        in_cache: Sequence[int],
    ) -> None:
        """`in_cache`: the place in the caches of each layer that has tables."""
        spans = [(part.cache.length, part.cache.length + part.num_tokens) for part in batch]
        ropes = [table.rows_of(spans) for table in self._ropes.values()]
        sequences = tables.places([part.cache for part in batch], in_cache)
        self._passing.bring(step.stream, step.at, hidden_states, batch, sequences, ropes)

    def _step(self, num_rows: int) -> Step:
        if num_rows > self._rows:
            raise ValueError(f"a pass of {num_rows} rows: the card has room for {self._rows}")
        return Step(
            self._stream,
            self._areas,
            num_rows,
            self._shape.hidden,
            self._kv_form,
            in_parts=num_rows <= FEW_ROWS,
        )

    def _place(
        self, layer: CardLayer, config: LayerConfig, pages: int, stride: int, wires: Mapping[int, WireForm]
    ) -> LayerPlace:
        host = layer.attention.host
        check_head_dim(host.head_dim)
        wire = None
        if isinstance(layer.ffn, CardMoe):
            check_routing(layer.ffn.router.rows, layer.ffn.host.top_k)
            wire = wires[layer.index]
        return LayerPlace(
            pages,
            stride,
            list(self._ropes).index(rope_key(config)),
            config.rotary_dim // 2,
            Workspace.parts_of(stride * PAGE_POSITIONS, host.window),
            wire,
        )


def head_shape(
    config: Step35Config, weights: CardWeights, places: Sequence[LayerPlace], rope_widths: Sequence[int]
) -> HeadShape:
    """What a pass over these weights needs room for.

    Args:
        places: of the trunk's layers, then of MTP layers.
        rope_widths: of each kind of rotation.
    """
    layers = [*weights.layers, *(mtp.layer for mtp in weights.mtp)]
    hosts = [layer.attention.host for layer in layers]
    moes = [layer.ffn for layer in layers if isinstance(layer.ffn, CardMoe)]
    ffns = [layer.ffn.shared if isinstance(layer.ffn, CardMoe) else layer.ffn for layer in layers]
    outputs = [mtp.output for mtp in weights.mtp] + ([weights.output] if weights.output else [])
    parts_bytes = [
        Workspace.num_bytes(1, host.num_heads, host.head_dim, place.num_parts)
        for host, place in zip(hosts, places, strict=True)
    ]
    return HeadShape(
        hidden=config.hidden_size,
        heads_width=max((host.num_heads * host.head_dim for host in hosts), default=0),
        projected=max((layer.attention.qkv_gate.rows for layer in layers), default=0),
        inner=max((ffn.inner for ffn in ffns), default=0),
        num_experts=max((moe.router.rows for moe in moes), default=1),
        top_k=max((moe.host.top_k for moe in moes), default=1),
        parts_bytes=max(parts_bytes, default=0),
        rope_widths=tuple(rope_widths),
        vocab=max((output.matrix.rows for output in outputs), default=0),
    )
