"""What a card is asked for in a pass, layer by layer: only launches, so that graphs can keep them."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.gpu.areas import Areas
from orchestrator.gpu.attention import Workspace, attention
from orchestrator.gpu.kv_rows import RowPlaces, kv_rows
from orchestrator.gpu.matrices import CardMatrices, CardRows, blocks_of
from orchestrator.gpu.norms import CardNorm, GridSums, NormedOut, norm_rows
from orchestrator.gpu.routing import route_top_k
from orchestrator.gpu.sampling import NeededKernels, choose_tokens
from orchestrator.gpu.weights import CardAttention, CardFfn, CardLayer, CardMoe, CardMtp, CardOutput
from placement.kv_size import KvForm, KvShape
from placement.wire_form import BFLOAT16_ROWS, WireForm
from workers.gpu.device import Stream
from workers.gpu.linear import GpuRows
from workers.gpu.rounding import round_rows
from workers.gpu.rows import RowsOnCard
from workers.gpu.swiglu import Halves, swiglu


@dataclass(frozen=True, slots=True)
class Pending:
    """What makes the next layer's input.

    Its first launch adds it up: (sums on grids + terms[0]) + terms[1].
    """

    terms: tuple[int, ...]
    sums: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """What a layer has on the card beside its weights.

    Attributes:
        pages: address of its sequences' page tables; `stride`: entries between two of them.
        rope: which of the rotations it has, and how many pairs rotate.
        num_parts: that attention of few rows is cut into.
        wire: what its experts' rows travel in; of a dense layer nothing.
    """

    pages: int
    stride: int
    rope: int
    rotary_half: int
    num_parts: int
    wire: WireForm | None


class Step:
    """Launches for `num_rows` rows on a stream, in its areas."""

    def __init__(
        self, stream: Stream, at: Areas, num_rows: int, hidden: int, kv_form: KvForm, *, in_parts: bool
    ) -> None:
        """`in_parts`: cut each row's attention into parts, as for few rows."""
        self.stream = stream
        self.at = at
        self.num_rows = num_rows
        self._hidden = hidden
        self._kv_form = kv_form
        self._in_parts = in_parts

    def attention(self, layer: CardLayer, place: LayerPlace, pending: Pending) -> None:
        """From what the layer before left to the residual, and its norm for what follows."""
        at, weights = self.at, layer.attention
        own = (weights.qkv_gate,)
        rows = self._normed(pending, layer.attention_norm, own)
        weights.qkv_gate.product(self.stream, rows, self.num_rows, at["projected"])
        mixed = self._mixed(weights, place)
        weights.output.product(self.stream, mixed, self.num_rows, at["attended"])
        norm_rows(
            self.stream,
            self.num_rows,
            self._hidden,
            (at["attended"], at["hidden"]),
            total=at["residual"],
            exponents=at["exponents"],
            broken=at["broken"],
            norm=layer.ffn_norm,
            to=self._for_ffn(layer.ffn, place.wire),
        )

    def route(self, moe: CardMoe) -> None:
        """Which experts the rows have, and with what weights."""
        at, host = self.at, moe.host
        num_experts = moe.router.rows
        rows = CardRows(at["normed"], GpuRows(), GpuRows())
        moe.router.product(self.stream, rows, self.num_rows, at["router_logits"])
        route_top_k(
            self.stream,
            self.num_rows,
            num_experts,
            host.top_k,
            logits=at["router_logits"],
            bias=moe.bias,
            normalise=host.normalise,
            scaling_factor=host.scaling_factor,
            expert_ids=at["expert_ids"],
            weights=at["expert_weights"],
        )

    def rows_of(self, moe: CardMoe, wire: WireForm) -> RowsOnCard:
        """The rows of the layer for experts on the same card."""
        at = self.at
        rounded = {block: at.rounded("normed", block) for block in wire.blocks}
        return RowsOnCard(
            self.num_rows,
            moe.host.top_k,
            self._x_for_experts(wire),
            at["expert_ids"],
            at["expert_weights"],
            at["exponents"],
            rounded,
        )

    def shared(self, moe: CardMoe, wire: WireForm) -> None:
        """The shared expert's output."""
        x = self._x_for_experts(wire)
        self._ffn(moe.shared, self.at.in_all_forms("normed", x))

    def dense(self, ffn: CardFfn) -> None:
        """A dense layer's output."""
        self._ffn(ffn, self.at.in_all_forms("normed", self.at["normed"]))

    def left(self, sums: tuple[int, ...] = ()) -> Pending:
        """What a layer leaves; of an MoE layer, where its experts' sums are."""
        return Pending((self.at["ffn_out"], self.at["residual"]), sums)

    def finish(self, pending: Pending) -> None:
        """Add up what the last layer left, into the area of hidden states."""
        if len(pending.terms) > 1 or pending.sums:
            norm_rows(
                self.stream,
                self.num_rows,
                self._hidden,
                pending.terms,
                grid=self._grid(pending),
                total=self.at["hidden"],
                broken=self.at["broken"],
            )

    def project(self, mtp: CardMtp) -> None:
        """An MTP layer's input, from the embedding (in the area of hidden states) and the layer before it."""
        at, H = self.at, self._hidden
        for norm, source, to in (
            (mtp.embedding_norm, at["hidden"], at["normed"]),
            (mtp.hidden_norm, at["states"], at["normed"] + 4 * H),
        ):
            norm_rows(
                self.stream,
                self.num_rows,
                H,
                (source,),
                norm=norm,
                to=NormedOut(normed=to, normed_stride=2 * H),
            )
        rows = self._rounded("normed", at["normed"], 2 * H, mtp.eh_proj)
        mtp.eh_proj.product(self.stream, rows, self.num_rows, at["hidden"])

    def logits(self, output: CardOutput) -> None:
        """Of the rows in the area of hidden states."""
        rows = self._normed(Pending((self.at["hidden"],)), output.norm, (output.matrix,))
        output.matrix.product(self.stream, rows, self.num_rows, self.at["logits"])

    def choose(self, vocab: int, needed: NeededKernels) -> None:
        """A token for each row of logits, as the area of choices says."""
        at = self.at
        choose_tokens(
            self.stream,
            self.num_rows,
            vocab,
            needed,
            logits=at["logits"],
            logits_stride=vocab,
            choices=at["choices"],
            workspace=at["choosing"],
            token_ids=at["token_ids"],
            banned=at["banned"],
        )

    def _normed(self, pending: Pending, norm: CardNorm, matrices: tuple[CardMatrices, ...]) -> CardRows:
        """What the layer before left, added up and normed as some matrices want it."""
        at, blocks = self.at, blocks_of(matrices)
        norm_rows(
            self.stream,
            self.num_rows,
            self._hidden,
            pending.terms,
            grid=self._grid(pending),
            total=at["hidden"] if len(pending.terms) > 1 or pending.sums else 0,
            norm=norm,
            to=self._out(blocks, normed=0 in blocks),
        )
        return at.in_all_forms("normed", at["normed"])

    def _mixed(self, weights: CardAttention, place: LayerPlace) -> CardRows:
        """New keys and values into their pages, and what the queries take from all; as `output` wants it."""
        at, host = self.at, weights.host
        kv = KvShape(self._kv_form, host.num_kv_heads, host.head_dim)
        places = RowPlaces(place.pages, place.stride, at["sequences"], at["positions"])
        heads = host.num_heads
        stride = weights.qkv_gate.rows
        kv_rows(
            self.stream,
            self.num_rows,
            places,
            kv,
            heads,
            qkv=at["projected"],
            qkv_stride=stride,
            qk_norm=weights.qk_norm,
            eps=host.eps,
            cos=at[f"cos{place.rope}"],
            sin=at[f"sin{place.rope}"],
            rotary_half=place.rotary_half,
            queries=at["queries"],
        )
        gate = at["projected"] + 4 * (heads + 2 * host.num_kv_heads) * host.head_dim
        attention(
            self.stream,
            self.num_rows,
            places,
            kv,
            heads,
            queries=at["queries"],
            out=at["mixed"],
            window=host.window,
            scale=host.scale,
            gate=gate if host.has_gate else 0,
            gate_stride=stride if host.has_gate else 0,
            workspace=Workspace(at["parts"], place.num_parts) if self._in_parts else None,
        )
        return self._rounded("mixed", at["mixed"], heads * host.head_dim, weights.output)

    def _rounded(self, name: str, x: int, columns: int, matrices: CardMatrices) -> CardRows:
        """Rows at `x` in the forms that matrices want."""
        rows = self.at.in_all_forms(name, x)
        for block in sorted(matrices.blocks - {0}):
            count = self.num_rows * columns // block
            round_rows(self.stream, x, rows.as_taken(block), block, count)
        return rows

    def _for_ffn(self, ffn: CardFfn | CardMoe, wire: WireForm | None) -> NormedOut:
        if isinstance(ffn, CardFfn):
            blocks = blocks_of((ffn.gate, ffn.up))
            return self._out(blocks, normed=0 in blocks)
        assert wire is not None
        blocks = blocks_of((ffn.shared.gate, ffn.shared.up)) | set(wire.blocks)
        narrowed = self.at["narrowed"] if wire == BFLOAT16_ROWS else 0
        return self._out(blocks, normed=True, narrowed=narrowed)

    def _out(self, blocks: frozenset[int], *, normed: bool, narrowed: int = 0) -> NormedOut:
        at = self.at
        by_256, by_32 = (at.rounded("normed", block) if block in blocks else None for block in (256, 32))
        return NormedOut(at["normed"] if normed else 0, narrowed=narrowed, by_256=by_256, by_32=by_32)

    def _x_for_experts(self, wire: WireForm) -> int:
        """Their rows in float32: rounded to bfloat16 where they travel so."""
        return self.at["narrowed" if wire == BFLOAT16_ROWS else "normed"]

    def _ffn(self, ffn: CardFfn, rows: CardRows) -> None:
        at, T = self.at, self.num_rows
        ffn.gate.product(self.stream, rows, T, at["gate"])
        ffn.up.product(self.stream, rows, T, at["up"])
        (block,) = ffn.down.blocks
        # What stands between two products may be overwritten in place.
        between = at.in_all_forms("between", at["gate"])
        halves = Halves(at["gate"], at["up"], T, ffn.inner, ffn.inner)
        swiglu(self.stream, halves, ffn.limit, between.as_taken(block), block)
        ffn.down.product(self.stream, between, T, at["ffn_out"])

    def _grid(self, pending: Pending) -> GridSums | None:
        return GridSums(pending.sums, self.at["exponents"]) if pending.sums else None
