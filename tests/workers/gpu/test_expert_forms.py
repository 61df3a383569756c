"""The sum of a row's experts on a card has the CPU's bits, in every form and any mixture of forms."""

from __future__ import annotations

import numpy as np
import pytest

from placement.weight_format import ExpertFormat
from tests.cuda_on_cpu.card import Card
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.gpu.expert_cases import RandomExperts, random_rows
from tests.workers.gpu.forms import each
from workers.gpu.expert_layer import TILES_FROM_ROWS
from workers.gpu.modules import LINEAR_FORMS
from workers.gpu.tier import VramTier
from workers.model_config import Step35Config
from workers.store import ExpertStore

MIXED = ["q8_0/bfloat16/float16", "float32/q5_0/q4_1", "bfloat16/float32/q8_0", "q4_0/mxfp4/iq4_nl"]
MIXED_256 = ["q4_k/q4_k/q6_k", "q5_k/q8_0/q4_k", "bfloat16/q6_k/float32", "iq4_xs/q3_k/q8_0"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Step35Config:
    directory = write_random_checkpoint(
        tmp_path_factory.mktemp("model"),
        seed=3,
        hidden_size=256,
        moe_intermediate_size=256,
        num_layers=4,
        moe_layers=(2, 3),
        num_experts=8,
        swiglu_limits={3: 0.5},
    )
    return Step35Config.load(directory)


def _runs(name: str) -> bool:
    return set(name.split("/")) <= set(LINEAR_FORMS)


NAMES = [name for name in (*LINEAR_FORMS, *MIXED, *MIXED_256) if _runs(name)]


@pytest.mark.parametrize("name", each(NAMES))
def test_sums_and_flags_are_the_cpus_in_every_form(config: Step35Config, card: Card, name: str) -> None:
    formats = {layer: ExpertFormat.of_name(name) for layer in (2, 3)}
    checkpoint, held = RandomExperts(formats), {2: [0, 2, 3, 5, 6], 3: [1, 2, 7]}
    store = ExpertStore.load(checkpoint, config, held, formats=formats)
    tier = VramTier.load(checkpoint, config, held, formats=formats, device=card.device())
    blocks = sorted({f.rounding_block for f in (formats[2].gate, formats[2].up)})
    hidden = ["float32", "bfloat16"]
    if 0 not in blocks:
        hidden.append(",".join(map(str, blocks)))
    # Fourteen rows are enough for tensor cores to multiply, where there are 8 experts.
    assert 14 * config.moe_top_k >= TILES_FROM_ROWS * config.moe_num_experts
    flags = []
    for seed, (layer, num_rows) in enumerate(((2, 1), (2, 2), (3, 9), (2, 14))):
        rows = random_rows(config, num_rows, seed, hidden=hidden[seed % len(hidden)], held=held[layer])
        expected, found = store.forward(layer, rows), tier.forward(layer, rows)
        np.testing.assert_array_equal(found.saturated, expected.saturated)
        np.testing.assert_array_equal(found.values[~found.saturated], expected.values[~found.saturated])
        flags += found.saturated.tolist()
    assert True in flags
    assert False in flags


def test_rows_rounded_otherwise_than_experts_want_are_refused(config: Step35Config, card: Card) -> None:
    formats = {2: ExpertFormat.of_name("q8_0")}
    tier = VramTier.load(RandomExperts(formats), config, {2: [0]}, formats=formats, device=card.device())
    with pytest.raises(ValueError, match="rounded otherwise than experts in q8_0 want"):
        tier.forward(2, random_rows(config, 2, 0, hidden="256", held=[0], absent=0))
    lowest = random_rows(config, 2, 0, hidden="32", held=[0], absent=0)
    lowest.hidden.parts[0].q[1, 5] = -128
    with pytest.raises(ValueError, match="a rounded value is below -127"):
        tier.forward(2, lowest)
