"""A capture's packets put together again: the bytes of each TCP stream, and the others packet by packet."""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

Streams = Mapping[str, bytes]
"""Flow such as "10.0.0.1:5->10.0.0.2:6" -> what was sent there."""

_FILE_HEADER, _PACKET_HEADER = 24, 16
_ETHERNET, _IPV4, _TCP = 14, 0x0800, 6
_SYN = 2
_U32 = 2**32


def read_streams(path: Path) -> Streams:
    """Of a capture file of Ethernet packets in little-endian pcap, as tcpdump writes it on our machines.

    A stream's segments are put in the order of their numbers; what was sent twice counts once. What lies
    beside a gap, where the capture has missed something, is put together.
    """
    content = path.read_bytes()
    magic, link = content[:4], struct.unpack_from("<I", content, 20)[0]
    assert (magic, link) == (b"\xd4\xc3\xb2\xa1", 1), "expected a pcap file of Ethernet packets"
    segments: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
    other = bytearray()
    at = _FILE_HEADER
    while at + _PACKET_HEADER <= len(content):
        kept, full = struct.unpack_from("<II", content, at + 8)
        assert kept == full, "a packet was cut"
        packet = content[at + _PACKET_HEADER : at + _PACKET_HEADER + kept]
        at += _PACKET_HEADER + kept
        segment = _tcp(packet)
        if segment is None:
            other += packet + b"\0\0"
        elif segment[2]:
            segments[segment[0]].append(segment[1:])
    return {flow: _joined(parts) for flow, parts in segments.items()} | {"other packets": bytes(other)}


def _tcp(packet: bytes) -> tuple[str, int, bytes] | None:
    """Flow, number of its first byte, and payload of a TCP segment over IPv4."""
    if len(packet) < _ETHERNET + 40 or struct.unpack_from(">H", packet, 12)[0] != _IPV4:
        return None
    ip = packet[_ETHERNET:]
    ip_bytes, total = 4 * (ip[0] & 15), struct.unpack_from(">H", ip, 2)[0]
    if ip[9] != _TCP:
        return None
    # A packet that the network card is to cut up may say 0.
    tcp = ip[ip_bytes : total or len(ip)]
    source, target, number = struct.unpack_from(">HHI", tcp)
    flow = f"{_address(ip[12:16])}:{source}->{_address(ip[16:20])}:{target}"
    return flow, (number + (tcp[13] & _SYN > 0)) % _U32, tcp[4 * (tcp[12] >> 4) :]


def _address(four: bytes) -> str:
    return ".".join(map(str, four))


def _joined(parts: list[tuple[int, bytes]]) -> bytes:
    """The bytes of one direction of a connection, or of several one after another on the same ports."""
    begin = parts[0][0]
    # Numbers count modulo 2^32; a segment that came before the first seen one lies a little below it.
    placed = sorted((((number - begin + _U32 // 2) % _U32), data) for number, data in parts)
    joined = bytearray()
    end = placed[0][0]
    for number, data in placed:
        new = data[max(0, end - number) :] if number < end else data
        joined += new
        end = max(end, number + len(data))
    return bytes(joined)
