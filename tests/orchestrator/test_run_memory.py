"""What a run takes is known before it starts, and what does not fit is refused or kept on the disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from benchmarks.random_gguf import SMALL, FileTypes, write_random_gguf
from orchestrator.cli.even_plan import even_plan
from orchestrator.generate import GenerationParams
from orchestrator.model.kv_pool import KvPool
from orchestrator.one_box import DISK, OneBox, plan_here
from orchestrator.run_memory import Demand, head_needs
from orchestrator.session import open_session
from placement.errors import PlanDoesNotFit
from placement.given.head_memory import head_memory_bytes
from placement.kv_size import KvForm, KvShape
from placement.plan_file import read_plan
from placement.units import size
from placement.workload import Workload
from tests.orchestrator.command_line import Potluck
from tests.tiny_checkpoint import write_random_checkpoint
from transport.messages import WireLimits
from workers.formats.contents import model_contents
from workers.formats.open_model import kept_forms, open_model
from workers.memory.free import LEAST_MARGIN_BYTES, FreeMemory
from workers.process import WorkerProcess
from workers.spec import WorkerSpec
from workers.tiers import TierSpec

IDS = ("--token-ids", "5,6,7", "--max-tokens", "4")


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "random.gguf"
    return write_random_gguf(path, SMALL, FileTypes((("q4_k", "q4_k", "q5_k"),), "q4_k", "q6_k", "q4_k"))


@pytest.fixture(scope="module")
def bfloat16_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "tiny"
    return write_random_checkpoint(directory, seed=2, dtype=torch.bfloat16)


def free_of(usable_bytes: int) -> FreeMemory:
    return FreeMemory(usable_bytes + LEAST_MARGIN_BYTES, "this machine")


def set_free(monkeypatch: pytest.MonkeyPatch, usable_bytes: int) -> None:
    available = free_of(usable_bytes).num_bytes
    memory = psutil.virtual_memory()._replace(available=available)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def box(path: Path, usable_bytes: int, dtype: str = "bfloat16") -> OneBox:
    return plan_here(open_model(path), dtype, Demand(100), free_of(usable_bytes))


def needed(path: Path, dtype: str = "bfloat16", num_drafts: int = 0) -> tuple[int, int]:
    """Bytes of the head and of the experts."""
    contents = model_contents(path)
    shape = contents.config.shape("m")
    head = head_needs(contents, shape, dtype, Demand(100, num_drafts=num_drafts))
    experts = sum(t.num_bytes for t in contents.tensors if t.part == "routed experts")
    return sum(need.num_bytes for need in head), experts


@pytest.mark.parametrize("kind", ["gguf", "bfloat16_dir"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_fits_to_the_byte_is_in_memory_and_else_on_disk(
    kind: str, dtype: str, request: pytest.FixtureRequest
) -> None:
    """Bfloat16 experts take no more in a float32 run."""
    path = request.getfixturevalue(kind)
    head, experts = needed(path, dtype)
    fits = box(path, head + experts, dtype)
    assert [tier.name for tier in fits.plan.tiers] == ["head"]
    assert "fit: this machine leaves" in fits.reason
    tight = box(path, head + experts - 1, dtype)
    assert [(tier.name, tier.kind) for tier in tight.plan.tiers] == [("head", "ram"), (DISK, "disk")]
    assert tight.plan.tiers[0].budget_bytes == experts - 1
    assert tight.plan.experts_per_tier().tolist() == [0, tight.plan.holder_table.table[:, :, 0].size]
    assert "on disk, and a cache in memory holds" in tight.reason


def test_a_head_that_does_not_fit_is_refused_with_what_is_missing(gguf: Path) -> None:
    head, _ = needed(gguf)
    with pytest.raises(PlanDoesNotFit) as caught:
        box(gguf, head - 1000)
    message = str(caught.value)
    assert message.startswith("random: ")
    assert "of memory are missing" in message
    assert "for the head's weights" in message
    assert "for a KV cache of 100 positions" in message
    assert "take a smaller context or a file in fewer bits" in message


def test_a_longer_context_and_drafts_take_more(gguf: Path) -> None:
    contents = model_contents(gguf)
    shape = contents.config.shape("m")

    def total(demand: Demand, dtype: str = "bfloat16") -> int:
        return sum(n.num_bytes for n in head_needs(contents, shape, dtype, demand))

    base = total(Demand(100))
    assert total(Demand(1100)) > base
    assert total(Demand(100, num_drafts=3)) > base
    assert total(Demand(100), "float32") > base


@pytest.mark.parametrize("kv", KvForm)
@pytest.mark.parametrize(
    ("prompt", "drafts"),
    [(200, 0), (200, 2), pytest.param(1500, 0, marks=pytest.mark.long), (1500, 2)],
)
def test_the_kv_cache_that_is_counted_is_what_a_run_takes(
    gguf: Path, kv: KvForm, drafts: int, prompt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte what inspect, plans and the check count, where nearly all positions are the prompt's."""
    most = 0
    take = KvPool.take

    def watched(pool: KvPool, kv_shape: KvShape) -> Tensor | None:
        nonlocal most
        page = take(pool, kv_shape)
        most = max(most, pool.used_bytes)
        return page

    monkeypatch.setattr(KvPool, "take", watched)
    contents = model_contents(gguf)
    shape = contents.config.shape("random")
    # Drafts are made where more than one token may follow.
    demand = Demand(prompt + 4, num_drafts=drafts, kv_form=kv)
    plan = box(gguf, 10**10).plan
    model = open_model(gguf)
    with open_session(model, plan, num_drafts=drafts, positions=prompt + 4, kv_form=kv) as session:
        session.generate([5] * prompt, GenerationParams(4, mtp=drafts, ignore_eos=True))
    (counted,) = [need for need in head_needs(contents, shape, "bfloat16", demand) if "KV" in need.what]
    # MTP layers run when the trunk has let go of what its sliding layers need no more.
    assert most == counted.num_bytes if not drafts else 0.6 * counted.num_bytes < most < counted.num_bytes
    workload = Workload(context=prompt + 4, kv_form=kv, drafts=drafts)
    without = head_memory_bytes(shape, replace(workload, context=0))
    assert head_memory_bytes(shape, workload) - without == counted.num_bytes


