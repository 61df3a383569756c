"""What a store reads, what it holds, and what it answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray

from placement.errors import CheckpointError, PlanError
from placement.weight_format import BFLOAT16, FLOAT16, FLOAT32, Q8_0, ExpertFormat, WeightFormat
from tests.forks.forks import Forks
from tests.tiny_checkpoint import write_random_checkpoint
from transport.expert_rows import ExpertRows
from workers import fixed_point
from workers.formats.checkpoint import Expert, StoredMatrix
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.kernels import ExpertMatrices, ExpertWeights, moe_partial_sum
from workers.kernels.expert_matrices import TORCH_DTYPES
from workers.model_config import Step35Config
from workers.store import ExpertNotHeld, ExpertStore, in_one_form


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(
        tmp_path_factory.mktemp("model"), seed=2, swiglu_limits={3: 0.02}, dtype=torch.bfloat16
    )


def load(model_dir: Path, experts: dict[int, list[int]], dtype: torch.dtype = torch.float32) -> ExpertStore:
    checkpoint, config = SafetensorsCheckpoint.open(model_dir), Step35Config.load(model_dir)
    return ExpertStore.load(checkpoint, config, experts, formats=in_one_form(experts, dtype))


def request(T: int, num_experts: int = 16, top_k: int = 4) -> ExpertRows:
    rng = np.random.default_rng(T)
    hidden = rng.standard_normal((T, 64), dtype=np.float32)
    ids = np.stack([rng.permutation(num_experts)[:top_k] for _ in range(T)]).astype(np.int32)
    weights = rng.random((T, top_k), dtype=np.float32)
    return ExpertRows(hidden, ids, weights, fixed_point.scale_exponents(torch.from_numpy(hidden)))


def test_a_store_knows_what_it_holds(model_dir: Path) -> None:
    seen: list[tuple[int, int]] = []
    store = ExpertStore.load(
        SafetensorsCheckpoint.open(model_dir),
        Step35Config.load(model_dir),
        {2: [5, 0], 4: range(3), 5: []},
        formats=in_one_form((2, 4), torch.bfloat16),
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert store.experts == {2: (5, 0), 4: (0, 1, 2)}
    assert store.num_experts == 5
    assert store.held_bytes == 5 * 3 * 64 * 32 * 2
    assert 5 in store.experts[2]
    assert 1 not in store.experts[2]
    assert 0 not in store.experts.get(5, ())
    total = store.watch.num_bytes
    assert seen[-1] == (total, total)
    assert store.held_bytes <= total
    assert store.notices() == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", [2, 3])
def test_stores_that_share_a_layer_add_up_to_the_whole(
    model_dir: Path, layer: int, dtype: torch.dtype
) -> None:
    rows = request(9)
    whole = load(model_dir, {layer: list(range(16))}, dtype)
    expected = whole.forward(layer, rows)
    total = np.zeros_like(expected.values)
    for held in ([3, 9, 1], [0, 2, 4, 5, 6, 7, 8], [15, 14, 13, 12, 11, 10]):
        store = load(model_dir, {layer: held}, dtype)
        mine = np.where(np.isin(rows.expert_ids, held), rows.expert_ids, np.int32(-1))
        total += store.forward(layer, rows._replace(expert_ids=mine)).values
    assert np.array_equal(total, expected.values)


def test_bfloat16_rows_widen_exactly(model_dir: Path) -> None:
    store = load(model_dir, {2: list(range(16))})
    rows = request(5)
    rounded = torch.from_numpy(rows.hidden).bfloat16()
    narrow = store.forward(2, rows._replace(hidden=rounded.view(torch.uint16).numpy()))
    wide = store.forward(2, rows._replace(hidden=rounded.float().numpy()))
    assert np.array_equal(narrow.values, wide.values)


def test_the_clamp_is_the_layers_own(model_dir: Path) -> None:
    rows = request(5)
    sums = []
    for limit in (0.0, 0.02):
        directory = (
            model_dir if limit else write_random_checkpoint(model_dir / "free", seed=2, dtype=torch.bfloat16)
        )
        part = load(directory, {3: list(range(16))}).forward(3, rows)
        sums.append(np.abs(part.values).max())
    assert sums[1] < sums[0] / 10


def test_an_expert_that_is_not_held_is_refused(model_dir: Path) -> None:
    store = load(model_dir, {2: [0, 1]})
    rows = request(3)
    with pytest.raises(ExpertNotHeld, match=r"layer 2: expert \d+ is not held"):
        store.forward(2, rows)
    with pytest.raises(ExpertNotHeld, match=r"layer 4: expert \d+ is not held"):
        store.forward(4, rows)
    nothing = store.forward(4, rows._replace(expert_ids=np.full_like(rows.expert_ids, -1)))
    assert not nothing.values.any()


@pytest.mark.parametrize(
    "experts", [{0: [1]}, {9: [1]}, {2: [16]}, {2: [-1]}, {2: [3, 3]}], ids=lambda value: str(value)
)
def test_experts_the_model_does_not_have_are_refused(model_dir: Path, experts: dict[int, list[int]]) -> None:
    with pytest.raises(PlanError, match="layer"):
        load(model_dir, experts)


class StoredExperts:
    """A checkpoint of one MoE layer whose experts lie in the given forms."""

    path = Path("model.gguf")
    stored: ClassVar[dict[str, str]] = {}
    notes: ClassVar[list[str]] = []

    def __init__(self, formats: ExpertFormat) -> None:
        self.formats = formats

    def has(self, name: str) -> bool:
        return False

    def has_below(self, prefix: str) -> bool:
        return False

    def tensor(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        raise CheckpointError(f"no tensor {name}")

    def matrix(self, name: str) -> StoredMatrix:
        raise CheckpointError(f"no tensor {name}")

    def check_unchanged(self) -> None:
        pass

    def expert_format(self, layer: int, config: Step35Config) -> ExpertFormat:
        return self.formats

    def expert(
        self, layer: int, expert: int, config: Step35Config
    ) -> tuple[StoredMatrix, StoredMatrix, StoredMatrix]:
        gate, up = (self._matrix(part, expert, 32, 64) for part in ("gate", "up"))
        return gate, up, self._matrix("down", expert, 64, 32)

    def _matrix(self, part: str, expert: int, rows: int, columns: int) -> StoredMatrix:
        form: WeightFormat = getattr(self.formats, part)
        generator = torch.Generator().manual_seed(10 * expert + len(part))
        weights = torch.randn(rows, columns, generator=generator) / columns**0.5
        if form in TORCH_DTYPES:
            data = weights.to(TORCH_DTYPES[form])
        else:
            data = torch.from_numpy(quantize(weights.numpy(), GGMLQuantizationType[form.name.upper()]))
        return StoredMatrix(f"blk.{part}", form, rows, columns, data)

    def release(self) -> None:
        pass


class Converted(StoredExperts):
    """The same numbers as `StoredExperts`, stored in another form."""

    def __init__(self, formats: ExpertFormat, form: WeightFormat) -> None:
        super().__init__(formats)
        self.form = form

    def _matrix(self, part: str, expert: int, rows: int, columns: int) -> StoredMatrix:
        matrix = super()._matrix(part, expert, rows, columns)
        data = matrix.data
        if matrix.form not in TORCH_DTYPES:
            kind = GGMLQuantizationType[matrix.form.name.upper()]
            data = torch.from_numpy(dequantize(data.numpy(), kind))
        return StoredMatrix(matrix.name, self.form, rows, columns, data.to(TORCH_DTYPES[self.form]))


def sums_of(checkpoint: StoredExperts, model_dir: Path, formats: ExpertFormat) -> NDArray[np.int32]:
    config = Step35Config.load(model_dir)
    store = ExpertStore.load(checkpoint, config, {2: range(16)}, formats={2: formats})
    assert store.held_bytes <= 16 * formats.expert_bytes(64, 32)
    part = store.forward(2, request(5))
    assert not part.saturated.any()
    return part.values


@pytest.mark.parametrize("down", [FLOAT16, Q8_0, BFLOAT16])
def test_what_is_stored_in_the_wanted_form_is_kept_as_it_is(model_dir: Path, down: WeightFormat) -> None:
    formats = ExpertFormat(Q8_0, FLOAT16, down)
    stored, config = StoredExperts(formats), Step35Config.load(model_dir)
    each = [stored.expert(2, expert, config) for expert in range(16)]
    of_gate, of_up, of_down = (
        ExpertMatrices(parts[0].form, parts[0].rows, parts[0].columns, [part.data for part in parts])
        for parts in zip(*each, strict=True)
    )
    slots = torch.arange(16, dtype=torch.int32)
    limit = config.layers[2].swiglu_limit
    direct = ExpertWeights(slots, of_gate, of_up, of_down, limit=limit, top_k=config.moe_top_k)
    expected, _ = moe_partial_sum(direct, request(5))
    assert np.array_equal(sums_of(stored, model_dir, formats), expected)


@pytest.mark.parametrize("stored", [FLOAT32, BFLOAT16, FLOAT16])
@pytest.mark.parametrize("wanted", [FLOAT32, BFLOAT16])
def test_forms_of_one_number_each_become_float32_or_bfloat16(
    model_dir: Path, stored: WeightFormat, wanted: WeightFormat
) -> None:
    """But float16 keeps the bits that bfloat16 has no room for."""
    before, after = ExpertFormat.of(stored), FLOAT32 if stored == FLOAT16 else wanted
    found = sums_of(StoredExperts(before), model_dir, ExpertFormat.of(wanted))
    assert np.array_equal(found, sums_of(Converted(before, after), model_dir, ExpertFormat.of(after)))


class OneOtherwise(StoredExperts):
    """Expert 0 is stored in bfloat16, the others in float16."""

    def expert(self, layer: int, expert: int, config: Step35Config) -> Expert:
        if expert == 0:
            return Converted(self.formats, BFLOAT16).expert(layer, expert, config)
        return super().expert(layer, expert, config)


def test_float16_beside_bfloat16_is_exact_or_refused(model_dir: Path) -> None:
    """A layer's bits would hang on which experts lie together."""
    mixed = OneOtherwise(ExpertFormat.of(FLOAT16))
    assert sums_of(mixed, model_dir, ExpertFormat.of(FLOAT32)).any()
    with pytest.raises(CheckpointError, match=r"stored as bfloat16 and float16; expected one form"):
        sums_of(mixed, model_dir, ExpertFormat.of(BFLOAT16))


