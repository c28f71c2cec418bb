"""HPACK against the examples of RFC 7541 appendix C, and against itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cradled.http2 import hpack, huffman
from cradled.http2.hpack import Decoder, Encoder, FieldsTooLarge, HpackError, encode


def decoder(limit=1 << 16):
    return Decoder(tuple, limit)


def fields(text):
    pairs = [line.strip().split(": ") for line in text.strip().splitlines()]
    return tuple((name.encode(), value.encode()) for name, value in pairs)


REQUESTS = [
    """:method: GET
       :scheme: http
       :path: /
       :authority: www.example.com""",
    """:method: GET
       :scheme: http
       :path: /
       :authority: www.example.com
       cache-control: no-cache""",
    """:method: GET
       :scheme: https
       :path: /index.html
       :authority: www.example.com
       custom-key: custom-value""",
]
RESPONSES = [
    """:status: 302
       cache-control: private
       date: Mon, 21 Oct 2013 20:13:21 GMT
       location: https://www.example.com""",
    """:status: 307
       cache-control: private
       date: Mon, 21 Oct 2013 20:13:21 GMT
       location: https://www.example.com""",
    """:status: 200
       cache-control: private
       date: Mon, 21 Oct 2013 20:13:22 GMT
       location: https://www.example.com
       content-encoding: gzip
       set-cookie: foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600; version=1""",
]
# Sections C.3 to C.6: (blocks of one connection, lists of fields, size limit of the table).
C3 = [
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
]
C4 = [
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
]
C5 = [
    "4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d546e"
    "1768747470733a2f2f7777772e6578616d706c652e636f6d",
    "4803333037c1c0bf",
    "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d"
    "4153444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b20766572"
    "73696f6e3d31",
]
C6 = [
    "488264025885aec3771a4b6196d07abe941054d444a8200595040b8166e082a62d1bff6e919d29ad171863c78f0b"
    "97c8e9ae82ae43d3",
    "4883640effc1c0bf",
    "88c16196d07abe941054d444a8200595040b8166e084a62d1bffc05a839bd9ab77ad94e7821dd7f2e6c7b335dfdf"
    "cd5b3960d5af27087f3672c1ab270fb5291f9587316065c003ed4ee5b1063d5007",
]


@pytest.mark.parametrize(
    ("blocks", "texts", "size"),
    [(C3, REQUESTS, 4096), (C4, REQUESTS, 4096), (C5, RESPONSES, 256), (C6, RESPONSES, 256)],
    ids=["C.3", "C.4", "C.5", "C.6"],
)
def test_examples_of_the_rfc(blocks, texts, size):
    d = decoder()
    if size != 4096:
        assert d.decode(bytes.fromhex("3fe101")) == ()  # a size update to 256
    for block, text in zip(blocks, texts, strict=True):
        assert d.decode(bytes.fromhex(block)) == fields(text)


def test_table_of_the_rfc_after_evictions():
    d = decoder()
    d.decode(bytes.fromhex("3fe101"))
    for block in C5:
        d.decode(bytes.fromhex(block))
    assert d._size == 215
    assert [name for name, _ in d._table] == [b"set-cookie", b"content-encoding", b"date"]


def test_integers_of_the_rfc():
    assert hpack._encode_integer(1337, 0x1F, 0) == bytes.fromhex("1f9a0a")
    assert hpack._integer(bytes.fromhex("1f9a0a"), 0, 0x1F) == (1337, 3)
    assert hpack._encode_integer(10, 0x1F, 0xE0) == b"\xea"


def test_static_table():
    assert len(hpack._STATIC) == 61
    assert hpack._STATIC[15] == (b"accept-encoding", b"gzip, deflate")
    assert hpack._STATIC[30] == (b"content-type", b"")
    assert hpack._STATIC[60] == (b"www-authenticate", b"")