@pytest.mark.parametrize("drafts", [0, 2])
@pytest.mark.parametrize("kv", [None, "int8"])
def test_a_plan_for_a_file_charges_the_head_what_its_run_counts(
    potluck: Potluck, gguf: Path, tmp_path: Path, drafts: int, kv: str | None
) -> None:
    cluster, path = tmp_path / "cluster.yaml", tmp_path / "plan.json"
    device = "{name: ram, kind: ram, memory_bytes: 1GB, bandwidth_gbytes_per_s: 10, ffn_gflops: 50}"
    cluster.write_text(f"head: study\nnodes:\n  - name: study\n    devices: [{device}]\nlinks: []\n")
    said = ["--accept", ",".join(["0.5"] * drafts)] if drafts else []
    said += ["--kv", kv] if kv else []
    planning = ("plan", cluster, "--model", gguf, "--policy", "uniform", "--context", 300, *said)
    code, _, err = potluck(*planning, "--out", path, "--json")
    assert (code, err) == (0, "")
    plan, contents = read_plan(path), model_contents(gguf)
    shape, workload = contents.config.shape("random"), plan.workload
    assert workload is not None
    demand = Demand(300, num_drafts=drafts, kv_form=KvForm(kv) if kv else None)
    counted = sum(need.num_bytes for need in head_needs(contents, shape, plan.dtype, demand))
    assert head_memory_bytes(shape, workload) == counted
    assert plan.tiers[0].budget_bytes == 10**9 - counted
    assert workload.head_forms is not None
    assert [workload.head_form(part) for part in ("attention", "router", "ffn", "output")] == [
        "q4_k", "float32", "q4_k", "q6_k"
    ]  # fmt: skip
    assert workload.head_bits("output") == 6.5625
    code, _, err = potluck("generate", "--model", gguf, *IDS, "--plan", path, "--json")
    assert (code, err) == (0, "")