@pytest.mark.parametrize(
    ("stored", "wanted"), [(Q8_0, FLOAT32), (Q8_0, FLOAT16), (FLOAT32, Q8_0), (FLOAT32, FLOAT16)]
)
def test_a_form_that_cannot_be_had_is_told_with_the_tensor(
    model_dir: Path, stored: WeightFormat, wanted: WeightFormat
) -> None:
    checkpoint = StoredExperts(ExpertFormat(BFLOAT16, stored, BFLOAT16))
    formats = {2: ExpertFormat(BFLOAT16, wanted, BFLOAT16)}
    expected = f"model.gguf: tensor blk.up is stored as {stored.name}, expected {wanted.name}"
    with pytest.raises(CheckpointError, match=expected):
        ExpertStore.load(checkpoint, Step35Config.load(model_dir), {2: [0]}, formats=formats)


MEASURE = """
import os, sys
from pathlib import Path
import torch
from workers.formats.safetensors import SafetensorsCheckpoint
from workers.model_config import Step35Config
from workers.store import ExpertStore, in_one_form

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))

torch.set_num_threads(1)
for model_dir in sys.argv[1:]:
    child = os.fork()  # each from the same memory
    if not child:
        break
    os.waitpid(child, 0)
else:
    sys.exit()
config, checkpoint = Step35Config.load(model_dir), SafetensorsCheckpoint.open(model_dir)
formats = in_one_form((0, 1), torch.bfloat16)
warm_up = ExpertStore.load(checkpoint, config, {0: [0]}, formats=formats)
Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
before = status("VmRSS")
store = ExpertStore.load(checkpoint, config, {0: range(1, 15), 1: range(3, 8)}, formats=formats)
print(store.held_bytes, status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_loading_needs_no_more_memory_than_its_experts_and_one(tmp_path: Path, forks: Forks) -> None:
    """The peak of resident memory, mapped pages of the files included; experts stacked and one by one."""
    names: tuple[Literal["stacked", "numbered"], ...] = ("stacked", "numbered")
    models = [
        write_random_checkpoint(
            tmp_path / expert_names,
            seed=1,
            hidden_size=512,
            moe_intermediate_size=768,
            num_layers=2,
            num_mtp_layers=0,
            moe_layers=(0, 1),
            num_experts=20,
            expert_names=expert_names,
            dtype=torch.float32,
        )
        for expert_names in names
    ]
    process = subprocess.run(
        forks.command(["-c", MEASURE, *map(str, models)]),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = process.stdout.splitlines()
    assert len(lines) == len(models), process.stderr
    for line in lines:
        held, peak = map(int, line.split())
        expert_in_file = 3 * 512 * 768 * 4
        assert held == 19 * expert_in_file / 2
        # Allocations are rounded up to pages, which may be huge ones of 2 MiB: six tensors.
        assert held <= peak + 2**20
        assert peak <= held + expert_in_file + 7 * 2**21
