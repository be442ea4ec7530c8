"""The back-off after a crash."""

from __future__ import annotations

import pytest

from serve_asgi.supervisor.restart_backoff import RestartBackoff


@pytest.mark.parametrize(
    ("served", "delays"),
    [
        (None, [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]),
        (1.0, [0.0, 1.0, 2.0, 4.0]),
        (RestartBackoff.STEADY, [0.0, 0.0, 0.0]),
    ],
)
def test_delays_of_one_slot(served: float | None, delays: list[float]) -> None:
    slot = RestartBackoff()
    assert [slot.failed(100.0, served, "it died") for _ in delays] == delays
    assert (slot.not_before, slot.trouble) == (100.0 + delays[-1], "it died")