def test_generate_says_where_things_went_and_writes_the_same_either_way(
    potluck: Potluck, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head, experts = needed(gguf, num_drafts=1)
    command = ("generate", "--model", gguf, *IDS, "--mtp", "1")
    code, out, err = potluck(*command)
    assert code == 0
    assert "random is mapped into this process: the head" in err
    set_free(monkeypatch, head + 2 * experts // 3)
    code, from_disk, err = potluck(*command)
    assert code == 0
    assert "random does not fit: this machine leaves" in err
    assert from_disk == out
    set_free(monkeypatch, 1_000_000)
    code, out, err = potluck(*command)
    assert (code, out) == (2, "")
    assert "of memory are missing" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(("asked", "kept"), [(None, KvForm.int8), (KvForm.bfloat16, KvForm.bfloat16)])
def test_keys_and_values_are_kept_as_the_plan_assumes_unless_asked(
    gguf: Path, asked: KvForm | None, kept: KvForm
) -> None:
    plan = replace(box(gguf, 10**10).plan, workload=Workload(kv_form=KvForm.int8))
    with open_session(open_model(gguf), plan, positions=9, kv_form=asked) as session:
        assert session.head.kv_form is kept


def test_equal_workers_assume_nothing_of_keys_and_values(bfloat16_dir: Path) -> None:
    model = open_model(bfloat16_dir)
    for dtype in ("float32", "bfloat16"):
        with open_session(model, even_plan(model.shape, 0, dtype), positions=9) as session:
            assert session.head.kv_form == dtype


def test_the_smallest_cache_of_a_small_model_is_all_its_experts(tmp_path: Path) -> None:
    types = FileTypes((("q4_k", "q4_k", "q5_k"),), "q4_k", "q6_k", "q4_k")
    path = write_random_gguf(tmp_path / "m.gguf", replace(SMALL, moe_layers=1, experts=8), types)
    head, experts = needed(path)
    with pytest.raises(PlanDoesNotFit, match=f"1 B of memory .* {size(experts)} for the smallest cache"):
        box(path, head + experts - 1)


def test_a_plan_that_takes_more_than_is_free_is_refused_before_anything_starts(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(gguf)
    config, checkpoint = model
    plan = box(gguf, 10**9).plan
    head, experts = needed(gguf)
    set_free(monkeypatch, head + experts // 2)
    with pytest.raises(PlanDoesNotFit) as caught, open_session(model, plan, positions=100):
        pass
    assert f"for {config.moe_num_experts * len(config.moe_layers)} experts on 'head'" in str(caught.value)
    assert "on a disk" in str(caught.value)
    forms = kept_forms(checkpoint, config, "bfloat16")
    workers = even_plan(config.shape("random"), 2, "bfloat16", forms=forms)
    with pytest.raises(PlanDoesNotFit, match="for 2 worker processes"), open_session(model, workers):
        pass


def test_a_worker_refuses_what_its_own_machine_cannot_hold(
    bfloat16_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    anywhere = "tcp://127.0.0.1:*"
    spec = WorkerSpec(
        name="den",
        model="tiny",
        limits=WireLimits.for_shape(open_model(bfloat16_dir)[0].shape("tiny")),
        tiers=(TierSpec("den-ram", "ram", "cpu", {2: tuple(range(16))}),),
        forms={},
        dtype="bfloat16",
        model_dir=str(bfloat16_dir),
        endpoint=anywhere,
        pulse_endpoint=anywhere,
    )
    set_free(monkeypatch, 100_000)
    worker = WorkerProcess(spec)
    worker.bind()
    expected = r"^worker den: .* missing.*for 16 experts on 'den-ram'.*disk"
    with pytest.raises(PlanDoesNotFit, match=expected):
        worker.load()
    worker.stop()


def test_a_runs_figures_count_the_bytes_that_are_held(
    potluck: Potluck, gguf: Path, bfloat16_dir: Path
) -> None:
    """A run in float32 widens bfloat16 as it reads it."""
    for path in (gguf, bfloat16_dir):
        _, out, _ = potluck("generate", "--model", path, *IDS, "--json")
        _, experts = needed(path)
        assert [worker["bytes"] for worker in json.loads(out)["workers"]] == [experts]


def test_json_output_is_alone_on_standard_output(potluck: Potluck, gguf: Path) -> None:
    code, out, err = potluck("generate", "--model", gguf, *IDS, "--json")
    assert (code, err) == (0, "")
    assert len(json.loads(out)["token_ids"]) == 4
