"""What a process does for others: it is waited for, and counted when it is cut."""

from __future__ import annotations

import asyncio

from serve_asgi.app.background_work import BackgroundWork


def test_what_only_waits_is_cut_as_well_but_does_not_count() -> None:
    async def main() -> None:
        work = BackgroundWork()
        handler = work.start(asyncio.Event().wait(), "message t")
        waits = work.start_uncounted(asyncio.Event().wait(), "messages that wait")
        assert work.tasks == {handler, waits}
        assert work.cancel() == 1
        await asyncio.wait(work.tasks)
        assert handler.cancelled()
        assert waits.cancelled()
        assert work.tasks == set()
        assert work.cancel() == 0

    asyncio.run(main())
