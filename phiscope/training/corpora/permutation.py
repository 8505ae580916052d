"""An order of many things that takes no memory: a keyed bijection of the numbers below a size.

A Feistel network permutes the numbers of an even count of bits (Luby and Rackoff, 1988); one that
falls outside is permuted again until it does not (Black and Rogaway, 2002), four times on average
at most.
"""

import hashlib

_ROUNDS = 6
_MASK = 2**64 - 1

Keys = tuple[int, ...]


def make_keys(*names: object) -> Keys:
    """Round keys, the same for the same names on every machine."""
    text = " ".join(map(repr, names))
    data = hashlib.blake2b(text.encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(data[at : at + 8], "little") for at in range(0, len(data), 8))


def draw_integer(below: int, *names: object) -> int:
    """A number from 0 to below `below`, the same for the same names on every machine."""
    data = hashlib.blake2b(" ".join(map(repr, names)).encode(), digest_size=16).digest()
    return int.from_bytes(data, "little") % below


def permute(index: int, size: int, keys: Keys) -> int:
    """The place of `index` in the order of these keys: a bijection of the numbers below `size`."""
    if not 0 <= index < size:
        raise IndexError(f"{index} is not below {size}")
    bits = ((size - 1).bit_length() + 1) // 2
    index = _encrypt(index, bits, keys)
    while index >= size:
        index = _encrypt(index, bits, keys)
    return index


def _encrypt(value: int, bits: int, keys: Keys) -> int:
    """A bijection of the numbers of `2 * bits` bits."""
    mask = (1 << bits) - 1
    left, right = value >> bits, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << bits | right


def _mix(value: int) -> int:
    """The finalizer of MurmurHash3, whose every bit depends on every bit of 64."""
    value = ((value ^ value >> 33) * 0xFF51AFD7ED558CCD) & _MASK
    value = ((value ^ value >> 33) * 0xC4CEB9FE1A85EC53) & _MASK
    return value ^ value >> 33