def test_huffman_code_is_complete():
    assert len(huffman._BITS) == 257
    assert sum(2 ** -len(code) for code in huffman._BITS) == 1


def test_what_a_block_stood_for_is_remembered_until_the_table_changes():
    made = []
    d = Decoder(lambda fields: made.append(fields) or fields, 1 << 16)
    insert, use = b"\x40\x01a\x01b", b"\xbe"
    d.decode(insert)
    assert d.decode(use) is d.decode(use)
    assert len(made) == 2
    d.decode(b"\x40\x01c\x01d")
    assert d.decode(use) == [(b"c", b"d")]


def test_inserting_blocks_are_never_remembered():
    d = decoder()
    insert = b"\x40\x01a\x01b"
    for _ in range(3):
        assert d.decode(insert) == ((b"a", b"b"),)
    assert len(d._table) == 3


def test_entry_larger_than_the_table_empties_it():
    d = decoder()
    d.decode(b"\x40\x01a\x01b")
    d.decode(b"\x40\x01c" + hpack._encode_integer(5000, 0x7F, 0) + bytes(5000))
    assert not d._table
    assert d._size == 0


@pytest.mark.parametrize(
    "block",
    [
        "80",  # index 0
        "be",  # beyond the table
        "ff",  # cut in an integer
        "ffffffffffffffff7f",  # too large
        "ff80808080808080",  # zeros for ever
        "0001",  # cut in a name
        "000161",  # no value
        "0001610562",  # cut in a value
        "823fe101",  # size update after a field
        "3fe21f",  # size update over the limit
        "00016181fe",  # padding that is not all ones
        "00016182ffff",  # padding of more than 7 bits
        "00016184ffffffff",  # end of string
        "00016185fffffffffc",  # end of string and more
    ],
)
def test_garbage(block):
    with pytest.raises(HpackError):
        decoder().decode(bytes.fromhex(block))


def test_a_small_block_cannot_stand_for_much():
    d = decoder(limit=16384)
    d.decode(b"\x40\x01a" + hpack._encode_integer(4000, 0x7F, 0) + bytes(4000))
    with pytest.raises(FieldsTooLarge):
        d.decode(b"\xbe" * 100)


names = st.one_of(st.sampled_from([n for n, _ in hpack._STATIC]), st.binary(max_size=200))


@given(st.lists(st.tuples(names, st.binary(max_size=200))))
def test_encoded_fields_come_back(pairs):
    block = encode(pairs)
    assert decoder().decode(block) == tuple(pairs)


@given(st.binary(max_size=300))
def test_huffman_code_comes_back(text):
    coded = huffman.encode(text)
    assert len(coded) == huffman.encoded_size(text)
    assert huffman.decode(coded) == text


def test_every_step_of_the_huffman_code_is_the_same_remembered_or_not(monkeypatch):
    text = bytes(range(256)) * 3
    coded = huffman.encode(text)
    monkeypatch.setattr(huffman, "_steps", {})
    assert [huffman.decode(coded) for _ in range(2)] == [text] * 2
    monkeypatch.setattr(huffman, "_REMEMBERED", 10)
    monkeypatch.setattr(huffman, "_steps", {})
    assert [huffman.decode(coded) for _ in range(2)] == [text] * 2
    assert len(huffman._steps) == 10


def test_strings_are_coded_where_that_is_shorter():
    assert encode([(b":authority", b"www.example.com")]).hex() == "018cf1e3c2e5f23a6ba0ab90f4ff"
    assert encode([(b":authority", b"\x00\x01")]).hex() == "01020001"


@given(st.binary(max_size=40))
def test_huffman_garbage_is_refused_or_padded_well(coded):
    block = b"\x00\x01a" + hpack._encode_integer(len(coded), 0x7F, 0x80) + coded
    try:
        ((_, text),) = decoder().decode(block)
    except HpackError:
        return
    bits = "".join(huffman._BITS[byte] for byte in text)
    assert bits + "1" * (-len(bits) % 8) == "".join(format(byte, "08b") for byte in coded)


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_garbage_never_raises_anything_else(blocks):
    d = decoder(limit=4096)
    for block in blocks:
        try:
            d.decode(block)
        except FieldsTooLarge:
            pass
        except HpackError:
            break
        assert d._size <= 4096
        assert d._remembered_size <= 64 << 10


