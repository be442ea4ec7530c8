"""What a process does for others: it is waited for, and counted when it is cut."""

from __future__ import annotations

import asyncio
import contextvars

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


def test_each_task_has_what_the_import_has_set() -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)

    async def main() -> None:
        work = BackgroundWork()
        assert await work.start(number(), "message t") == 0
        work.context = contextvars.copy_context()
        work.context.run(variable.set, 7)
        assert [await work.start(number(), "message t") for _ in range(2)] == [7, 7]  # and each a copy of its own

    async def number() -> int:
        found = variable.get()
        variable.set(8)
        return found

    asyncio.run(main())


def test_a_process_that_serves_again_after_a_standby_gets_work_again() -> None:
    async def main() -> None:
        work = BackgroundWork()
        heard: list[str] = []
        work.on_retire(lambda: heard.append("retire"))
        work.on_resume(lambda: heard.append("resume"))
        work.resume()  # it has not retired
        for _ in range(2):
            work.retire()
            work.retire()
            await work.wait_retired()
            work.cancel()
            work.resume()
            assert not work.retiring
            assert not work.cut
        assert heard == ["retire", "resume"] * 2

    asyncio.run(main())
