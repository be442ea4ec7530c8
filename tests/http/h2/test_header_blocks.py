"""Header blocks: HPACK (RFC 7541) by its appendices and against the library, CONTINUATION, and what is too much."""

from __future__ import annotations

from collections.abc import Callable

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_asgi.http.h2 import frames, header_encoder, huffman
from serve_asgi.http.h2.error_codes import ConnectionFault, ErrorCode
from serve_asgi.http.h2.events import StreamRefusal, StreamRequest
from serve_asgi.http.h2.frames import CONTINUATION, END_HEADERS, END_STREAM, HEADERS, frame
from serve_asgi.http.h2.header_decoder import Field, HeaderDecoder
from serve_asgi.http.h2.header_encoder import HeaderEncoder, integer
from serve_asgi.http.h2.limits import MAX_CONTINUATIONS, MAX_TABLE_SIZE
from tests.http.h2.peer import GET, MAX_HEAD, H2Peer, of

huffman.fill_table()
COMPRESSION, CALM = ErrorCode.COMPRESSION_ERROR, ErrorCode.ENHANCE_YOUR_CALM


def block(text: str) -> bytes:
    return bytes.fromhex(text)


# RFC 7541 C.3 and C.4: three requests on one connection, and the entries of the table afterwards, the newest first.
REQUESTS = [
    ([*GET[:1], (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")], 57),
    (
        [
            *GET[:1],
            (b":scheme", b"http"),
            (b":path", b"/"),
            (b":authority", b"www.example.com"),
            (b"cache-control", b"no-cache"),
        ],
        110,
    ),
    (
        [
            *GET[:1],
            (b":scheme", b"https"),
            (b":path", b"/index.html"),
            (b":authority", b"www.example.com"),
            (b"custom-key", b"custom-value"),
        ],
        164,
    ),
]
C_3 = ["828684410f7777772e6578616d706c652e636f6d", "828684be58086e6f2d6361636865",
       "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565"]  # fmt: skip
C_4 = ["828684418cf1e3c2e5f23a6ba0ab90f4ff", "828684be5886a8eb10649cbf",
       "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf"]  # fmt: skip
C_5 = ["4803333032580770726976617465611d4d6f6e2c203231204f637420323031332032303a31333a323120474d54"
       "6e1768747470733a2f2f7777772e6578616d706c652e636f6d", "4803333037c1c0bf",
       "88c1611d4d6f6e2c203231204f637420323031332032303a31333a323220474d54c05a04677a69707738666f6f3d41"
       "53444a4b48514b425a584f5157454f50495541585157454f49553b206d61782d6167653d333630303b207665727369"
       "6f6e3d31"]  # fmt: skip


@pytest.mark.parametrize("blocks", [C_3, C_4], ids=["C.3", "C.4"])
def test_the_examples_of_requests(blocks: list[str]) -> None:
    decoder = HeaderDecoder()
    for text, (fields, size) in zip(blocks, REQUESTS, strict=True):
        assert decoder.decode(block(text))[0] == fields
        assert sum(len(name) + len(value) + 32 for name, value in decoder.entries) == size


def test_the_examples_of_responses() -> None:
    """RFC 7541 C.5: a table of 256 bytes, from which entries go."""
    decoder = HeaderDecoder()
    decoder.decode(integer(256, 0x1F, 0x20))
    found = [decoder.decode(block(text))[0] for text in C_5]
    assert found[0][0] == (b":status", b"302")
    assert found[1] == [(b":status", b"307"), *found[0][1:]]
    assert [name for name, _ in found[2]] == [
        b":status", b"cache-control", b"date", b"location", b"content-encoding", b"set-cookie",
    ]  # fmt: skip
    assert [name for name, _ in decoder.entries] == [b"date", b"content-encoding", b"set-cookie"]


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("400a637573746f6d2d6b65790d637573746f6d2d686561646572", (b"custom-key", b"custom-header")),  # C.2.1
        ("040c2f73616d706c652f70617468", (b":path", b"/sample/path")),  # C.2.2
        ("100870617373776f726406736563726574", (b"password", b"secret")),  # C.2.3
        ("82", (b":method", b"GET")),  # C.2.4
    ],
)
def test_the_examples_of_fields(text: str, field: Field) -> None:
    decoder = HeaderDecoder()
    fields, literals = decoder.decode(block(text))
    assert fields == [field]
    assert literals == ([] if text == "82" else [field])
    assert decoder.entries == ([field] if text.startswith("40") else [])


@pytest.mark.parametrize(
    "text",
    [
        "80",  # 6.1: index 0
        "be",  # 6.1: nothing in the dynamic table
        "ff00",  # index 127
        "7e00",  # a name of the dynamic table that is not there
        "0f2f00",  # the same, not indexed
        "41",  # cut off
        "410f77",
        "40",
        "4005",
        "400161",
        "40016105",
        "ff",  # an integer that is cut off
        "ff80",
        "ff8080808080",  # 5.1: one that does not end
        "ffffffffff7f",
        "3fe21f",  # 6.3: a table of 4097 bytes
        "2020 20",  # more changes than there can be
        "8220",  # 4.2: a change behind a field
        "00810000",  # 5.2: padding that is none
        "0081ff00",  # 5.2: a byte of padding
        "0084ffffffff00",  # 5.2: EOS
        "0085fffffffffc00",
        "0081fe00",  # the end within a symbol
        "00ffffffff0f",  # a length of more than there is
    ],
)
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(ConnectionFault) as found:
        HeaderDecoder().decode(block(text))
    assert found.value.code is COMPRESSION


def test_what_cannot_be_read_ends_the_connection() -> None:
    peer = H2Peer()
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x82\xbe"))
    assert peer.lost() is COMPRESSION


def test_a_table_of_many_entries() -> None:
    """Those that one byte means, those that take more, and what goes when there is no room."""
    decoder = HeaderDecoder()
    for number in range(200):
        decoder.decode(b"\x40\x02%02d\x01a" % (number % 100))
        entries = decoder.entries[::-1]
        assert len(entries) == min(number + 1, 4096 // 35)
        whole = b"".join(integer(62 + place, 0x7F, 0x80) for place in range(len(entries)))
        assert decoder.decode(whole) == (entries, [])
        with pytest.raises(ConnectionFault):
            decoder.decode(integer(62 + len(entries), 0x7F, 0x80))


def test_changes_of_the_tables_size() -> None:
    decoder = HeaderDecoder()
    decoder.decode(b"\x40\x01a\x01b" + b"\x40\x01c\x01d")
    assert decoder.entries == [(b"a", b"b"), (b"c", b"d")]
    decoder.decode(integer(40, 0x1F, 0x20))
    assert decoder.entries == [(b"c", b"d")]
    decoder.decode(b"\x20" + integer(4096, 0x1F, 0x20) + b"\x82")
    assert decoder.entries == []
    decoder.decode(integer(40, 0x1F, 0x20) + b"\x40\x01a\x01b")
    decoder.decode(b"\x40\x05abcde\x05abcde")  # larger than the table: empties it (4.4)
    assert decoder.entries == []


# ---- against the library


TEXT = st.binary(max_size=40) | st.sampled_from([b"", b"a", b"gzip, deflate", b"www.example.com"])
NAME = st.sampled_from([b":path", b":method", b"cookie", b"accept", b"x-a", b"x-b", b"date", b"set-cookie"]) | TEXT
BLOCKS = st.lists(st.lists(st.tuples(NAME, TEXT, st.booleans()), max_size=6), max_size=12)
SIZES = st.lists(st.none() | st.integers(0, 4096), min_size=12, max_size=12)


@given(BLOCKS, SIZES, st.booleans())
@settings(deadline=None)
def test_it_reads_what_the_library_writes(
    blocks: list[list[tuple[bytes, bytes, bool]]], sizes: list[int | None], coded: bool
) -> None:
    encoder, decoder, oracle = hpack.Encoder(), HeaderDecoder(), hpack.Decoder()
    for fields, size in zip(blocks, sizes, strict=False):
        if size is not None:
            encoder.header_table_size = size
        data = encoder.encode(fields, huffman=coded)
        expected = [(name, value) for name, value, _ in fields]
        assert decoder.decode(data)[0] == expected
        oracle.decode(data, raw=True)
        assert decoder.entries[::-1] == list(oracle.header_table.dynamic_entries)


@given(BLOCKS, SIZES)
@settings(deadline=None)
def test_the_library_reads_what_it_writes(
    blocks: list[list[tuple[bytes, bytes, bool]]], sizes: list[int | None]
) -> None:
    header_encoder._known.clear()
    encoder, decoder = HeaderEncoder(), hpack.Decoder()
    decoder.max_header_list_size = 1 << 20
    for fields, size in zip(blocks, sizes, strict=False):
        if size is not None:
            encoder.limit_table(size)
            decoder.max_allowed_table_size = size
        given_fields = [(name, value) for name, value, _ in fields]
        for _ in range(3):
            found = decoder.decode(encoder.encode(given_fields), raw=True)
            assert [(name, value) for name, value in found] == given_fields
        assert encoder.entries[::-1] == list(decoder.header_table.dynamic_entries)
        assert not {b"set-cookie", b"cookie", b"date", b":path"} & {name for name, _ in encoder.entries}


@given(st.binary(max_size=300))
@settings(deadline=None)
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    """And where the library reads it, it reads the same."""
    decoder, oracle = HeaderDecoder(), hpack.Decoder()
    try:
        found = decoder.decode(data)[0]
    except ConnectionFault:
        found = None
    try:
        expected = [(bytes(name), bytes(value)) for name, value in oracle.decode(data, raw=True)]
    except (hpack.HPACKError, IndexError):
        expected = None
    if found is not None and expected is not None:
        assert found == expected
        assert decoder.entries[::-1] == list(oracle.header_table.dynamic_entries)


@given(st.binary(max_size=100))
@settings(deadline=None)
def test_huffman(text: bytes) -> None:
    library = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
    coded = huffman.encode(text)
    assert coded == library.encode(text)
    assert huffman.decode(coded) == text


@given(st.binary(max_size=20))
@settings(deadline=None)
def test_huffman_is_read_in_one_way(data: bytes) -> None:
    """What is read is what would have been written: there is one code for a string."""
    try:
        text = huffman.decode(data)
    except huffman.BadHuffman:
        return
    assert huffman.encode(text) == data


def read(decode: Callable[[bytes], bytes], data: bytes) -> bytes | None:
    try:
        return decode(data)
    except huffman.BadHuffman:
        return None


@given(st.binary() | st.binary().map(huffman.encode))
@settings(deadline=None)
def test_both_ways_to_read_huffman_are_the_same(data: bytes) -> None:
    """That of the compiled core, and that of Python."""
    for text in (data, data + b"\xff\xff\xff\xff"):  # with EOS, which is refused
        assert read(huffman.decode_by_nibbles, text) == read(huffman.decode, text)


@given(st.integers(0, 1 << 21), st.integers(4, 7))
@settings(max_examples=50, deadline=None)
def test_integers(value: int, bits: int) -> None:
    assert integer(value, (1 << bits) - 1, 0) == bytes(hpack.hpack.encode_integer(value, bits))


# ---- what the encoder keeps


def test_what_comes_again_is_soon_small() -> None:
    header_encoder._known.clear()
    fields = [(b":status", b"200"), (b"content-type", b"text/plain"), (b"x-served-by", b"web-1")]
    first, second, third = (HeaderEncoder() for _ in range(3))
    spelled_out = first.encode(fields)
    assert first.entries == []
    assert len(first.encode(fields)) < len(spelled_out)  # for the second time: Huffman-coded, and into the table
    assert first.encode(fields) == b"\x88\xbf\xbe"
    second.encode(fields)
    assert second.encode(fields) == b"\x88\xbf\xbe"  # the process knows them
    third.limit_table(0)
    assert third.encode(fields) == b"\x20" + spelled_out
    assert third.encode(fields) == spelled_out


def test_a_repeated_block_is_written_anew_when_the_table_has_changed() -> None:
    header_encoder._known.clear()
    fields = [(b":status", b"200"), (b"x-served-by", b"web-1")]
    other = [(b":status", b"200"), (b"x-a", b"v" * 900)]
    encoder, decoder = HeaderEncoder(), hpack.Decoder()
    for given_fields in (fields, fields, fields, fields, other, other, fields, fields):
        assert decoder.decode(encoder.encode(given_fields), raw=True) == given_fields
    assert encoder.encode(fields) == b"\x88\xbf"
    fields.append((b"content-length", b"0"))  # the caller's list is its own
    assert decoder.decode(encoder.encode(fields), raw=True) == fields
    assert decoder.decode(encoder.encode(fields), raw=True) == fields
    encoder.limit_table(100)
    decoder.max_allowed_table_size = 100
    for _ in range(3):
        assert decoder.decode(encoder.encode(fields), raw=True) == fields


def test_what_is_new_each_time_disturbs_no_table() -> None:
    encoder = HeaderEncoder()
    for number in range(2000):
        encoder.encode([(b"x-request-id", b"%d" % number), (b"content-length", b"%d" % (number % 7))])
    assert encoder.entries == []
    assert len(header_encoder._known) <= header_encoder.MAX_KNOWN


def test_secrets_are_never_indexed() -> None:
    """RFC 7541 6.2.3, 7.1.3: nor kept for other connections."""
    encoder = HeaderEncoder()
    for _ in range(3):
        assert encoder.encode([(b"set-cookie", b"id=1")])[0] == 0x1F
    assert encoder.entries == []
    assert (b"set-cookie", b"id=1") not in header_encoder._known


# ---- from frames to blocks


@pytest.mark.parametrize("piece", [0, 1])
def test_a_block_in_many_frames(piece: int) -> None:
    """RFC 9113 4.3: cut anywhere, also in the middle of a field, also into nothing."""
    peer = H2Peer(piece)
    whole = peer.block([*GET, (b"x-a", b"b" * 50)])
    events = peer.send(
        frame(HEADERS, END_STREAM, 1, b""),
        *(frame(CONTINUATION, 0, 1, whole[start : start + 5]) for start in range(0, len(whole), 5)),
        frame(CONTINUATION, END_HEADERS, 1, b""),
    )
    assert of(StreamRequest, events)[0].head.headers == [(b"host", b"a"), (b"x-a", b"b" * 50)]


def test_too_many_continuations() -> None:
    peer = H2Peer()
    peer.send(frame(HEADERS, END_STREAM, 1, peer.block(GET)))
    peer.send(*[frame(CONTINUATION, 0, 1, b"")] * (MAX_CONTINUATIONS + 8))
    assert peer.core.lost is None
    peer.send(frame(CONTINUATION, 0, 1, b""))
    assert peer.lost() is CALM


def test_a_block_that_is_too_large() -> None:
    peer = H2Peer()
    peer.send(frame(HEADERS, END_STREAM, 1, bytes(16384)))
    for _ in range(7):
        peer.send(frame(CONTINUATION, 0, 1, bytes(16384)))
    assert peer.core.lost is None
    peer.send(frame(CONTINUATION, 0, 1, b"a"))
    assert peer.lost() is CALM


def test_a_head_that_is_too_large_is_answered_431() -> None:
    peer = H2Peer()
    head = [*GET, *((b"x-%d" % number, b"v" * 1000) for number in range(80))]
    whole = b"".join(frames.header_frames(1, peer.encoder.encode(head, huffman=False), True, 16384))
    (event,) = peer.send(whole)
    assert isinstance(event, StreamRefusal)
    assert event.refused.status == 431
    assert event.method == b"GET"
    peer.respond(1)
    assert of(StreamRequest, peer.request(3))


def test_a_head_of_the_largest_size() -> None:
    fields = [*GET, (b"x", b"v" * (MAX_HEAD - 5 * 32 - 7 - 3 - 7 - 5 - 10 - 1 - 5 - 1 - 1))]
    size = sum(len(name) + len(value) + 32 for name, value in fields)
    fields[-1] = (b"x", fields[-1][1] + b"v" * (MAX_HEAD - size))
    peer = H2Peer()
    (event,) = peer.send(*frames.header_frames(1, peer.encoder.encode(fields, huffman=False), True, 16384))
    assert isinstance(event, StreamRequest)
    fields[-1] = (b"x", fields[-1][1] + b"v")
    (event,) = peer.send(*frames.header_frames(3, peer.encoder.encode(fields, huffman=False), True, 16384))
    assert isinstance(event, StreamRefusal)


def test_a_bomb() -> None:
    """One entry of 4 KB, and a byte for each time that it is meant: 16 KB that would unpack to 64 MB."""
    peer = H2Peer()
    peer.send(peer.headers(1, [*GET, (b"x", b"v" * (MAX_TABLE_SIZE - 33))]))
    (newest,) = peer.block([(b"x", b"v" * (MAX_TABLE_SIZE - 33))])
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, bytes((newest,)) * 16384))
    assert peer.lost() is CALM


