"""The records of TLS 1.3, by the example of RFC 8448 and by the rules of RFC 8446 5."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_asgi.tls import record_protection
from serve_asgi.tls.alerts import Alert
from serve_asgi.tls.record_protection import (
    ALERT,
    APPLICATION_DATA,
    HANDSHAKE,
    MAX_FRAGMENT,
    SUITES,
    RecordError,
    RecordOpener,
    RecordSealer,
    expand_label,
)

CLIENT_SECRET = bytes.fromhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
SERVER_SECRET = bytes.fromhex("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643")
CLIENT_RECORD = bytes.fromhex(
    "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e1f5a6292a2"
    "977014bd1e3deae63aeebb21694915e4"
)
SERVER_RECORD = bytes.fromhex(
    "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c4bf2e5f0a2"
    "1c0047c2abf332540dd032e167c2955d"
)
FIFTY = bytes(range(50))
"""The content of both (RFC 8448 3)."""
AES_128 = SUITES[0x1301]


def pair(number: int, limit: int = 0) -> tuple[RecordSealer, RecordOpener]:
    suite = SUITES[number]
    if limit:
        suite = dataclasses.replace(suite, record_limit=limit)
    secret = bytes(range(48 if suite.hash == "sha384" else 32))
    return RecordSealer(suite, secret), RecordOpener(suite, secret)


def contents(opener: RecordOpener, data: bytes) -> list[tuple[int, bytes]]:
    opener.feed(data)
    found = []
    while (record := opener.open_next()) is not None:
        found.append(record)
    return found


class TestRfc8448:
    def test_the_keys(self) -> None:
        assert expand_label(CLIENT_SECRET, b"key", 16, "sha256").hex() == "17422dda596ed5d9acd890e3c63f5051"
        assert expand_label(CLIENT_SECRET, b"iv", 12, "sha256").hex() == "5b78923dee08579033e523d9"
        assert expand_label(SERVER_SECRET, b"key", 16, "sha256").hex() == "9f02283b6c9c07efc26bb9f2ac92e356"
        assert expand_label(SERVER_SECRET, b"iv", 12, "sha256").hex() == "cf782b88dd83549aadf1e984"

    def test_the_client_s_first_record(self) -> None:
        assert RecordOpener(AES_128, CLIENT_SECRET).open_whole(CLIENT_RECORD) == FIFTY
        assert RecordSealer(AES_128, CLIENT_SECRET).seal(FIFTY) == CLIENT_RECORD

    def test_the_server_s_second_record(self) -> None:
        """The first was a session ticket."""
        assert RecordSealer(AES_128, SERVER_SECRET, 1).seal(FIFTY) == SERVER_RECORD
        assert contents(RecordOpener(AES_128, SERVER_SECRET, 1), SERVER_RECORD) == [(APPLICATION_DATA, FIFTY)]


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize(
    "size", [1, 5, 6, 100, 2020, 2025, 2026, 2027, 2047, 2048, 2049, MAX_FRAGMENT - 1, MAX_FRAGMENT]
)
def test_sizes_both_ways(suite: int, size: int) -> None:
    sealer, opener = pair(suite)
    content = b"c" * size
    records = [sealer.seal(content), sealer.seal(bytearray(content)), sealer.seal(memoryview(content))]
    assert {len(record) for record in records} == {size + 22}
    for record in records:
        other = RecordOpener(opener.suite, opener.secret, opener.sequence)
        assert contents(other, record) == [(APPLICATION_DATA, content)]
        assert opener.open_whole(record) == (content if size >= 6 else b"")
        opener.sequence = other.sequence


def test_a_view_of_wider_items_counts_bytes() -> None:
    sealer, opener = pair(0x1301)
    assert opener.open_whole(sealer.seal(memoryview(bytes(range(32))).cast("I"))) == bytes(range(32))


def test_content_is_cut_into_fragments() -> None:
    sealer, opener = pair(0x1301)
    content = bytes(range(256)) * 200
    assert [len(each) for _, each in contents(opener, sealer.seal(content))] == [MAX_FRAGMENT] * 3 + [2048]
    sealer.max_fragment = 512
    sealer, opener = RecordSealer(AES_128, CLIENT_SECRET, 0, 512), RecordOpener(AES_128, CLIENT_SECRET)
    assert [len(each) for _, each in contents(opener, sealer.seal(content[:1100]))] == [512, 512, 76]
    assert sealer.seal(b"") == b""


def test_padding_is_taken_off() -> None:
    sealer, opener = pair(0x1302)
    record = sealer.seal_one(b"content\0\0", APPLICATION_DATA, 300)
    assert opener.open_whole(record) == b""
    assert contents(opener, record) == [(APPLICATION_DATA, b"content\0\0")]
    assert contents(opener, sealer.seal_one(b"", APPLICATION_DATA, 30)) == [(APPLICATION_DATA, b"")]
    whole = sealer.seal_one(b"c", HANDSHAKE, MAX_FRAGMENT - 1)
    assert contents(opener, whole) == [(HANDSHAKE, b"c")]


class TestWrongRecords:
    """RFC 8446 5.1, 5.2, 5.4."""

    @staticmethod
    def refused(data: bytes, opener: RecordOpener) -> Alert:
        assert opener.open_whole(data) == b""
        with pytest.raises(RecordError) as error:
            contents(opener, data)
        return error.value.alert

    @pytest.mark.parametrize("place", [4, 5, 30, 306, 321])
    def test_a_changed_byte(self, place: int) -> None:
        sealer, opener = pair(0x1301)
        record = bytearray(sealer.seal(b"c" * 300) + b"more")
        record[place] ^= 1
        assert self.refused(bytes(record), opener) == Alert.BAD_RECORD_MAC

    def test_a_changed_version_is_not_authentic(self) -> None:
        sealer, opener = pair(0x1301)
        record = sealer.seal(b"c" * 300)
        assert self.refused(record[:2] + b"\x01" + record[3:], opener) == Alert.BAD_RECORD_MAC

    def test_a_lost_record(self) -> None:
        sealer, opener = pair(0x1303)
        sealer.seal(b"lost content")
        assert self.refused(sealer.seal(b"more content"), opener) == Alert.BAD_RECORD_MAC

    def test_a_repeated_record(self) -> None:
        sealer, opener = pair(0x1303)
        record = sealer.seal(b"some content")
        assert opener.open_whole(record) == b"some content"
        assert self.refused(record, opener) == Alert.BAD_RECORD_MAC

    def test_reordered_records(self) -> None:
        sealer, opener = pair(0x1301)
        first, second = sealer.seal(b"some content"), sealer.seal(b"more content")
        assert self.refused(second + first, opener) == Alert.BAD_RECORD_MAC

    @pytest.mark.parametrize("kind", [0, 20, 21, 22, 24, 255])
    def test_an_unprotected_record_is_refused_at_its_first_byte(self, kind: int) -> None:
        _, opener = pair(0x1301)
        assert self.refused(bytes((kind,)), opener) == Alert.UNEXPECTED_MESSAGE

    def test_a_length_that_no_record_has(self) -> None:
        _, opener = pair(0x1301)
        assert self.refused(b"\x17\x03\x03" + (MAX_FRAGMENT + 257).to_bytes(2), opener) == Alert.RECORD_OVERFLOW

    @pytest.mark.parametrize("padding", [0, 255 - 17])
    def test_too_much_content(self, padding: int) -> None:
        sealer, opener = pair(0x1301)
        record = sealer.seal_one(b"c" * (MAX_FRAGMENT + 1), APPLICATION_DATA, padding)
        assert self.refused(record, opener) == Alert.RECORD_OVERFLOW

    @pytest.mark.parametrize("size", [0, 1, 15])
    def test_a_record_without_room_for_its_tag(self, size: int) -> None:
        _, opener = pair(0x1301)
        assert self.refused(b"\x17\x03\x03\0" + bytes((size,)) + bytes(size), opener) == Alert.BAD_RECORD_MAC

    @pytest.mark.parametrize("padding", [0, 1, 100])
    def test_no_content_type(self, padding: int) -> None:
        sealer, opener = pair(0x1301)
        assert self.refused(sealer.seal_one(b"", 0, padding), opener) == Alert.UNEXPECTED_MESSAGE

    def test_nothing_at_all_but_a_tag(self) -> None:
        sealer, opener = pair(0x1301)
        header = b"\x17\x03\x03\0\x10"
        record = header + sealer._encrypt((sealer._iv ^ 0).to_bytes(12), b"", header)
        assert self.refused(record, opener) == Alert.UNEXPECTED_MESSAGE


class TestKeyUpdates:
    @pytest.mark.parametrize("suite", SUITES)
    def test_the_next_generation_begins_at_zero(self, suite: int) -> None:
        sealer, opener = pair(suite)
        assert opener.open_whole(sealer.seal(b"some content")) == b"some content"
        secret = sealer.secret
        record = sealer.seal_key_update(True)
        assert sealer.secret != secret
        assert sealer.sequence == 0
        assert contents(opener, record) == [(HANDSHAKE, bytes((24, 0, 0, 1, 1)))]
        opener.next_generation()
        assert opener.open_whole(sealer.seal(b"more content")) == b"more content"

    def test_a_key_is_not_used_beyond_its_limit(self) -> None:
        """RFC 8446 5.5."""
        sealer, opener = pair(0x1301, limit=3)
        for _ in range(10):
            opener.feed(sealer.seal(b"c" * 10))
        kinds = []
        while (record := opener.open_next()) is not None:
            kinds.append(record[0])
            if record[0] == HANDSHAKE:
                opener.next_generation()
        assert kinds == [23, 23, 23, 22] * 3 + [23]

    def test_not_even_within_one_large_write(self) -> None:
        sealer, opener = pair(0x1301, limit=3)
        opener.feed(sealer.seal(b"c" * 10 * MAX_FRAGMENT))
        kinds = []
        while (record := opener.open_next()) is not None:
            kinds.append(record[0])
            if record[0] == HANDSHAKE:
                opener.next_generation()
        assert kinds == [23, 23, 23, 22] * 3 + [23]

    def test_the_limits_are_those_of_the_rfc(self) -> None:
        assert {number: suite.record_limit < 2**24.5 for number, suite in SUITES.items()} == {
            0x1301: True,
            0x1302: True,
            0x1303: False,
        }
        assert SUITES[0x1303].record_limit < 1 << 64


@given(
    st.lists(st.tuples(st.sampled_from([ALERT, APPLICATION_DATA]), st.binary(max_size=40), st.integers(0, 9))),
    st.data(),
)
def test_cuts_change_nothing(records: list[tuple[int, bytes, int]], data: st.DataObject) -> None:
    sealer, opener = pair(0x1301)
    stream = b"".join(sealer.seal_one(content, kind, padding) for kind, content, padding in records)
    found = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += contents(opener, stream[:size])
        stream = stream[size:]
        opener = RecordOpener(opener.suite, opener.secret, opener.sequence, opener.partial)
    assert found == [(kind, content) for kind, content, _ in records]


def test_the_headers_are_ready_for_short_records() -> None:
    assert all(
        header == b"\x17\x03\x03" + (size - 5).to_bytes(2)
        for size, header in enumerate(record_protection.HEADERS)
        if size >= 5
    )
