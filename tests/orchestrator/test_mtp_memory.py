"""What MTP layers hold of a sequence, rows that wait among it, is never more than is counted for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.model.kv_pool import KvPool
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.model.mtp_state import MtpState
from orchestrator.model.step35 import Step35Model
from orchestrator.sampling import Choice, Sampler
from orchestrator.sampling_params import GREEDY
from placement.kv_size import SequenceSize, WaitingSize
from tests.examples import examples
from tests.orchestrator.heads import load_model
from tests.tiny_checkpoint import write_random_checkpoint

VOCAB, HIDDEN, PLENTY = 6, 32, 1 << 30
LoadModel = Callable[[str, int], Step35Model]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["read", "step", "step", "steps", "catch up", "take back"]),
        st.integers(1, 256),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=16,
)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> LoadModel:
    """A model of one trunk layer, and of MTP layers that see all (f) or their window (s)."""
    models: dict[tuple[str, int], Step35Model] = {}

    def load(layers: str, window: int) -> Step35Model:
        if (layers, window) not in models:
            directory = write_random_checkpoint(
                tmp_path_factory.mktemp("mtp"),
                seed=3,
                vocab_size=VOCAB,
                hidden_size=HIDDEN,
                num_layers=1,
                num_mtp_layers=len(layers),
                num_heads=2,
                num_sliding_heads=2,
                num_kv_heads=1,
                sliding_window=window,
                intermediate_size=32,
                moe_layers=(0,),
                num_experts=2,
                top_k=1,
                moe_intermediate_size=16,
                share_expert_dim=16,
            )
            set_layer_types(directory / "config.json", layers)
            models[layers, window] = load_model(directory)
        return models[layers, window]

    return load


def set_layer_types(path: Path, layers: str) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    names = {"f": "full_attention", "s": "sliding_attention"}
    config["layer_types"][1:] = [names[layer] for layer in layers]
    path.write_text(json.dumps(config), encoding="utf-8")


def greedy(drafts: list[int]) -> Choice:
    return Sampler(GREEDY).choice(len(drafts))


class Played:
    """The MTP layers' part of one sequence, with as much memory as is counted for its length."""

    def __init__(self, model: Step35Model, num_layers: int, pass_rows: int) -> None:
        trunk = model.config.num_hidden_layers
        layers = model.config.shape("").attention[trunk : trunk + num_layers]
        self.keys, self.rows = SequenceSize(layers, model.kv_form), WaitingSize.of(layers, HIDDEN)
        self.pass_rows = pass_rows
        self.drafter = MtpDrafter(model, num_layers, pass_rows)
        model.kv_pool = self.kv_pool = KvPool(PLENTY)
        caches = self.drafter.new_state().caches
        self.row_pool = KvPool(PLENTY)
        self.state = MtpState(caches, HIDDEN, self.drafter.new_state().reaches, self.row_pool)
        self.longest = 0

    def count(self, positions: int) -> None:
        """From now on, nobody gets more than a sequence of so many positions takes."""
        self.longest = max(self.longest, positions)
        self.kv_pool.budget_bytes = self.keys.num_bytes_in_any_passes(self.longest, self.pass_rows)
        self.row_pool.budget_bytes = self.rows.num_bytes(self.longest, self.pass_rows)

    def pass_of(self, num_rows: int, num_drafts: int) -> None:
        """Drafts, or what MTP layers need all the same, then a pass and its rows, as `run_step` has them."""
        state = self.state
        self.count(state.num_hidden + num_rows)
        if num_drafts or state.is_behind:
            self.draft(num_drafts)
        state.defer(torch.rand(num_rows, HIDDEN))

    def draft(self, num_drafts: int) -> None:
        state = self.state
        tokens = [1] * (state.num_hidden + 1)
        self.drafter.draft([DraftRequest(state, torch.empty(0, HIDDEN), tokens, num_drafts, greedy)])

    def catch_up(self) -> None:
        """As before the first token, where every step is going to draft."""
        self.draft(0)

    def take_back(self, num_rows: int) -> None:
        """As where an answer leaves tokens out: of the last pass."""
        self.state.forget(self.state.num_hidden - min(num_rows, self.state.deferred - 1))


@examples(40)
@given(
    layers=st.sampled_from(["s", "sss", "sss", "f", "fs", "sfs"]),
    window=st.sampled_from([8, 140]),
    pass_rows=st.sampled_from([8, 100, 256]),
    events=EVENTS,
)
def test_rows_that_wait_and_keys_take_no_more_than_is_counted_at_any_time(
    load: LoadModel, layers: str, window: int, pass_rows: int, events: list[tuple[str, int, int]]
) -> None:
    played = Played(load(layers, window), len(layers), pass_rows)
    for event, number, drafts in events:
        wanted = min(drafts, len(layers))
        if event == "read" or not played.state.num_hidden:
            for _ in range(4):
                played.pass_of(min(number, pass_rows), 0)
        elif event == "catch up":
            played.catch_up()
        elif event == "take back":
            played.take_back(1 + drafts)
        else:
            # For long at one depth, so that much waits for deeper layers.
            for _ in range(number if event == "steps" else 1):
                played.pass_of(1 + wanted, wanted)
        rows = played.state.rows
        assert played.row_pool.used_bytes == sum(of.nbytes for of in rows)
        assert sum(map(len, rows)) * 4 * HIDDEN <= played.row_pool.used_bytes
    played.state.close()
    assert played.row_pool.used_bytes == played.kv_pool.used_bytes == 0


def test_layers_that_wait_one_after_another_hold_what_one_would_hold(load: LoadModel) -> None:
    """Each depth is drafted for long, then a shallower one: all layers have rows that wait."""
    played = Played(load("sss", 140), 3, 256)
    page_bytes = played.rows.page_bytes
    for drafts in (3, 2, 1, 0):
        for _ in range(700):
            played.pass_of(1, drafts)
    # Windows of 140 reach 3 · 139 back, from a row a page and six before the newest.
    assert played.rows.rows_back == 417 + 134 + 1
    assert played.state.deferred >= 552
    assert 5 * page_bytes <= played.row_pool.used_bytes <= played.rows.num_bytes(2800) == 8 * page_bytes


def test_rows_come_back_with_whoever_held_them(load: LoadModel) -> None:
    model = load("sss", 140)
    model.kv_pool = KvPool(PLENTY)
    state = MtpDrafter(model, 3).new_state()
    state.defer(torch.rand(300, HIDDEN))
    assert model.kv_pool.used_bytes == 3 * WaitingSize.of((), HIDDEN).page_bytes
    del state
    assert model.kv_pool.used_bytes == 0


def test_a_drafter_without_layers_remembers_nothing(load: LoadModel) -> None:
    with pytest.raises(ValueError, match="one layer at least"):
        MtpDrafter(load("s", 8), 0).new_state()
