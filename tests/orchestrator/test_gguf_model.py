"""A model from a GGUF file, beside a checkpoint that holds the dequantised values in float32."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader
from torch import Tensor

from models.tiny.gguf_file import write_gguf
from orchestrator.cli.even_plan import even_plan
from orchestrator.cli.inputs import given_model, planned_form
from orchestrator.generate import GenerationParams
from orchestrator.in_process import dispatcher_with_threads
from orchestrator.model.attention import SequenceSlice
from orchestrator.model.step35 import Step35Model
from orchestrator.one_box import one_box_plan
from orchestrator.session import load_local, open_session
from orchestrator.tokenizer import Tokenizer
from placement.errors import CheckpointError, PlanError
from placement.plan_file import read_plan
from tests.orchestrator.command_line import Potluck, document, says
from tests.orchestrator.heads import generate_with_hidden
from tests.orchestrator.plain_experts import PlainExperts
from tests.orchestrator.random_plan import random_plan
from tests.tiny_checkpoint import write_random_checkpoint
from tests.workers.formats.gguf_files import dequantised_checkpoint, in_parts, rewritten, trunk_and_mtp
from workers.formats.checkpoint import Checkpoint
from workers.formats.open_model import kept_forms, open_model
from workers.model_config import Step35Config
from workers.store import ExpertStore

Run = tuple[list[int], Tensor, Tensor]
PROMPT = [5, 17, 300, 42, 9, 9, 120, 77, 31, 8, 250]
SHORT = ("--max-tokens", 4, "--ignore-eos", "--json")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of 64 are whole blocks of 32; those of the experts' down, of 48, stay float16."""
    return write_random_checkpoint(
        tmp_path_factory.mktemp("published") / "tiny",
        seed=9,
        moe_intermediate_size=48,
        tokenizer=True,
        swiglu_limits={3: 1.0},
        swiglu_limits_shared={0: 2.0, 3: 1.5},
    )


