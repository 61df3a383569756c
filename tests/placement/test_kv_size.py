"""Bytes of keys and values: pages, the rings of sliding layers, scales."""

from __future__ import annotations

import pytest

from placement.kv_size import KvForm, KvShape, SequenceSize, WaitingSize, reaches, read_bytes
from placement.model_shape import STEP_3_5_FLASH

TRUNK = STEP_3_5_FLASH.attention[: STEP_3_5_FLASH.num_hidden_layers]
MTP = STEP_3_5_FLASH.attention[STEP_3_5_FLASH.num_hidden_layers :]


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
    assert drafting - trunk == 3 * 7 * 128 * 4096 + WaitingSize.of(MTP, 4096).num_bytes(9999)


def test_rows_that_wait_for_draft_layers_stop_growing_where_drafts_reach() -> None:
    waiting, page_bytes = WaitingSize.of(MTP, 4096), 128 * 16384
    assert reaches(MTP) == [3 * 511, 2 * 511, 511]
    # From a row a page and six before the newest.
    assert waiting.rows_back == 3 * 511 + 134 + 1 == 1668
    # 1,668 rows touch 15 pages, and each layer behind the first may hold a part of a page more.
    assert waiting.num_bytes(5000) == waiting.num_bytes(100_000) == (15 + 2) * page_bytes
    assert waiting.num_bytes(130) == (2 + 2) * page_bytes
    assert waiting.num_bytes(0) == WaitingSize.of((), 4096).num_bytes(5000) == 0


def test_draft_layers_that_see_all_let_a_pass_and_some_rows_wait() -> None:
    full, sliding = STEP_3_5_FLASH.attention[0], MTP[0]
    assert reaches([sliding, full, sliding]) == [None, None, 511]
    two, both = WaitingSize.of([full, full], 4096), WaitingSize.of([full, sliding], 4096)
    # 256 rows of a pass, and fewer than 64 for each layer.
    assert two.num_bytes(100_000) == (4 + 1) * two.page_bytes
    assert both.num_bytes(100_000) == (-(-645 // 128) + 1 + 1) * both.page_bytes


def test_what_a_token_reads_is_not_rounded_to_pages() -> None:
    assert read_bytes(TRUNK, KvForm.bfloat16, 10_000) == 4096 * (12 * 10_000 + 33 * 512)
    assert read_bytes(TRUNK, KvForm.int8, 100) == 45 * 100 * 2 * 8 * 132
