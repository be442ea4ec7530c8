"""`retiring`: whether the worker retires, and whether that is over again."""

from __future__ import annotations

import asyncio

from serve_asgi.app.retiring import RetiringFlag


def test_who_waits_is_told_why_and_once_more_when_it_is_over() -> None:
    async def main() -> None:
        retiring = RetiringFlag()
        await retiring.over()
        assert not retiring()
        assert retiring.reason is None
        waits = asyncio.create_task(retiring.wait())
        await asyncio.sleep(0)
        retiring.begin("reload")
        retiring.begin("stop")
        assert await waits == await retiring.wait() == "reload"
        again = asyncio.create_task(retiring.over())
        given_up = asyncio.create_task(retiring.over())
        await asyncio.sleep(0)
        given_up.cancel()
        assert not again.done()
        retiring.end()
        await again
        assert not retiring()
        retiring.begin("rollback")
        assert retiring.reason == "rollback"

    asyncio.run(main())
