"""Mutated inputs for the compiled core, built with AddressSanitizer: `python -m tests.fuzzing.fuzz_compiled TARGET`.

atheris is guided by bytecode, of which a compiled module has none: here the corpora, which cover what the pure Python
does, are mutated at random. TARGET is `http1`, `websocket` or `h2`. How to build it: docs/measured/fuzzing.md.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

import click

from serve_asgi.compiled_core import loaded_modules
from tests.fuzzing import h2_inputs, inputs

TARGETS: dict[str, Callable[[bytes], None]] = {
    "http1": inputs.check_http1,
    "websocket": inputs.check_websocket,
    "h2": h2_inputs.check_h2,
}
LONGEST = {"http1": 1024, "websocket": 1024, "h2": 300}
"""Bytes of an input, as for atheris."""
CORPUS = Path(__file__).with_name("corpus")
KEPT = 20_000


def mutated(known: list[bytes], chance: random.Random, longest: int) -> bytes:
    """An input made of those that are known."""
    data = bytearray(chance.choice(known))
    for _ in range(chance.randint(1, 6)):
        start = chance.randint(0, len(data))
        end = min(len(data), start + chance.randint(0, 16))
        match chance.randrange(5):
            case 0:
                data[start:end] = b""
            case 1:
                data[start:start] = chance.randbytes(chance.randint(1, 8))
            case 2:
                data[start:end] = chance.randbytes(end - start)
            case 3:
                other = chance.choice(known)
                begin = chance.randint(0, len(other))
                data[start:end] = other[begin : begin + chance.randint(1, 64)]
            case _ if start < len(data):
                data[start] ^= 1 << chance.randrange(8)
    return bytes(data[:longest])


@click.command(context_settings={"show_default": True})
@click.argument("target", type=click.Choice(list(TARGETS)))
@click.option("--seconds", type=click.IntRange(1), default=1800, help="How long.")
@click.option("--seed", type=int, default=1, help="Of the random numbers.")
@click.option("--last", type=click.Path(path_type=Path), help="Where the input in progress is kept, for after a crash.")
def main(target: str, seconds: int, seed: int, last: Path | None) -> None:
    """Ends with the exception of the first input that fails, or with AddressSanitizer's report."""
    if not loaded_modules():
        raise click.ClickException("The core is not compiled: put the tree that is into PYTHONPATH.")
    logging.disable()  # applications that raise are part of it
    chance = random.Random(seed)
    known = [path.read_bytes() for path in sorted((CORPUS / target).glob("*")) if path.is_file()] or [
        chance.randbytes(chance.randint(8, LONGEST[target])) for _ in range(1000)
    ]
    end, done = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        data = mutated(known, chance, LONGEST[target])
        if last is not None:
            last.write_bytes(data)
        try:
            TARGETS[target](data)
        except BaseException:
            print(f"{target}: the input {data!r} fails", file=sys.stderr)
            raise
        done += 1
        if len(known) < KEPT and done % 20 == 0:
            known.append(data)
    print(f"{target}: {done:,} inputs on {loaded_modules()} compiled modules, seed {seed}")


if __name__ == "__main__":
    main()
