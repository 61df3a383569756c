"""What may be left of a small JSON file that a power cut, another release or a person has been at."""

from __future__ import annotations

DAMAGED = (
    b"",
    b"{",
    b'{"pid": 1, "beg',
    b"\xff\xfe\x00",
    b"null",
    b"[]",
    b"7",
    b"{}",
    b"[" * 100_000,
    b'{"pid": "one", "began": "then"}',
    b'{"pid": -5, "began": 1.0}',
    b'{"pid": 1000000000000000000000000000000, "began": 1.0}',
    b'{"pid": 1.5, "began": null, "last_word": []}',
    b'{"pid": 1, "began": NaN, "last_word": 3}',
    b'{"pid": 1, "pid": 2, "began": 1}',
    b'{"wanted": [], "spec": {"name": 3}}',
    b'{"wanted": null, "spec": null}',
    b'{"event": "ready"}\n{"event": "failed", "message": 3}\n{"event": []}\n[1]',
    b'{"event": "ended", "message": ' + b"9" * 500_000 + b"}",
)
