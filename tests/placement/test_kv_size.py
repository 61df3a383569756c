"""Bytes of keys and values: pages, the rings of sliding layers, scales."""

from __future__ import annotations

import pytest

from placement.kv_size import KvForm, KvShape, SequenceSize, read_bytes
from placement.model_shape import STEP_3_5_FLASH

TRUNK = STEP_3_5_FLASH.attention[: STEP_3_5_FLASH.num_hidden_layers]


@pytest.mark.parametrize(("form", "bytes_of_a_head"), [("float32", 512), ("bfloat16", 256), ("int8", 132)])
def test_a_position_of_the_published_model(form: str, bytes_of_a_head: int) -> None:
    kv = KvShape.of(TRUNK[0], KvForm(form))
    assert kv.position_bytes == 2 * 8 * bytes_of_a_head
    assert kv.page_bytes == 128 * kv.position_bytes


def test_the_kernels_pad_rows_to_panels() -> None:
    assert KvShape(KvForm.int8, 2, 24).position_bytes == 2 * 2 * (32 + 4)


def test_full_layers_grow_by_pages_and_sliding_ones_stop() -> None:
    size = SequenceSize.of(STEP_3_5_FLASH, KvForm.bfloat16, 0)
    page_bytes = 128 * 4096
    assert size.num_bytes(0) == 0
    assert size.num_bytes(1) == 45 * page_bytes
    # A pass of 256 rows that sees 512 keys, and may have been rolled back by 3, holds 7 pages.
    assert size.num_bytes(4096) == (12 * 32 + 33 * 7) * page_bytes
    assert size.num_bytes(262_144) - size.num_bytes(4096) == 12 * (2048 - 32) * page_bytes
    assert size.num_bytes(4097) - size.num_bytes(4096) == 12 * page_bytes


def test_draft_layers_keep_keys_too() -> None:
    trunk, drafting = (SequenceSize.of(STEP_3_5_FLASH, KvForm.bfloat16, n).num_bytes(9999) for n in (0, 3))
    assert drafting - trunk == 3 * 7 * 128 * 4096


def test_what_a_token_reads_is_not_rounded_to_pages() -> None:
    assert read_bytes(TRUNK, KvForm.bfloat16, 10_000) == 4096 * (12 * 10_000 + 33 * 512)
    assert read_bytes(TRUNK, KvForm.int8, 100) == 45 * 100 * 2 * 8 * 132
