"""Whatever comes, however it is cut: what the fuzzer demands (tests/fuzzing/h2_inputs.py), of random scripts."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzzing.h2_inputs import BLOCKS, check_h2

BYTE = st.integers(0, 255)
HEAD = st.tuples(st.just(0x80), st.integers(0, 15), BYTE, st.integers(0, len(BLOCKS) - 1))
DATA = st.tuples(st.just(0x40), st.integers(0, 15), BYTE, BYTE)
OTHER = st.tuples(
    st.sampled_from([2, 3, 4, 6, 7, 8, 9, 16, 17]), st.integers(0, 15), BYTE, st.sampled_from([0, 4, 8, 6])
)
ENDED = st.tuples(st.just(0x80), st.integers(0, 15), st.just(1), st.integers(0, len(BLOCKS) - 1))
STEPS = st.lists((HEAD | DATA | OTHER | ENDED).map(bytes), max_size=20).map(b"".join)


@given(st.binary(min_size=8, max_size=8), STEPS | st.binary(max_size=200))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_bytes(ways: bytes, steps: bytes) -> None:
    check_h2(ways + steps)
