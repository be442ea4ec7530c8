"""The fuzzer's corpus, replayed: every input that once showed something new still holds what `inputs` demands."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fuzzing.inputs import check_http1, check_websocket, close_hosts

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module", autouse=True)
def _hosts() -> Iterator[None]:
    logging.disable()  # applications that raise are part of it
    yield
    logging.disable(logging.NOTSET)
    close_hosts()


@pytest.mark.parametrize(("target", "check"), [("http1", check_http1), ("websocket", check_websocket)])
def test_corpus(target: str, check: Callable[[bytes], None]) -> None:
    files = sorted((CORPUS / target).iterdir())
    assert files
    for file in files:
        data = file.read_bytes()
        for way in range(8):  # also cut in other ways than the one in which it was found
            check(bytes((data[0] & ~7 | way,)) + data[1:])
