"""Byte-level BPE: any bytes of valid text round trip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from models.tiny.corpus import DOMAINS, Document

BOS, EOS = "<s>", "</s>"
CONTROL_TOKENS = (BOS, EOS, "<|im_start|>", "<|im_end|>")
# Shown to the reader of the output, so not dropped when special tokens are skipped.
MARKUP_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
SAMPLE_BYTES = 3_000_000
CHAT_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def train_tokenizer(docs: list[Document], vocab_size: int) -> Tokenizer:
    """Trains on equal shares of each domain's training documents.

    Args:
        docs: all documents; held-out ones are not read.
        vocab_size: tokens in all, control tokens included (ids 0, 1, ... in order).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[*CONTROL_TOKENS, *MARKUP_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts: list[str] = []
    for domain in DOMAINS:
        size = 0
        for doc in sorted((d for d in docs if d.domain == domain and not d.held_out), key=lambda d: d.rank):
            texts.append(doc.text)
            size += len(doc.text)
            if size > SAMPLE_BYTES:
                break
    tokenizer.train_from_iterator(texts, trainer)
    return _quote(tokenizer)


def _quote(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with its markup no longer special; the library cannot unmark a token in place."""
    document = json.loads(tokenizer.to_str())
    for token in document["added_tokens"]:
        token["special"] = token["content"] in CONTROL_TOKENS
    return Tokenizer.from_str(json.dumps(document))


def tokenizer_config(max_length: int) -> dict[str, Any]:
    """The tokenizer_config.json document, chat template included."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": EOS,
        "add_bos_token": True,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
        "chat_template": CHAT_TEMPLATE.read_text(),
    }


def write_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save(str(folder / "tokenizer.json"))
    document = json.dumps(tokenizer_config(max_length), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(document + "\n")