# ---- what is kept of heads


def test_equal_requests_share_a_head() -> None:
    peer = H2Peer()
    peer.request(1, [*GET, (b"x-a", b"b")])
    heads = [of(StreamRequest, peer.request(stream_id, [*GET, (b"x-a", b"b")]))[0].head for stream_id in (3, 5)]
    assert heads[0] is heads[1]
    with_body = of(StreamRequest, peer.request(7, [*GET, (b"x-a", b"b")], ended=False))[0].head
    assert with_body is not heads[0]
    assert (with_body.body, heads[0].body) == (-1, 0)


def test_a_kept_head_is_that_of_its_table() -> None:
    """The same bytes mean something else once the table has changed."""
    peer = H2Peer()
    for number, value in enumerate((b"1", b"2")):
        peer.send(peer.headers(6 * number + 1, [*GET, (b"x-a", value)]))
        for stream_id in (6 * number + 3, 6 * number + 5):
            newest = frame(HEADERS, END_HEADERS | END_STREAM, stream_id, b"\x82\x87\x84\x01\x01a\xbe")
            assert of(StreamRequest, peer.send(newest))[0].head.headers[-1] == (b"x-a", value)


def test_a_block_that_changes_the_table_is_read_each_time() -> None:
    peer = H2Peer()
    literal = b"\x82\x87\x84\x41\x01a\x40\x01x\x01y"
    for stream_id in (1, 3, 5):
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream_id, literal))
    assert peer.core.receiver.reader.decoder.entries.count((b"x", b"y")) == 3


def test_where_nothing_repeats_nothing_is_kept() -> None:
    peer = H2Peer()
    for number in range(3000):
        stream_id = 2 * number + 1
        path = b"\x04" + integer(6, 0x7F, 0) + b"/%05d" % number
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, stream_id, b"\x82\x87" + path + b"\x01\x01a"))
        peer.respond(stream_id)
    assert sum(map(len, peer.core.receiver.reader._kept)) <= 16
    assert [event.head.path for event in of(StreamRequest, peer.events)] == [
        b"/%05d" % number for number in range(3000)
    ]


def test_a_malformed_field_in_the_table_stays_malformed() -> None:
    peer = H2Peer()
    bad = [*GET, (b"x-a", b"1\r\n2")]
    assert of(StreamRefusal, peer.request(1, bad))
    assert of(StreamRefusal, peer.request(3, bad))
    assert of(StreamRequest, peer.request(5))
