"""Pure. The Huffman code of header compression (RFC 7541 section 5.2 and appendix B).

Decoding takes a byte at a time: from a node of the code's tree, a byte leads over some symbols to
another node. These steps are found bit by bit when they are first needed, and remembered; the
texts of headers use few of the 65,536 there are.
"""

from __future__ import annotations

from functools import lru_cache

# The code is canonical (codes of one length count up with the symbols), so the lengths say it
# all: one letter for each symbol, "a" for 5 bits, up to "z" for 30. The last symbol is the end of
# string.
_LENGTHS = [
    ord(letter) - ord("a") + 5
    for letter in (
        "isxxxxxxxtzxxzxxxxxxxxzxxxxxxxxxbffhibdgffdgdbbbaaabbbbbbbcdkbhf"
        "ibccccccccccccccccccccccdcdioijbkabababbbaccbbbabcbaabccccckgjix"
        "prpprrrsrssssststtrstssssqrsrsstrqprrssqsrrtqrssqqrqsrssprrrsrrs"
        "vvporsruvvvwwvtuoqvwwvwtqqvvxwwwptpqrqqsrruuttvsvwvvwwwwwxwwwwwv"
        "z"
    )
]
_END_OF_STRING = 256
_REMEMBERED = 1 << 14  # steps; what is beyond is walked again each time
_CACHED = 256  # longest text, in bytes, that is remembered whole


class HuffmanError(ValueError):
    """Bytes that are no text in this code."""


def _codes() -> list[str]:
    """The code of each symbol, in binary."""
    codes = [""] * len(_LENGTHS)
    code, previous = 0, 5
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(_LENGTHS)):
        code <<= length - previous
        previous = length
        codes[symbol] = f"{code:0{length}b}"
        code += 1
    return codes


def _tree(codes: list[str]) -> list[list[int]]:
    """Nodes: where bit 0 and bit 1 lead. A leaf is the complement of its symbol."""
    nodes = [[0, 0]]
    for symbol, code in enumerate(codes):
        at = 0
        for bit in map(int, code[:-1]):
            if not nodes[at][bit]:
                nodes.append([0, 0])
                nodes[at][bit] = len(nodes) - 1
            at = nodes[at][bit]
        nodes[at][int(code[-1])] = ~symbol
    return nodes


_BITS = _codes()
_NODES = _tree(_BITS)


def _ends() -> frozenset[int]:
    """The nodes where a text may end: after a symbol, and at most seven ones of padding."""
    ends = [0]
    while len(ends) < 8:
        ends.append(_NODES[ends[-1]][1])
    return frozenset(ends)


_ENDS = _ends()
_steps: dict[int, tuple[int, bytes]] = {}


def decode(text: bytes) -> bytes:
    """The text that bytes stand for; raises HuffmanError."""
    return _decode_cached(text) if len(text) <= _CACHED else _decode(text)


def encoded_size(text: bytes) -> int:
    """Bytes that ``encode`` would make."""
    return (sum([_LENGTHS[byte] for byte in text]) + 7) // 8


def encode(text: bytes) -> bytes:
    """A text in the code, padded to whole bytes."""
    bits = "".join([_BITS[byte] for byte in text])
    bits += "1" * (-len(bits) % 8)
    return int(bits or "0", 2).to_bytes(len(bits) // 8, "big")


def _decode(text: bytes) -> bytes:
    node = 0
    symbols = []
    for byte in text:
        node, some = _steps.get(node << 8 | byte) or _step(node, byte)
        symbols.append(some)
    if node not in _ENDS:
        raise HuffmanError("Huffman code ends in bad padding")
    return b"".join(symbols)


_decode_cached = lru_cache(256)(_decode)


def _step(start: int, byte: int) -> tuple[int, bytes]:
    """Where a byte leads from a node, and the symbols on the way."""
    node, symbols = start, bytearray()
    for shift in range(7, -1, -1):
        node = _NODES[node][byte >> shift & 1]
        if node < 0:
            if ~node == _END_OF_STRING:
                raise HuffmanError("Huffman code of the end of string")
            symbols.append(~node)
            node = 0
    step = node, bytes(symbols)
    if len(_steps) < _REMEMBERED:
        _steps[start << 8 | byte] = step
    return step
