"""Random histories of TLS 1.3 connections, judged by OpenSSL's client.

SERVE_TEST_EXAMPLES sets how many are tried: 400 unless told. `python -m tests.tls.histories --count 100000` takes a
quarter of an hour.
"""

from __future__ import annotations

import os

import pytest

from serve_asgi.tls.record_protection import SUITES
from tests.tls.histories import History, client_of

EXAMPLES = int(os.environ.get("SERVE_TEST_EXAMPLES", "400"))
AT_ONCE = 100


@pytest.mark.parametrize("first", range(0, EXAMPLES, AT_ONCE))
def test_histories(first: int) -> None:
    for seed in range(first, first + AT_ONCE):
        try:
            History(seed)
        except BaseException as error:
            error.add_note(f"the history of seed {seed}")
            raise


def test_the_client_can_be_kept_to_one_suite() -> None:
    """Otherwise the histories would be of one suite."""
    if client_of(0x1301) is None:
        pytest.skip("this interpreter's OpenSSL cannot be reached")
    assert all(client_of(suite) is not None for suite in SUITES)
