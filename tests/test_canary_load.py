"""The short version of the canary's load test; `python -m loadtest.canary --deploys 50` is the long one."""

from __future__ import annotations

import pytest

from loadtest.canary import CanarySettings, run
from loadtest.canary_report import table


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("tls", "faults"), [(False, ("500s",)), (True, ("20 % 500s",))])
def test_bad_versions_are_taken_back_under_load_and_good_ones_stay(tls: bool, faults: tuple[str, ...]) -> None:
    result = run(CanarySettings(deploys=2, scale=0.5, tls=tls, faults=faults))
    assert result.spotless, table(result, verbose=True)
    for deploy in result.deploys:
        assert len(result.failed_by(deploy)) <= 60, table(result, verbose=True)
