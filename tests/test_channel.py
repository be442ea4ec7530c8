"""The channel's outbox when its end comes at an awkward moment."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from server.channel import Channel, Outbox, pair


@pytest.mark.parametrize("turns", range(6))
def test_closing_while_the_outbox_waits_for_room_ends_it(turns: int) -> None:
    """A stopped child is killed: its end closes, which makes ours writable, and is closed before that is seen."""

    async def run() -> None:
        ours, theirs = pair()
        channel = Channel(ours)
        outbox = Outbox(channel)
        while channel.try_send({"type": "filler"}):
            pass
        outbox.tell({"type": "waits"})
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outbox.run)
            await anyio.wait_all_tasks_blocked()
            theirs.close()
            for _ in range(turns):
                await asyncio.sleep(0)
            channel.close()

    anyio.run(run)
