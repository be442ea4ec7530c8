"""The last ten minutes for `serve top`, from the admin process (`--admin`), which has taken a sample each second.

Without it, or if it does not answer, the charts begin when `serve top` does.
"""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Sequence
from typing import Any, Final

from serve_asgi.cli.command import harmless
from serve_asgi.cli.top_samples import TopSample

PATIENCE: Final = 2.0
"""Seconds to wait for the admin process."""


def fetch(addresses: Sequence[str]) -> list[TopSample]:
    """What the admin process at one of these addresses has kept, the oldest first; all but http URLs are skipped."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for address in addresses:
        if address.startswith("http://"):
            with (
                contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError),
                direct.open(f"{address}/samples.json", timeout=PATIENCE) as response,
            ):
                return read(harmless(json.load(response)))
    return []


def read(samples: Sequence[dict[str, Any]]) -> list[TopSample]:
    """Samples as they stand in /samples.json. Raises KeyError, TypeError, or IndexError if they are not."""
    generations = [int(sample["g"]) for sample in samples]
    return [
        TopSample(
            seconds=1.0,
            generation=generation,
            requests=float(sum(sample["r"].values())),
            errors=float(sample["s"][-1]),
            received=float(sample["i"]),
            sent=float(sample["o"]),
            cpu=float(sample["p"]),
            durations=(),
            p50=_seconds(sample["d"][0]),
            p99=_seconds(sample["d"][-1]),
            switched=generation != before,
            refused=False,
        )
        for sample, generation, before in zip(samples, generations, [*generations[:1], *generations], strict=False)
    ]


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
