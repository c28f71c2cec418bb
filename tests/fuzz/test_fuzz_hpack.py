"""Header blocks: the decoder beside one that is written plainly, from the text of RFC 7541.

A file of ``corpus/hpack`` holds the blocks of one direction, each behind its length in two bytes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.corpus import fuzz
from hypothesis import given
from hypothesis import strategies as st

from cradled.http2 import hpack, huffman
from cradled.http2.hpack import Decoder, Encoder, Field, FieldsTooLarge, HpackError

CORPUS = sorted((Path(__file__).parent / "corpus" / "hpack").glob("*.bin"))
LIMIT = 2000
STATIC = hpack._STATIC
CODES = {code: symbol for symbol, code in enumerate(huffman._BITS)}


class Bad(Exception):
    pass


class Plain:
    """The rules, one after the other, without a thought for speed."""

    def __init__(self) -> None:
        self.table: list[Field] = []
        self.limit = 4096

    def decode(self, block: bytes) -> list[Field]:
        self.left = block
        fields: list[Field] = []
        updates = 0
        while self.left:
            first = self.left[0]
            if first >= 0x80:
                fields.append(self.entry(self.integer(7)))
            elif first >= 0x40:
                field = self.literal(6)
                fields.append(field)
                self.table.insert(0, field)
                self.evict()
            elif first >= 0x20:
                updates += 1
                self.limit = self.integer(5)
                if fields or self.limit > 4096 or updates > 2:
                    raise Bad
                self.evict()
            else:
                fields.append(self.literal(4))
        return fields

    def evict(self) -> None:
        while sum(len(n) + len(v) + 32 for n, v in self.table) > self.limit:
            self.table.pop()

    def entry(self, index: int) -> Field:
        entries = [*STATIC, *self.table]
        if not 1 <= index <= len(entries):
            raise Bad
        return entries[index - 1]

    def literal(self, bits: int) -> Field:
        index = self.integer(bits)
        name = self.entry(index)[0] if index else self.string()
        return name, self.string()

    def take(self, size: int) -> bytes:
        if size > len(self.left):
            raise Bad
        out, self.left = self.left[:size], self.left[size:]
        return out

    def integer(self, bits: int) -> int:
        full = (1 << bits) - 1
        value = self.take(1)[0] & full
        if value < full:
            return value
        for shift in range(0, 35, 7):
            byte = self.take(1)[0]
            value += (byte & 0x7F) << shift
            if value > 1 << 31:
                raise Bad
            if byte < 0x80:
                return value
        raise Bad

    def string(self) -> bytes:
        if not self.left:
            raise Bad
        coded = self.left[0] & 0x80
        text = self.take(self.integer(7))
        return self.huffman(text) if coded else text

    def huffman(self, text: bytes) -> bytes:
        out, code = bytearray(), ""
        for bit in "".join(f"{byte:08b}" for byte in text):
            code += bit
            if code in CODES:
                if CODES[code] == 256:
                    raise Bad
                out.append(CODES[code])
                code = ""
        if len(code) > 7 or "0" in code:
            raise Bad
        return bytes(out)


def compare(blocks: list[bytes]) -> None:
    """Both decode the same, or fail at the same block; each block is decoded twice by one."""
    decoder: Decoder[list[Field]] = Decoder(list, LIMIT)
    plain = Plain()
    for block in blocks:
        try:
            expected: list[Field] | None = plain.decode(block)
        except Bad:
            expected = None
        size = sum(len(n) + len(v) + 32 for n, v in expected or ())
        try:
            decoded: list[Field] | None = decoder.decode(block)
        except FieldsTooLarge:
            assert size > LIMIT
            decoded = expected
        except HpackError:
            assert expected is None
            return
        else:
            assert size <= LIMIT
        assert decoded == expected
        assert list(decoder._table) == plain.table
        assert decoder._remembered_size <= 64 << 10


def blocks_of(data: bytes) -> list[bytes]:
    blocks = []
    while len(data) >= 2:
        size = int.from_bytes(data[:2], "big")
        blocks.append(data[2 : 2 + size])
        data = data[2 + size :]
    return blocks


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.stem)
def test_kept_cases(path: Path) -> None:
    blocks = blocks_of(path.read_bytes())
    assert blocks
    compare(blocks)
    compare([block for block in blocks for _ in range(2)])


def test_the_corpus_is_there() -> None:
    assert len(CORPUS) > 20


def integer(value: int, bits: int, flags: int) -> bytes:
    return hpack._encode_integer(value, (1 << bits) - 1, flags)


def string(text: bytes, coded: bool) -> bytes:
    if coded:
        text = huffman.encode(text)
    return integer(len(text), 7, 0x80 if coded else 0) + text


def literal(kind: tuple[int, int], index: int, name: bytes, value: bytes, coded: bool) -> bytes:
    bits, flags = kind
    head = integer(index, bits, flags)
    return head + (b"" if index else string(name, coded)) + string(value, coded)


texts = st.one_of(st.sampled_from([b"", b"a", b"content-type", b"x" * 300]), st.binary(max_size=60))
indexes = st.one_of(st.integers(1, 70), st.integers(0, 1 << 32))
parts = st.one_of(
    st.builds(lambda i: integer(i, 7, 0x80), indexes),
    st.builds(
        literal,
        st.sampled_from([(6, 0x40), (6, 0x40), (4, 0x00), (4, 0x10)]),
        st.one_of(st.just(0), st.integers(1, 70)),
        texts,
        texts,
        st.booleans(),
    ),
)
updates = st.builds(lambda n: integer(n, 5, 0x20), st.sampled_from([0, 31, 100, 500, 4096, 5000]))
structured = st.builds(
    lambda first, rest: b"".join([*first, *rest]),
    st.lists(updates, max_size=1),
    st.lists(parts, max_size=6),
)
bent = st.builds(
    lambda block, at, value: (
        block[: at % (len(block) + 1)] + value + block[at % (len(block) + 1) :]
    ),
    structured,
    st.integers(0, 1000),
    st.binary(max_size=2),
)


@fuzz(150)
@given(st.lists(structured, max_size=8))
def test_blocks_as_encoders_make_them(blocks: list[bytes]) -> None:
    compare(blocks)


@fuzz(150)
@given(st.lists(st.one_of(bent, structured), max_size=6))
def test_blocks_that_are_nearly_right(blocks: list[bytes]) -> None:
    compare(blocks)


@fuzz(300)
@given(st.lists(st.binary(max_size=60), max_size=5))
def test_noise(blocks: list[bytes]) -> None:
    compare(blocks)


@fuzz(500)
@given(st.binary(max_size=80))
def test_huffman_code(coded: bytes) -> None:
    try:
        expected: bytes | None = Plain().huffman(coded)
    except Bad:
        expected = None
    try:
        text: bytes | None = huffman.decode(coded)
    except huffman.HuffmanError:
        text = None
    assert text == expected
    assert expected is None or huffman.encode(expected) == coded


@fuzz(80)
@given(st.lists(st.lists(st.tuples(texts, texts), max_size=5), max_size=10))
def test_our_encoder_read_plainly(lists: list[list[Field]]) -> None:
    encoder, plain = Encoder(), Plain()
    for fields in lists:
        for _ in range(2):
            assert plain.decode(encoder.encode((*fields,))) == fields
        assert Plain().decode(hpack.encode(fields)) == fields
