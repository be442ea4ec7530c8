"""Histories against the library `h2` as the client."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.h2.histories import FIRST_TABLES, FIRST_WINDOWS, STEPS, History, run_both, settings_of

STEP = st.sampled_from(STEPS)


@given(
    st.data(),
    st.lists(STEP, max_size=20) | st.lists(STEP, min_size=30, max_size=100),
    st.sampled_from(FIRST_WINDOWS),
    st.sampled_from(FIRST_TABLES),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
def test_histories(data: st.DataObject, steps: list[str], window: int | None, table: int | None) -> None:
    history = History(lambda options: data.draw(st.sampled_from(options)), settings_of(window, table))
    for step in steps:
        getattr(history, step)()
    history.finish()


@pytest.mark.parametrize("seed", range(40))
def test_a_history_in_several_processes_is_that_in_one(seed: int) -> None:
    run_both(seed)
