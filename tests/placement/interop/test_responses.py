"""Experts in responses of SGLang and vLLM, encoded as each of them does it."""

from __future__ import annotations

import base64
import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from placement.errors import RoutingFileError
from placement.interop.responses import read_responses
from tests.placement.shapes import small_shape

SHAPE = small_shape()
Ids = np.ndarray[Any, np.dtype[np.int64]]


def random_trace(num_tokens: int, seed: int = 0) -> Ids:
    scores = np.random.default_rng(seed).random((num_tokens, SHAPE.num_moe_layers, SHAPE.num_experts))
    return np.argsort(scores, axis=2)[:, :, : SHAPE.top_k]


def all_layers(trace: Ids) -> Ids:
    """With the dense layer in front, whose part of the engines' buffers stays zero."""
    return np.concatenate([np.zeros((len(trace), 1, SHAPE.top_k), dtype=trace.dtype), trace], axis=1)


def sglang_text(trace: Ids) -> str:
    return base64.b64encode(all_layers(trace).astype(np.int32).tobytes()).decode()


def vllm_text(trace: Ids, dtype: str = "uint8") -> str:
    buffer = io.BytesIO()
    np.save(buffer, all_layers(trace).astype(dtype))
    return base64.b64encode(buffer.getvalue()).decode()


def read(tmp_path: Path, content: object) -> Ids:
    path = tmp_path / "responses.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    stats = read_responses(path, SHAPE)
    assert stats.trace is not None
    return stats.trace.astype(np.int64)


def test_sglang_generate(tmp_path: Path) -> None:
    response = {
        "text": "...",
        "meta_info": {"prompt_tokens": 5, "routed_experts": sglang_text(random_trace(9))},
    }
    assert np.array_equal(read(tmp_path, response), random_trace(9))


def test_sglang_openai(tmp_path: Path) -> None:
    response = {"choices": [{"index": 0}], "sglext": {"routed_experts": sglang_text(random_trace(9))}}
    assert np.array_equal(read(tmp_path, response), random_trace(9))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_vllm(tmp_path: Path, dtype: str) -> None:
    response = {"choices": [{"index": 0, "routed_experts": vllm_text(random_trace(9), dtype)}]}
    assert np.array_equal(read(tmp_path, response), random_trace(9))


def test_vllm_021_has_lists_and_the_prompt_apart(tmp_path: Path) -> None:
    prompt, generated = random_trace(4, seed=1), random_trace(3, seed=2)
    response = {
        "choices": [{"index": 0, "routed_experts": generated.tolist()}],
        "prompt_routed_experts": prompt.tolist(),
    }
    assert np.array_equal(read(tmp_path, response), np.concatenate([prompt, generated]))


def test_a_prompt_that_choices_share_counts_once(tmp_path: Path) -> None:
    prompt = random_trace(4, seed=1)
    answers = [random_trace(3, seed=seed) for seed in (2, 3)]
    response = {
        "choices": [
            {"index": i, "routed_experts": vllm_text(np.concatenate([prompt, answer]))}
            for i, answer in enumerate(answers)
        ],
        "usage": {"prompt_tokens": 4},
    }
    assert np.array_equal(read(tmp_path, response), np.concatenate([prompt, *answers]))


def test_answers_to_several_prompts_count_in_full(tmp_path: Path) -> None:
    answers = [random_trace(n, seed=n) for n in (6, 9)]
    response = {
        "choices": [{"index": i, "routed_experts": vllm_text(answer)} for i, answer in enumerate(answers)],
        "usage": {"prompt_tokens": 8},
    }
    assert np.array_equal(read(tmp_path, response), np.concatenate(answers))


def test_many_responses_are_read_from_a_list_or_from_lines(tmp_path: Path) -> None:
    traces = [random_trace(n, seed=n) for n in (2, 5)]
    responses = [{"meta_info": {"routed_experts": sglang_text(trace)}} for trace in traces]
    assert np.array_equal(read(tmp_path, responses), np.concatenate(traces))
    lines = "\n".join(json.dumps(response) for response in responses)
    assert np.array_equal(read(tmp_path, lines + "\n\n"), np.concatenate(traces))


def test_responses_without_experts_are_passed_over(tmp_path: Path) -> None:
    responses = [
        {"choices": [{"routed_experts": None}], "prompt_routed_experts": None},
        {"error": "busy"},
        {"meta_info": {"routed_experts": sglang_text(random_trace(3))}},
    ]
    assert len(read(tmp_path, responses)) == 3
    with pytest.raises(RoutingFileError, match="--enable-return-routed-experts"):
        read(tmp_path, responses[:2])


