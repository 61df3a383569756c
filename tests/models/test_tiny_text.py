"""Documents, windows, tokenizer and chat template."""

from __future__ import annotations

import json
import struct

import jinja2
import numpy as np
import pytest

from models.tiny.corpus import Document, _r_strings, excerpts, html_text
from models.tiny.evaluate import gini, top_tenth_share, windows
from models.tiny.tokenizer import CHAT_TEMPLATE, CONTROL_TOKENS, MARKUP_TOKENS, train_tokenizer


def test_the_split_depends_on_the_documents_name_alone() -> None:
    docs = [Document("prose", f"book/{i}", "text") for i in range(2000)]
    assert 0.03 < sum(d.held_out for d in docs) / 2000 < 0.07
    assert all(Document("prose", d.name, "other").held_out == d.held_out for d in docs)


def test_excerpts_are_held_out_whole_lines_within_the_limit() -> None:
    docs = [Document("prose", f"book/{i}", f"line {i}\n" * 50) for i in range(300)]
    text = excerpts(docs, "prose", 2_000, document_bytes=100)
    allowed = {f"line {i}" for i, d in enumerate(docs) if d.held_out}
    assert 0 < len(text.encode()) <= 2_000
    assert {line for line in text.split("\n") if line} <= allowed


def test_html_keeps_code_and_drops_navigation() -> None:
    page = (
        '<html><head><title>x</title></head><body><div class="navheader"><table>Next</table></div>'
        "<p>One\n  two.</p><pre>a\n  b</pre><script>no()</script></body></html>"
    )
    assert html_text(page) == "One two.\n\na\n  b\n"


def test_r_strings_read_a_character_vector() -> None:
    body = b"".join(struct.pack(">ii", 0x40009, len(s)) + s for s in (b"first", b"", b"third"))
    header = b"X\n" + struct.pack(">iii", 3, 0x40201, 0x30500) + struct.pack(">i", 5) + b"UTF-8"
    assert list(_r_strings(header + struct.pack(">ii", 16, 3) + body)) == ["first", "", "third"]
    with pytest.raises(ValueError, match="character vector"):
        list(_r_strings(header + struct.pack(">ii", 13, 3) + body))


@pytest.mark.parametrize("num_tokens", [2, 500, 1024, 1025, 1536, 1537, 5000])
def test_windows_predict_every_token_but_the_first_once(num_tokens: int) -> None:
    seen = [token for _, end, first in windows(num_tokens) for token in range(first, end)]
    assert seen == list(range(1, num_tokens))
    assert all(end - start <= 1024 for start, end, _ in windows(num_tokens))


def test_gini_and_top_share_of_known_cases() -> None:
    assert gini(np.full(50, 7)) == pytest.approx(0)
    assert gini(np.array([0] * 99 + [5])) == pytest.approx(0.99)
    assert top_tenth_share(np.array([1] * 18 + [41, 41])) == pytest.approx(0.82)


def test_any_text_round_trips_through_a_tokenizer_trained_on_little() -> None:
    docs = [
        Document(domain, "a", "some words, some code = 1\n" * 20)
        for domain in ("python", "prose", "technical")
    ]
    tokenizer = train_tokenizer(docs, 300)
    for text in ("naïve → 日本\x00\t\r\n  x", "  leading", "emoji 🥘"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    for position, token in enumerate((*CONTROL_TOKENS, *MARKUP_TOKENS)):
        assert tokenizer.token_to_id(token) == position
    call = tokenizer.encode("<think>\nx\n</think>\n<|im_end|>").ids
    assert tokenizer.decode(call) == "<think>\nx\n</think>\n"


def _render(messages: list[dict[str, object]], **extra: object) -> str:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    template = environment.from_string(CHAT_TEMPLATE.read_text())
    return template.render(messages=messages, bos_token="<s>", **extra)


def test_the_generation_prompt_opens_reasoning() -> None:
    text = _render([{"role": "user", "content": " Hi "}], add_generation_prompt=True)
    assert text == "<s><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"


def test_reasoning_is_kept_only_after_the_last_user_message() -> None:
    history = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "<think>\nold\n</think>\nYes."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "reasoning_content": "new", "content": "No."},
    ]
    assert _render(history) == (
        "<s><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?<|im_end|>\n"
        "<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nTwo?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\nnew\n</think>\nNo.<|im_end|>\n"
    )


def test_tools_calls_and_results_take_the_published_form() -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {}}}
    calls = [{"function": {"name": "add", "arguments": {"a": 1, "note": "two\nlines", "all": [1, True]}}}]
    text = _render(
        [
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": "", "reasoning_content": "r", "tool_calls": calls * 2},
            {"role": "tool", "content": "3"},
            {"role": "tool", "content": "4"},
        ],
        tools=[tool],
        add_generation_prompt=True,
    )
    assert "# Tools\n\nYou have access to the following functions in JSONSchema format:\n\n<tools>\n" in text
    assert f"<tools>\n{json.dumps(tool)}\n</tools>\n" in text
    call = (
        "<tool_call>\n<function=add>\n<parameter=a>\n1\n</parameter>\n<parameter=note>\ntwo\nlines\n</parameter>\n"
        "<parameter=all>\n[1, true]\n</parameter>\n</function>\n</tool_call>"
    )
    assert f"<|im_start|>assistant\n<think>\nr\n</think>\n{call}{call}<|im_end|>\n" in text
    results = "<tool_response>3</tool_response><tool_response>4</tool_response>"
    assert text.endswith(f"<|im_start|>tool_response\n{results}<|im_end|>\n<|im_start|>assistant\n<think>\n")
