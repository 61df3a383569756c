"""Messages of the wire, mutated: bytes, fields, types, frames, lengths."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

from tests.workers.serving import LIMITS, NUM_EXPERTS, request
from transport.forward import MARK
from transport.messages import (
    Drop,
    ErrorCode,
    ErrorReply,
    ForwardReply,
    Held,
    Hello,
    HelloReply,
    Hold,
    Ping,
    Pong,
    Reply,
    Request,
    Shutdown,
    WorkerState,
)
from transport.wire import encode

_NUMBERS = (0, 1, -1, 2, 8, 127, 128, 255, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, -(2**63))
_VALUES: tuple[Any, ...] = (
    *_NUMBERS,
    *(float(number) for number in _NUMBERS),
    float("nan"),
    float("inf"),
    None,
    True,
    False,
    "",
    "f32",
    "x" * 3000,
    b"",
    b"\0" * 68,
    [],
    [1] * 20,
    {},
    {"a": 1},
    msgpack.ExtType(5, b"x"),
)

Frames = list[bytes]


def seeds() -> list[Frames]:
    """One message of every kind, as frames; forwards of several sizes and forms."""
    plain: list[Request | Reply] = [
        Hello(1, 2),
        Ping(3, 4, 5),
        Hold(6, 7, {2: (0, 3), 3: (1,)}, 8),
        Drop(9, 10, {3: tuple(range(NUM_EXPERTS))}),
        Shutdown(11),
        HelloReply(12, "w", 13, WorkerState.READY, "fingerprint", "", "float32", 14, ""),
        Pong(15, 16, WorkerState.LOADING, 17, 18, 19, 20, 0.5, 21),
        Held(22, 23, False, 24, "text"),
        ErrorReply(25, ErrorCode.BUSY, "message"),
        ForwardReply(26, np.zeros((1, LIMITS.hidden_size), np.int32), np.zeros(1, np.bool_), 0.5),
    ]
    forwards = [request(number, rows, bfloat16=bool(number % 2)) for number, rows in enumerate((1, 1, 3, 64))]
    # Another session than the ping's, or most would soon be of an epoch that is over.
    asked = [message._replace(session=6) for message in forwards]
    return [[bytes(frame) for frame in encode(message)] for message in (*plain, *asked, *asked, *asked)]


class Mutations:
    """Frames from seeds, each changed in one to three places; the same for the same random numbers."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._seeds = seeds()
        # None for the messages whose headers are no msgpack.
        self._headers = [
            None if frames[0][0] == MARK else msgpack.unpackb(frames[0]) for frames in self._seeds
        ]
        self._kinds: tuple[Callable[[Frames, list[Any] | None], Frames], ...] = (
            self._field,
            self._field,
            self._field,
            self._fewer_fields,
            self._bytes_of_a_frame,
            self._bytes_of_a_frame,
            self._length,
            self._frames,
            self._noise,
        )

    def next(self) -> Frames:
        number = self._rng.randrange(len(self._seeds))
        frames = list(self._seeds[number])
        unpacked = self._headers[number]
        header = None if unpacked is None else list(unpacked)
        for _ in range(self._rng.choice((1, 1, 1, 2, 3))):
            frames = self._rng.choice(self._kinds)(frames, header)
        return frames

    def _field(self, frames: Frames, header: list[Any] | None) -> Frames:
        if header is None:
            return [self._other_number(frames[0]), *frames[1:]] if frames else []
        value = self._rng.choice(_VALUES)
        if header:
            header[self._rng.randrange(len(header))] = value
        return [_packed(header), *frames[1:]]

    def _other_number(self, header: bytes) -> bytes:
        """The header of a forward message, one of its numbers or of its routing's another."""
        form = self._rng.choice("BIQ")
        size = struct.calcsize(form)
        if len(header) < size:
            return header
        place = self._rng.randrange(len(header) - size + 1)
        number = self._rng.choice(_NUMBERS) % 2 ** (8 * size)
        return header[:place] + struct.pack(f"<{form}", number) + header[place + size :]

    def _fewer_fields(self, frames: Frames, header: list[Any] | None) -> Frames:
        if header is None:
            return self._length(frames, header)
        if self._rng.random() < 0.5 or not header:
            header.append(self._rng.choice(_VALUES))
        else:
            del header[self._rng.randrange(len(header))]
        return [_packed(header), *frames[1:]]

    def _bytes_of_a_frame(self, frames: Frames, _: list[Any] | None) -> Frames:
        place = self._rng.randrange(len(frames))
        changed = bytearray(frames[place])
        for _number in range(self._rng.randint(1, 4)):
            if changed:
                changed[self._rng.randrange(len(changed))] = self._rng.randrange(256)
        return [*frames[:place], bytes(changed), *frames[place + 1 :]]

    def _length(self, frames: Frames, _: list[Any] | None) -> Frames:
        place = self._rng.randrange(len(frames))
        frame = frames[place]
        cut = self._rng.randrange(len(frame) + 1)
        changed = (
            frame[:cut]
            if self._rng.random() < 0.5
            else frame[:cut] + self._rng.randbytes(cut % 99) + frame[cut:]
        )
        return [*frames[:place], changed[: LIMITS.max_frame_bytes], *frames[place + 1 :]]

    def _frames(self, frames: Frames, _: list[Any] | None) -> Frames:
        return self._rng.choice(
            (
                frames[::-1],
                frames[:1],
                [*frames, b""],
                frames * 3,
                [b"", *frames],
                [b""] * 50,
                frames[1:] or [b""],
            )
        )

    def _noise(self, _frames: Frames, _: list[Any] | None) -> Frames:
        return [
            self._rng.randbytes(self._rng.choice((0, 1, 5, 40, 300))) for _ in range(self._rng.randint(1, 3))
        ]


def _packed(header: list[Any]) -> bytes:
    try:
        return bytes(msgpack.packb(header))
    except (OverflowError, ValueError, TypeError):
        return b"\xc1"