def test_tokens_that_were_not_recorded_are_left_out(tmp_path: Path) -> None:
    trace = random_trace(6)
    trace[1, 2] = -1
    trace[4] = 0
    response = {"choices": [{"routed_experts": trace.tolist()}]}
    assert np.array_equal(read(tmp_path, response), random_trace(6)[[0, 2, 3, 5]])
    trace[:] = 0
    with pytest.raises(RoutingFileError, match="none of 6 tokens has its experts recorded"):
        read(tmp_path, {"choices": [{"routed_experts": trace.tolist()}]})


def test_flat_ids_of_moe_layers_alone_are_told_from_all_layers(tmp_path: Path) -> None:
    trace = random_trace(4)
    flat = base64.b64encode(trace.astype(np.int32).tobytes()).decode()
    assert np.array_equal(read(tmp_path, {"meta_info": {"routed_experts": flat}}), trace)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("not base64!", "not base64"),
        (base64.b64encode(b"abc").decode(), "not base64 of int32"),
        (
            base64.b64encode(bytes(4 * 7)).decode(),
            "7 numbers are no whole number of tokens of 4 layers x top 2",
        ),
        (base64.b64encode(b"\x93NUMPY\x01\x00").decode(), "not base64 of int32 or of a .npy"),
        (12, "expected base64 text or lists, found int"),
        ([[1, 2], [3]], "rows of one length"),
        ([[[0.5, 1.5]] * 3], "expected whole numbers, found float64"),
        ([[[1, 2, 3]] * 3], r"expected \[tokens, layers, 2\] experts"),
        ([[[1, 2]] * 9], r"expected 3 \(MoE\) or 4 \(all\) layers"),
        ([[[1, 10]] * 3], "expected experts 0 to 9"),
        ([[[1, -2]] * 3], "expected experts 0 to 9"),
    ],
)
def test_other_values_are_refused(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(RoutingFileError, match=message):
        read(tmp_path, {"choices": [{"routed_experts": value}]})


def test_an_array_of_objects_is_not_unpickled(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    text = base64.b64encode(buffer.getvalue()).decode()
    with pytest.raises(RoutingFileError, match="not base64 of int32"):
        read(tmp_path, {"choices": [{"routed_experts": text}]})


BIG = small_shape(num_experts=288, name="big")


def big_trace(num_tokens: int) -> Ids:
    scores = np.random.default_rng(0).random((num_tokens, BIG.num_moe_layers, BIG.num_experts))
    return np.argsort(scores, axis=2)[:, :, : BIG.top_k]


def read_big(tmp_path: Path, ids: object) -> Ids:
    path = tmp_path / "responses.json"
    path.write_text(json.dumps({"choices": [{"routed_experts": ids}]}))
    stats = read_responses(path, BIG)
    assert stats.trace is not None
    return stats.trace.astype(np.int64)


def test_experts_beyond_255_are_refused_in_bytes_and_read_in_wider_numbers(tmp_path: Path) -> None:
    trace = big_trace(20)
    assert np.array_equal(read_big(tmp_path, vllm_text(trace, "uint16")), trace)
    for dtype in ("uint8", "int8"):
        with pytest.raises(RoutingFileError, match=f"as {dtype}, which cannot name 288 experts of big"):
            read_big(tmp_path, vllm_text(np.minimum(trace, 127), dtype))


@pytest.mark.parametrize("width", ["uint16", "lists"])
def test_a_choice_that_always_reads_255_is_refused(tmp_path: Path, width: str) -> None:
    trace = big_trace(20) % 255
    trace[:, :, 1] = 255
    ids = vllm_text(trace, width) if width != "lists" else trace.tolist()
    with pytest.raises(RoutingFileError, match="choice 2 of 2 reads 255 in every token and layer"):
        read_big(tmp_path, ids)
    trace[0, 0] = (254, 256)
    ids = vllm_text(trace, width) if width != "lists" else trace.tolist()
    read_big(tmp_path, ids)


def test_texts_among_numbers_take_no_memory(tmp_path: Path) -> None:
    rows = [[["0", "1"]] * 3] * 1000 + [[["x" * 1_000_000, "1"]] * 3]
    tracemalloc.start()
    with pytest.raises(RoutingFileError, match="expected rows of one length with numbers"):
        read(tmp_path, {"choices": [{"routed_experts": rows}]})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000
