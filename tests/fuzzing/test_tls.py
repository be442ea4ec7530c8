"""The TLS fuzzer's corpus, replayed: every input that once showed something new still holds what is demanded of any."""

from __future__ import annotations

from pathlib import Path

from tests.fuzzing.tls_inputs import check_tls

CORPUS = Path(__file__).parent / "corpus" / "tls"


def test_corpus() -> None:
    files = sorted(CORPUS.iterdir())
    assert files
    for file in files:
        data = file.read_bytes()
        for way in range(8):  # also cut in other ways than the one in which it was found
            check_tls(data[:1] + bytes((data[1] & ~7 | way,)) + data[2:])
