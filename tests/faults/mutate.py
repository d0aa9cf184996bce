"""Damage to files for the fuzz drill: random, but aware of where a format keeps its numbers, and the same for a seed.

>>> import random
>>> rng = random.Random(1)
>>> mutate(b'{"shape": [6, 32]}', [(0, 18)], rng) != b'{"shape": [6, 32]}'
True
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

_NUMBERS = (0, 1, 2, 3, 5, 7, 8, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 0x100000000, 2**63 - 1)
_WORDS = (
    *("0", "1", "-1", "2", "3", "5", "7", "12", "1000000", "4294967296", "99999999999999999999", "1e308", "NaN"),
    *("null", "true", "[]", "{}", '""', '"uint8"', '"float32"', '"../../../etc/passwd"', "&lt;", "\0", "XYZTC"),
)


def mutate(data: bytes, spots: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    """Return the bytes with one to three damages."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if data:
            data = rng.choice(_DAMAGES)(data, spots, rng)
    return data


def tiff_spots(data: bytes) -> list[tuple[int, int]]:
    """Header and pages of a classic or big TIFF, and what its text tags point at."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack(order + "H", data[2:4])[0] == 43
    count_of, entry_of, next_of = ("Q", "HHQQ", "Q") if big else ("H", "HHII", "I")
    spots = [(0, 16 if big else 8)]
    at = struct.unpack_from(order + next_of, data, 8 if big else 4)[0]
    while at and at + 8 < len(data):
        (entries,) = struct.unpack_from(order + count_of, data, at)
        first, size = at + struct.calcsize(order + count_of), struct.calcsize(order + entry_of)
        end = first + entries * size
        spots.append((at, end + struct.calcsize(order + next_of)))
        for entry in range(first, end, size):
            tag, _, count, value = struct.unpack_from(order + entry_of, data, entry)
            if tag in (270, 273, 279, 324, 325, 50839, 51123, 65000) and 4 < count < 1 << 16 and value < len(data):
                spots.append((value, min(len(data), value + count)))
        (at,) = struct.unpack_from(order + next_of, data, end)
    return spots


def _place(data: bytes, spots: Sequence[tuple[int, int]], rng: random.Random) -> int:
    if spots and rng.random() < 0.85:
        start, end = rng.choice(spots)
        return min(rng.randrange(start, max(start + 1, end)), len(data) - 1)
    return rng.randrange(len(data))


def _flip(data: bytes, spots: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    at = _place(data, spots, rng)
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def _overwrite(data: bytes, spots: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    at, size = _place(data, spots, rng), rng.choice((1, 2, 4, 8))
    value = rng.choice((*_NUMBERS, len(data), len(data) - 1, at, rng.getrandbits(32))) & ((1 << 8 * size) - 1)
    new = value.to_bytes(size, rng.choice(("little", "big")))
    return data[:at] + new + data[at + size :]


def _truncate(data: bytes, spots: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    return data[: _place(data, spots, rng)]


def _extend(data: bytes, _: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    return data + (bytes(rng.randrange(1, 4096)) if rng.random() < 0.5 else rng.randbytes(rng.randrange(1, 4096)))


def _delete(data: bytes, spots: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    at = _place(data, spots, rng)
    return data[:at] + data[at + rng.choice((1, 2, 4, 12, 100)) :]


def _splice(data: bytes, spots: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    source, target, size = _place(data, spots, rng), _place(data, spots, rng), rng.choice((1, 4, 12, 20, 64, 500))
    piece = data[source : source + size]
    return data[:target] + piece + data[target + (len(piece) if rng.random() < 0.7 else 0) :]


def _zero(data: bytes, spots: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    at, size = _place(data, spots, rng), rng.choice((4, 12, 100, 4000))
    return data[:at] + bytes(min(size, len(data) - at)) + data[at + size :]


def _word(data: bytes, spots: Sequence[tuple[int, int]], rng: random.Random) -> bytes:
    """Exchange a number or a quoted word of a text for another."""
    start, end = rng.choice(list(spots) or [(0, len(data))])
    found = list(re.finditer(rb'\d+(?:\.\d+)?|"[^"]{0,40}"', data[start:end]))
    if not found:
        return _flip(data, spots, rng)
    match = rng.choice(found)
    old, new = match.group(), rng.choice(_WORDS).encode()
    if old.startswith(b'"') and rng.random() < 0.5:
        new = b'"' + new.strip(b'"') + b'"'
    return data[: start + match.start()] + new + data[start + match.end() :]


_DAMAGES: tuple[Callable[[bytes, Sequence[tuple[int, int]], random.Random], bytes], ...] = (
    *(_flip, _flip, _overwrite, _overwrite, _overwrite, _word, _word),
    *(_truncate, _extend, _delete, _splice, _zero),
)
