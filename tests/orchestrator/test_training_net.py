"""The head runs what the training net of potluck-tiny trains: trunk and MTP layers give the same logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from models.tiny.config import TinyConfig
from models.tiny.export import read_checkpoint, write_checkpoint
from models.tiny.net import TinyModel
from orchestrator.model.mtp import DraftRequest, MtpDrafter
from orchestrator.sampling import Choice, LogitsInRam, Sampler
from orchestrator.sampling_params import GREEDY
from tests.orchestrator.heads import hidden_states, load_model

LENGTH = 200  # longer than the window


@torch.no_grad()
def test_trunk_and_mtp_logits_are_the_training_nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = TinyModel(TinyConfig())
    net.initialize(3)
    write_checkpoint(net, tmp_path)
    net, model = read_checkpoint(tmp_path), load_model(tmp_path)
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(net.config.vocab_size, (1, LENGTH + 3), generator=generator)

    trunk = net.hidden_states(ids[:, :LENGTH])
    rows = hidden_states(model, ids[0, :LENGTH].tolist())
    torch.testing.assert_close(model.logits(rows), net.logits(trunk)[0], rtol=0, atol=1e-4)

    drafter = MtpDrafter(model, 3)
    given = iter([*ids[0, LENGTH + 1 :].tolist(), 0])
    seen: list[torch.Tensor] = []

    class TakeTheTextsNextToken(LogitsInRam):
        def __init__(self, rows: torch.Tensor) -> None:
            seen.extend(rows)

        def choose(self, choices: Sequence[Choice]) -> list[int]:
            return [next(given)]

    monkeypatch.setattr("orchestrator.model.mtp.LogitsInRam", TakeTheTextsNextToken)

    def choice(drafts: list[int]) -> Choice:
        return Sampler(GREEDY).choice(len(drafts))

    tokens = ids[0, : LENGTH + 1].tolist()
    drafter.draft([DraftRequest(drafter.new_state(), rows, tokens, 3, choice)])
    states = net.mtp_states(ids, trunk)
    for layer, state, logits in zip(net.mtp, states, seen, strict=True):
        torch.testing.assert_close(logits, layer.logits(state)[0, -1], rtol=0, atol=1e-4)