@pytest.fixture(scope="module")
def path(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(model_dir, path)
    return path


@pytest.fixture(scope="module")
def half_path(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("half") / "tiny.gguf"
    write_gguf(model_dir, path, "f16")
    return path


@pytest.fixture(scope="module")
def plain(path: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Step35Model:
    return in_float32(path, model_dir, tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def half_plain(half_path: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Step35Model:
    return in_float32(half_path, model_dir, tmp_path_factory.mktemp("half-plain") / "model")


@pytest.fixture(scope="module")
def at_home(path: Path) -> Run:
    return run(path, 0, 0)


def in_float32(path: Path, model_dir: Path, folder: Path) -> Step35Model:
    """The same values, dequantised by the gguf library and read from safetensors, all in float32."""
    folder = dequantised_checkpoint(path, model_dir, folder)
    config, checkpoint = open_model(folder)
    # The file has float32 divisors of the frequencies, the directory the rule that they round.
    scaled = open_model(path)[0].layers
    config = dataclasses.replace(config, layers=scaled, rms_norm_eps=open_model(path)[0].rms_norm_eps)
    return Step35Model.load(checkpoint, config, torch.float32, PlainExperts(all_experts(checkpoint, config)))


def all_experts(checkpoint: Checkpoint, config: Step35Config) -> ExpertStore:
    """Kept as a run in float32 keeps them."""
    everything = {layer: range(config.moe_num_experts) for layer in config.moe_layers}
    formats = kept_forms(checkpoint, config, "float32")
    return ExpertStore.load(checkpoint, config, everything, formats=formats)


def run(path: Path, num_workers: int, mtp: int) -> Run:
    """Ids, hidden states and logits of a plan of so many workers."""
    params = GenerationParams(max_tokens=12, mtp=mtp, chunk_size=4, ignore_eos=True)
    config, checkpoint = open_model(path)
    plan = random_plan(config.shape("tiny"), num_workers, seed=num_workers, head_holds=num_workers != 1)
    with dispatcher_with_threads(plan, checkpoint, config, torch.float32) as dispatcher:
        model = Step35Model.load(checkpoint, config, torch.float32, dispatcher)
        result, hidden = generate_with_hidden(model, PROMPT, params)
        return list(result.token_ids), hidden, model.logits(hidden)


PLACES = [(0, 3), (1, 0), (1, 3), (2, 0), (2, 3)]


@pytest.mark.parametrize(("num_workers", "mtp"), [(0, 0), *PLACES])
def test_half_precision_gives_the_bits_of_its_values_in_float32(
    half_path: Path, half_plain: Step35Model, num_workers: int, mtp: int
) -> None:
    params = GenerationParams(max_tokens=12, mtp=mtp, chunk_size=4, ignore_eos=True)
    expected, expected_hidden = generate_with_hidden(half_plain, PROMPT, params)
    ids, hidden, logits = run(half_path, num_workers, mtp)
    assert ids == list(expected.token_ids)
    assert torch.equal(hidden, expected_hidden)
    assert torch.equal(logits, half_plain.logits(expected_hidden))


@pytest.mark.parametrize(("num_workers", "mtp"), PLACES)
def test_quantised_weights_give_the_same_bits_wherever_they_are(
    path: Path, at_home: Run, num_workers: int, mtp: int
) -> None:
    for found, expected in zip(run(path, num_workers, mtp), at_home, strict=True):
        assert torch.equal(torch.as_tensor(found), torch.as_tensor(expected))


def test_quantised_weights_differ_from_their_values_by_the_rounding_of_activations(
    at_home: Run, plain: Step35Model
) -> None:
    """8 bits a block: some hundredths after five layers; a few rows choose other experts by it."""
    ids, _, logits = at_home
    tokens = torch.tensor(PROMPT + ids[:-1])
    expected = plain.logits(plain.forward(tokens, [SequenceSlice(plain.new_cache(), len(tokens))]))
    differences = (logits - expected).norm(dim=1) / expected.norm(dim=1)
    assert 1e-4 < differences.median() < 0.08


def test_workers_hold_the_bytes_of_the_file(path: Path) -> None:
    config, checkpoint = open_model(path)
    assert {form.name for form in kept_forms(checkpoint, config, "float32").values()} == {"q8_0/q8_0/float16"}
    experts = all_experts(checkpoint, config)
    # 4 layers of 16 experts: gate and up of 48 rows of 2 blocks of 34 bytes, down of 64 rows of 48 float16.
    assert experts.held_bytes == 4 * 16 * (2 * 48 * 2 * 34 + 64 * 48 * 2)


@pytest.mark.parametrize("mtp", [0, 2])
def test_generate_takes_a_file_and_the_tokenizer_beside_it(
    potluck: Potluck, path: Path, model_dir: Path, tmp_path: Path, mtp: int
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_dir / name, tmp_path / name)
    model = tmp_path / "tiny.gguf"
    model.symlink_to(path)
    made = document(potluck("generate", "--model", model, "--prompt", "hello", "--mtp", mtp, *SHORT))
    prompt = Tokenizer.load(model_dir).encode_prompt("hello")
    params = GenerationParams(max_tokens=4, mtp=mtp, ignore_eos=True)
    expected, _ = generate_with_hidden(load_local(open_model(path), torch.bfloat16), prompt, params)
    assert made["token_ids"] == list(expected.token_ids)
    assert made["text"]


def test_generate_takes_a_model_in_parts_with_mtp_layers_beside_it(
    potluck: Potluck, path: Path, tmp_path: Path
) -> None:
    trunk, mtp = trunk_and_mtp(path, tmp_path, num_trunk=6)
    parts = in_parts(trunk, tmp_path / "tiny", 2)
    asked = ("--token-ids", "5,17,300", *SHORT)
    expected = document(potluck("generate", "--model", path, "--mtp", 3, *asked))
    for part in parts:
        code, out, err = potluck("generate", "--model", part, "--mtp", 3, *asked)
        assert code == 0
        assert f"MTP layers are those of {mtp.name}" in err
        assert json.loads(out)["token_ids"] == expected["token_ids"]
        assert json.loads(out)["accepted_drafts_per_step"] == expected["accepted_drafts_per_step"]
    parts[1].unlink()
    code, _, err = potluck("generate", "--model", parts[0], *asked)
    assert code == 2
    assert says(err, "tiny-00002-of-00002.gguf: No such file … needs all")


def test_drafts_say_why_a_file_of_mtp_layers_is_not_taken(
    potluck: Potluck, path: Path, tmp_path: Path
) -> None:
    trunk, mtp = trunk_and_mtp(path, tmp_path, num_trunk=6)
    mtp.write_bytes(mtp.read_bytes()[:100])
    code, _, err = potluck("generate", "--model", trunk, "--token-ids", "5", "--mtp", 1)
    assert code == 2
    assert "announces 0 MTP layers" in err
    assert "MTP layers are not taken: " in err
    assert "mtp-model.gguf: cut off at byte 100" in err


def test_a_file_that_changes_under_a_session_ends_its_next_request(path: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    shutil.copyfile(path, model)
    opened = open_model(model)
    params = GenerationParams(max_tokens=2, ignore_eos=True)
    with open_session(opened, one_box_plan(opened, "float32")) as session:
        session.generate(PROMPT, params)
        shutil.copyfile(path, tmp_path / "other.gguf")
        (tmp_path / "other.gguf").replace(model)
        with pytest.raises(CheckpointError, match=r"m\.gguf: another file took its place") as caught:
            session.generate(PROMPT, params)
    assert caught.value.exit_code == 1


def test_text_without_a_tokenizer_is_one_line(potluck: Potluck, path: Path, tmp_path: Path) -> None:
    bare = rewritten(path, tmp_path / "bare.gguf", tokenizer__ggml__model="no_vocab")
    code, out, err = potluck("generate", "--model", bare, "--prompt", "hello", *SHORT)
    assert (code, out) == (2, "")
    assert says(err, "bare.gguf has no tokenizer … --token-ids")


def test_a_plan_in_another_form_is_refused(path: Path) -> None:
    model = open_model(path)
    plan = even_plan(model.shape, 0, "float32")
    with (
        pytest.raises(PlanError, match=r"in 'float32', but .*tiny\.gguf has them in q8_0/q8_0/float16"),
        open_session(model, plan),
    ):
        pass


def test_a_tensor_that_the_architecture_does_not_have_is_refused(path: Path, tmp_path: Path) -> None:
    extra = rewritten(path, tmp_path / "extra.gguf", {"blk.1.attn_sinks.weight": np.ones(4, np.float32)})
    with pytest.raises(CheckpointError, match=r"tensor 'blk\.1\.attn_sinks\.weight' is none that"):
        open_model(extra)


def test_a_tensor_of_another_shape_is_refused_by_its_own_name(path: Path) -> None:
    model = open_model(path)
    other = dataclasses.replace(model.contents, config=dataclasses.replace(model.config, vocab_size=321))
    with pytest.raises(CheckpointError, match=r"tiny\.gguf: tensor token_embd\.weight has shape \[320, 64\]"):
        other.check()


def test_drafts_of_a_file_of_the_trunk_alone_are_refused(potluck: Potluck, tmp_path: Path) -> None:
    directory = write_random_checkpoint(tmp_path / "trunk", seed=1, num_mtp_layers=0)
    write_gguf(directory, tmp_path / "trunk.gguf")
    code, _, err = potluck("generate", "--model", tmp_path / "trunk.gguf", "--token-ids", "5", "--mtp", 1)
    assert code == 2
    assert "1 drafts a step asked for, but trunk.gguf announces 0 MTP layers" in err


def test_a_plan_for_a_file_keeps_its_forms_and_runs(potluck: Potluck, path: Path, tmp_path: Path) -> None:
    """On a box of two devices, in the head's own process."""
    device = "kind: ram, memory_bytes: 2MB, bandwidth_gbytes_per_s: 10, ffn_gflops: 50"
    cluster, plan = tmp_path / "one.yaml", tmp_path / "plan.json"
    cluster.write_text(
        f"head: study\nnodes:\n  - name: study\n    devices:\n      - {{name: a, {device}}}\n"
        f"      - {{name: b, {device}}}\nlinks: []\n"
    )
    planning = ("plan", cluster, "--model", path, "--policy", "uniform", "--context", 64, "--out", plan)
    code, _, err = potluck(*planning, "--json")
    assert code == 0, err
    made = read_plan(plan)
    assert {layer.form for layer in made.layers} == {"q8_0/q8_0/float16"}
    assert [len(worker.tiers) for worker in made.workers] == [2]
    asked = ("generate", "--model", path, "--token-ids", "5,17,300", *SHORT)
    planned = document(potluck(*asked, "--plan", plan))
    assert planned["token_ids"] == document(potluck(*asked, "--dtype", "bfloat16"))["token_ids"]
    longer = ("--token-ids", "5", "--ignore-eos", "--max-tokens", 80)
    code, _, err = potluck("generate", "--model", path, "--plan", plan, *longer)
    assert code == 0
    assert "was made for texts of 64 positions, and this one may take 81: there is memory for it" in err


def test_what_if_takes_a_files_own_sizes(path: Path) -> None:
    given = given_model(str(path))
    kept = planned_form(given, None, None)
    assert (kept.form, kept.expert_form, kept.note) == ("q8_0", "q8_0/q8_0/float16", None)
    assert {layer.expert_bytes for layer in kept.layers} == {2 * 48 * 2 * 34 + 64 * 48 * 2}
    sizes = [int(t.n_bytes) for t in GGUFReader(path).tensors if "_exps" not in t.name]
    weights = [int(t.n_elements) for t in GGUFReader(path).tensors if "_exps" not in t.name]
    assert kept.head is not None
    assert kept.head.bits == 8 * sum(sizes) / sum(weights)
    assert kept.head.num_bytes.trunk + kept.head.num_bytes.mtp == sum(sizes)
    other = planned_form(given, "q8", None)
    assert ({layer.form for layer in other.layers}, other.head) == ({"q8"}, None)
    assert other.note is not None
    assert "has experts in q8_0/q8_0/float16: a plan for --quant q8 does not run with it" in other.note
