"""What the C library keeps of freed memory, told by the page faults that it costs to have it again."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READS = 50
AT_ONCE = 8
PAGES = 256 * 1024 // os.sysconf("SC_PAGE_SIZE")
"""Of one block as large as the loops read."""

FAULTS = f"""
import resource
from serve_asgi.worker.malloc_tuning import MemoryTrimmer, keep_large_blocks

def reads(count):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        [bytearray(b"x") * 256000 for _ in range({AT_ONCE})]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize()

reads(1)
without = reads({READS})
keep_large_blocks()
reads(1)
kept = reads({READS})

surplus = MemoryTrimmer()
surplus.tick(0.0, resident())
blocks = [bytearray(b"x") * 256000 for _ in range(200)]
pin = bytearray(b"x") * 4000
del blocks
held = resident()
surplus.tick(1.0, held)
print(without, kept, held, resident(), sep=",")
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
def test_freed_memory_is_kept_for_the_next_read_and_given_back_when_it_is_much() -> None:
    inherited = {name: text for name, text in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    told = subprocess.check_output([sys.executable, "-c", FAULTS], cwd=ROOT, env=inherited, text=True)
    without, kept, held, left = map(int, told.split(","))
    assert without > READS * AT_ONCE * PAGES / 2
    assert kept < without / 10
    assert held - left > 16 << 20