def test_a_list_over_the_limit_leaves_the_table_right():
    """So that only one stream is lost, not the connection."""
    d = decoder(limit=300)
    big = b"\x40\x01a" + hpack._encode_integer(250, 0x7F, 0) + b"v" * 250
    with pytest.raises(FieldsTooLarge):
        d.decode(big + b"\xbe" + b"\x40\x01b\x01w")
    assert d.decode(b"\xbe") == ((b"b", b"w"),)
    assert d.decode(b"\xbf") == ((b"a", b"v" * 250),)


def test_what_is_remembered_is_limited_by_what_it_stands_for():
    d = decoder(limit=1 << 14)
    d.decode(b"\x40\x01a" + hpack._encode_integer(1000, 0x7F, 0) + bytes(1000))
    for size in range(1, 200):
        d.decode(b"\xbe" + bytes([0, 1, size, 0]))
        d.decode(b"\xbe" * 10 + bytes([0, 1, size, 0]))  # stands for too much
    assert 0 < d._remembered_size <= 64 << 10
    assert all(len(block) < 10 for block in d._remembered)


def test_more_size_updates_than_anybody_needs():
    decoder().decode(b"\x20\x3f\x61\x82")
    with pytest.raises(HpackError):
        decoder().decode(b"\x20\x3f\x61\x20\x82")


# The encoder with a table


REQUEST = ((b":method", b"POST"), (b":path", b"/a.B/C"), (b"containerd-namespace", b"moby"))


def test_what_recurs_becomes_an_index():
    e, d = Encoder(), decoder()
    first, second, third = (e.encode(REQUEST) for _ in range(3))
    assert len(first) > 20
    assert second == third == b"\x83\xbf\xbe"
    assert [d.decode(block) for block in (first, second, third)] == [REQUEST] * 3
    other = (*REQUEST, (b"containerd-lease", b"l1"))
    assert d.decode(e.encode(other)) == other
    assert d.decode(e.encode(REQUEST)) == REQUEST


def test_the_peer_limits_the_table():
    e, d = Encoder(), decoder()
    d.decode(e.encode(REQUEST))
    assert e.resize(1 << 20) == b""
    update = e.resize(100)
    assert d.decode(update + e.encode(REQUEST)) == REQUEST
    assert d._max_size == 100
    assert d.decode(e.encode(REQUEST)) == REQUEST
    assert e.resize(4096) == b""  # it never grows again
    update = e.resize(0)
    assert update == b"\x20"
    assert d.decode(update + e.encode(REQUEST)) == REQUEST
    assert not d._table


def test_large_fields_do_not_drive_the_others_out():
    e, d = Encoder(), decoder()
    d.decode(e.encode(REQUEST))
    large = ((b"a", bytes(4000)),)
    assert d.decode(e.encode(large)) == large
    assert e.encode(REQUEST) == b"\x83\xbf\xbe"


@given(
    st.lists(
        st.one_of(
            st.lists(st.tuples(st.sampled_from([b":path", b"a", b"bb"]), st.binary(max_size=900))),
            st.integers(0, 5000),
        ),
        max_size=30,
    )
)
def test_an_encoder_and_a_decoder_agree(steps):
    e, d = Encoder(), decoder()
    update = b""
    for step in steps:
        if isinstance(step, int):
            update = e.resize(step) or update
            continue
        for _ in range(2):
            assert d.decode(update + e.encode(tuple(step))) == tuple(step)
            update = b""
        assert list(d._table) == list(e._entries)
        assert d._size == e._size
