"""Text on standard output while it is generated."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from orchestrator.tokenizer import StreamDecoder, Tokenizer


@dataclass(slots=True)
class Stream:
    """Prints text while it is generated: words with a tokenizer, ids without."""

    tokenizer: Tokenizer | None
    silent: bool = False
    _text: str = ""
    _decoder: StreamDecoder | None = None

    def __post_init__(self) -> None:
        if self.tokenizer is not None:
            self._decoder = StreamDecoder(self.tokenizer)

    def push(self, token_ids: list[int]) -> None:
        if self._decoder is not None:
            self._show(self._decoder.push(token_ids))
        elif not self.silent:
            sys.stdout.write("".join(f"{token_id} " for token_id in token_ids))
            sys.stdout.flush()

    def finish(self) -> str:
        """The whole text, "" without a tokenizer."""
        if self._decoder is not None:
            self._show(self._decoder.finish())
        if not self.silent:
            sys.stdout.write("\n")
        return self._text

    def _show(self, text: str) -> None:
        self._text += text
        if not self.silent:
            sys.stdout.write(text)
            sys.stdout.flush()
