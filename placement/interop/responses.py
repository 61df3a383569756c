"""Experts of every token as SGLang and vLLM return them with a completion.

SGLang (`--enable-return-routed-experts`, request field `return_routed_experts`; sgl-project/sglang,
python/sglang/srt/state_capturer/routed_experts.py): base64 of int32 [tokens, layers, top_k] in
`meta_info.routed_experts` of `/generate`, `sglext.routed_experts` of the OpenAI endpoints.

vLLM (`--enable-return-routed-experts`; vllm-project/vllm, vllm/entrypoints/openai/completion/protocol.py):
base64 of a `.npy` [tokens, layers, top_k], prompt first, in `choices[i].routed_experts`; in 0.21 (its
docs/training/routed_experts_replay.md) nested lists, the prompt apart in `prompt_routed_experts`.

Both leave out the last token, which no forward pass saw. The layer axis covers all layers of the trunk, dense
ones zero, or the MoE layers alone.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from placement.errors import RoutingFileError
from placement.files.numpy_file import NPY_MAGIC, BrokenArray, read_array
from placement.given.stats import RoutingStats
from placement.interop.json_records import number_array, read_json_records
from placement.interop.loads import check_ids, moe_rows, stats_from_ids
from placement.model_shape import ModelShape

_FIELD = "routed_experts"
_PROMPT_FIELD = "prompt_routed_experts"


def read_responses(path: str | os.PathLike[str], shape: ModelShape) -> RoutingStats:
    """Read saved responses: one JSON object, a list of them, or one a line. Tokens keep their order.

    Raises:
        RoutingFileError: unreadable, no response with experts, or another model.
    """
    parts = [
        ids for where, response in read_json_records(path) for ids in _ids_of_response(response, shape, where)
    ]
    if not parts:
        raise RoutingFileError(
            f"{path}: expected {_FIELD} in a response, found none; start the server with "
            "--enable-return-routed-experts (SGLang: and ask for return_routed_experts in each request)"
        )
    return stats_from_ids(shape, np.concatenate(parts), f"responses, {Path(path).name}", str(path))


def _ids_of_response(response: Mapping[str, Any], shape: ModelShape, where: str) -> list[NDArray[np.int32]]:
    """Experts of a response's tokens in order, each [tokens, num_moe_layers, top_k]; shared prompts once."""
    parts = [
        _moe_ids(value, shape, f"{where}: {name}")
        for name, value in (
            ("meta_info.routed_experts", _member(response.get("meta_info"), _FIELD)),
            ("sglext.routed_experts", _member(response.get("sglext"), _FIELD)),
            (_PROMPT_FIELD, response.get(_PROMPT_FIELD)),
        )
        if value is not None
    ]
    choices = response.get("choices")
    answers = [
        _moe_ids(value, shape, f"{where}: choices[{index}].{_FIELD}")
        for index, value in enumerate(_member(choice, _FIELD) for choice in _list(choices))
        if value is not None
    ]
    prompt_tokens = None if parts else _member(response.get("usage"), "prompt_tokens")
    if answers and isinstance(prompt_tokens, int) and 0 < prompt_tokens <= len(answers[0]):
        # Answers to one prompt repeat its tokens; answers to a list of prompts do not.
        prompt = answers[0][:prompt_tokens]
        repeated = [np.array_equal(answer[:prompt_tokens], prompt) for answer in answers]
        answers = [
            answer[prompt_tokens:] if index > 0 and again else answer
            for index, (answer, again) in enumerate(zip(answers, repeated, strict=True))
        ]
    return parts + answers


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, Mapping) else None


def _moe_ids(value: Any, shape: ModelShape, where: str) -> NDArray[np.int32]:
    """int32 [tokens, num_moe_layers, top_k]."""
    ids = _decode(value, where)
    if ids.dtype.kind not in "iu":
        raise RoutingFileError(f"{where}: expected whole numbers, found {ids.dtype}")
    _check_wide_enough(ids, shape, where)
    if ids.ndim == 1:
        ids = _unflatten(ids, shape, where)
    if ids.ndim != 3 or ids.shape[2] != shape.top_k:
        raise RoutingFileError(
            f"{where}: expected [tokens, layers, {shape.top_k}] experts, found {list(ids.shape)}"
        )
    return check_ids(moe_rows(ids, 1, shape, where), shape, where)


def _check_wide_enough(ids: NDArray[Any], shape: ModelShape, where: str) -> None:
    """Bytes cannot name more than 256 experts: what they hold has been cut off, or marks no expert."""
    if ids.dtype.itemsize > 1 or shape.num_experts <= 2**8:
        return
    raise RoutingFileError(
        f"{where}: experts as {ids.dtype}, which cannot name {shape.num_experts} experts of {shape.name}"
        ": the numbers were cut off when they were stored; record them as int16 or wider"
    )


def _decode(value: Any, where: str) -> NDArray[Any]:
    if isinstance(value, list):
        return number_array(value, where)
    if not isinstance(value, str):
        raise RoutingFileError(f"{where}: expected base64 text or lists, found {type(value).__name__}")
    try:
        data = base64.b64decode(value, validate=True)
        if data.startswith(NPY_MAGIC):
            return read_array(io.BytesIO(data), len(data))
        return np.frombuffer(data, dtype="<i4")
    except (binascii.Error, BrokenArray, ValueError) as error:
        raise RoutingFileError(f"{where}: not base64 of int32 or of a .npy: {error}") from error


def _unflatten(ids: NDArray[Any], shape: ModelShape, where: str) -> NDArray[Any]:
    """[tokens, layers, top_k] of flat ids. All layers of the trunk, as SGLang sends them, if that can be."""
    dense = sorted(set(range(shape.num_hidden_layers)) - set(shape.moe_layers))
    per_token = shape.num_hidden_layers * shape.top_k
    if len(ids) % per_token == 0:
        every = ids.reshape(-1, shape.num_hidden_layers, shape.top_k)
        if (every[:, dense] <= 0).all():
            return every
    if len(ids) % (shape.num_moe_layers * shape.top_k) == 0:
        return ids.reshape(-1, shape.num_moe_layers, shape.top_k)
    raise RoutingFileError(
        f"{where}: {len(ids)} numbers are no whole number of tokens of {shape.num_hidden_layers} layers x "
        f"top {shape.top_k}: is this {shape.name}?"
    )
